"""A job that nobody waits for is stopped, whatever became of its flow run; one that somebody waits for is not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import orphans, ray_jobs
from flows.lease import prefect_server as name_of_server
from flows.ray_jobs import Work
from infra.prefect_api import PrefectApi
from infra.servers import PrefectServer, RayHead


@pytest.fixture
def api(prefect_server: PrefectServer) -> Iterator[PrefectApi]:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings(
        {PREFECT_API_URL: prefect_server.api_url, PREFECT_API_AUTH_STRING: prefect_server.auth_string}
    ):
        yield PrefectApi(prefect_server.api_url, auth_string=prefect_server.auth_string)


def flow_run(api: PrefectApi, state: str, tags: list[str] | None = None) -> str:
    flow = api.call("POST", "/flows/", {"name": "orphans"})
    body = {"flow_id": flow["id"], "state": {"type": state}, "tags": tags or []}
    return str(api.call("POST", "/flow_runs/", body)["id"])


def start(client, folder: Path, name: str, owner: str, server: str | None = None) -> str:
    sleeper = folder / "sleeper.py"
    sleeper.write_text("import time; time.sleep(120)")
    metadata = {"flow": "orphans", "prefect": server or name_of_server()}
    work = Work(name, [str(sleeper)], str(folder), 60, owner=owner, metadata=metadata)
    return ray_jobs.submit_or_attach(client, work, lambda: False).job_id


def test_only_jobs_whose_run_is_over_or_unknown_and_that_nobody_follows_are_stopped(
    ray_cluster: RayHead, api: PrefectApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = ray_jobs.connect()
    running, crashed = flow_run(api, "RUNNING"), flow_run(api, "CRASHED")
    orphans.follow_openly(running, "orphan-followed-00")
    assert orphans.followers("orphan-followed-00") == {running}
    wanted = start(client, tmp_path, "orphan-wanted-00", running)
    left_behind = start(client, tmp_path, "orphan-left-00", crashed)
    followed = start(client, tmp_path, "orphan-followed-00", crashed)
    foreign = start(client, tmp_path, "orphan-foreign-00", str(uuid.uuid4()), server="elsewhere:4200/api")

    assert orphans.main(["--dry-run", "--every-server"]) == 0
    said = capsys.readouterr().out
    assert f"{left_behind}: its flow run " in said and "is Crashed: would be stopped" in said
    assert f"{foreign}: its flow run " in said and "is unknown: would be stopped" in said
    assert wanted not in said and followed not in said
    assert orphans.sweep(client, keep="orphan-left-00") == [], "what the caller is about to attach to is kept"

    assert orphans.main([]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("is Crashed: stopped")
    going_on = {job.submission_id for job in client.list_jobs() if not job.status.is_terminal()}
    assert going_on >= {wanted, followed, foreign} and left_behind not in going_on

    assert orphans.stop_jobs_of(client, running) == [wanted]
    assert orphans.stop_jobs_of(client, crashed) == [], "another open run follows that job"
    api.set_state(running, "COMPLETED", "done", force=True)
    assert {orphan.job_id for orphan in orphans.sweep(client, every_server=True)} == {followed, foreign}


def test_without_a_prefect_server_nothing_is_stopped(
    ray_cluster: RayHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert orphans.main([]) == 1
    assert "PREFECT_API_URL" in capsys.readouterr().err
