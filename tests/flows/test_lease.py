"""One retraining of a registry at a time, also where the one before was killed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dataset_build import storage
from flows import shared_file
from flows.lease import AlreadyRunning, only_one, prefect_server
from tests.fixtures.s3_server import S3Server


def hold(home: str, run: str, open_runs: set[str], server: str = "here", limit_s: float = 60):
    return only_one(home, run, server, limit_s, open_runs.__contains__)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_of_several_starts_at_once_one_runs(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home = str(tmp_path)
    if where == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        home = storage.join(server.bucket("lease-tests"), tmp_path.name)
    runs = {f"run-{n}" for n in range(5)}
    ran, refused, everyone = [], [], threading.Barrier(5)

    def start(run: str) -> None:
        try:
            with hold(home, run, runs):
                ran.append(run)
                everyone.wait(30)  # until the others have tried
        except AlreadyRunning as busy:
            refused.append(str(busy))
            everyone.wait(30)

    threads = [threading.Thread(target=start, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 1 and len(refused) == 4
    assert all(ran[0] in reason for reason in refused)
    with hold(home, "later", runs):
        pass


def test_the_lease_of_a_run_that_was_killed_does_not_count(tmp_path: Path) -> None:
    home = str(tmp_path)
    lease = hold(home, "killed", {"killed"})
    lease.__enter__()  # and never left
    with (
        pytest.raises(AlreadyRunning, match="flow run killed retrains"),
        hold(home, "next", {"killed", "next"}),
    ):
        pass
    with hold(home, "next", {"next"}):
        assert shared_file.read_json(str(tmp_path / "retraining.json"))[0]["flow_run"] == "next"


def test_a_holder_that_another_server_knows_counts_until_its_time_is_up(tmp_path: Path) -> None:
    home = str(tmp_path)
    lease = hold(home, "far", set(), server="elsewhere", limit_s=3600)
    lease.__enter__()
    with pytest.raises(AlreadyRunning, match="delete .*retraining.json"), hold(home, "next", {"next"}):
        pass
    (tmp_path / "retraining.json").unlink()
    lease = hold(home, "far", set(), server="elsewhere", limit_s=-1)
    lease.__enter__()
    with hold(home, "next", {"next"}):
        pass


def test_the_same_run_started_again_keeps_its_lease(tmp_path: Path) -> None:
    with hold(str(tmp_path), "run", {"run"}), hold(str(tmp_path), "run", {"run"}):
        pass


def test_the_servers_name_holds_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "https://user:hunter2hunter2@prefect.example.org/api"}):
        assert prefect_server() == "prefect.example.org:/api"
