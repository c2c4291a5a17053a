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
    jobs = {
        "wanted": start(client, tmp_path, "orphan-wanted-00", running),
        "crashed": start(client, tmp_path, "orphan-crashed-00", crashed),
        "unknown": start(client, tmp_path, "orphan-unknown-00", str(uuid.uuid4())),
        "followed": start(client, tmp_path, "orphan-followed-00", crashed),
        "foreign": start(client, tmp_path, "orphan-foreign-00", crashed, server="elsewhere:4200/api"),
        "kept": start(client, tmp_path, "orphan-kept-00", crashed),
    }
    orphaned = {jobs["crashed"], jobs["unknown"]}

    assert orphans.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(f"{job}: " in said for job in (*orphaned, jobs["kept"])) and "would be stopped" in said
    assert jobs["wanted"] not in said and jobs["followed"] not in said and jobs["foreign"] not in said

    found = orphans.sweep(client, keep="orphan-kept-00")
    assert {orphan.job_id for orphan in found} == orphaned and all(orphan.stopped for orphan in found)
    assert {orphan.job_id: orphan.why.split()[-1] for orphan in found} == {
        jobs["crashed"]: "Crashed",
        jobs["unknown"]: "unknown",
    }
    left = {job.submission_id for job in client.list_jobs() if not job.status.is_terminal()}
    assert left >= set(jobs.values()) - orphaned and not left & orphaned

    assert orphans.stop_jobs_of(client, running) == [jobs["wanted"]]
    assert set(orphans.stop_jobs_of(client, crashed)) == {jobs["foreign"], jobs["kept"]}
    assert not client.get_job_status(jobs["followed"]).is_terminal(), "a run that still follows it needs it"
    api.set_state(running, "COMPLETED", "done", force=True)
    assert [orphan.job_id for orphan in orphans.sweep(client)] == [jobs["followed"]]


def test_without_a_prefect_server_nothing_is_stopped(
    ray_cluster: RayHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert orphans.main([]) == 1
    assert "PREFECT_API_URL" in capsys.readouterr().err
