"""The local servers: alive, private, and gone without a trace when they are ended."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from infra import servers
from infra.prefect_api import ApiError, PrefectApi


def test_ray_refuses_clients_without_the_token(ray_cluster: servers.RayHead) -> None:
    assert ray_cluster.healthy()
    assert not servers.answers(f"{ray_cluster.dashboard_url}/api/jobs/")
    assert not servers.answers(f"{ray_cluster.dashboard_url}/api/jobs/", {"Authorization": "Bearer guess"})
    assert stat.S_IMODE(Path(ray_cluster.token_path).stat().st_mode) == 0o600


def test_a_task_runs_on_the_cluster(ray_session: servers.RayHead) -> None:
    import ray

    assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
    assert ray.cluster_resources()["CPU"] == 4


def test_the_prefect_server_answers(prefect_server: servers.PrefectServer) -> None:
    assert servers.answers(f"{prefect_server.api_url}/health")


def test_a_prefect_server_with_a_password_answers_nobody_without_it(
    prefect_server: servers.PrefectServer,
) -> None:
    with pytest.raises(ApiError, match="401.*PREFECT_API_AUTH_STRING"):
        PrefectApi(prefect_server.api_url).call("POST", "/flows/filter", {})
    with pytest.raises(ApiError, match="401"):
        PrefectApi(prefect_server.api_url, auth_string="emobench:guess").call("POST", "/flows/filter", {})
    api = PrefectApi(prefect_server.api_url, auth_string=prefect_server.auth_string)
    assert isinstance(api.call("POST", "/flows/filter", {}), list)
    assert stat.S_IMODE(Path(prefect_server.auth_path).stat().st_mode) == 0o600
    password = prefect_server.auth_string.partition(":")[2]
    assert len(password) == 64 and password not in Path(prefect_server.process.log).read_text()


def test_a_servers_port_is_none_that_an_outgoing_connection_could_take_before_it_starts() -> None:
    settings = Path("/proc/sys/net/ipv4/ip_local_port_range")
    outgoing_from = int(settings.read_text().split()[0]) if settings.exists() else 49_152
    drawn = {servers.free_port() for _ in range(50)}
    assert len(drawn) > 45 and all(19_999 < port < outgoing_from for port in drawn)


def test_a_port_that_is_wanted_is_taken_where_nobody_listens() -> None:
    wanted = servers.free_port()
    assert servers.free_port(wanted) == wanted
    with socket.create_server((servers.LOOPBACK, wanted)):
        assert servers.free_port(wanted) != wanted


def test_ending_a_server_ends_children_in_other_sessions_and_nothing_else(tmp_path: Path) -> None:
    grandchild = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    ours = servers.start(
        "parent",
        [sys.executable, "-c", grandchild],
        servers.clean_environment({}),
        tmp_path / "log",
        "mark-one",
    )
    bystander = servers.start(
        "bystander",
        [sys.executable, "-c", "import time; time.sleep(600)"],
        servers.clean_environment({}),
        tmp_path / "log",
        "mark-two",
    )
    try:
        deadline = 100
        while (
            servers.running(ours) or len(servers.family(ours)) != 1
        ):  # the parent is gone, the orphan is left
            deadline -= 1
            assert deadline, "the orphan was not found by its mark"
            time.sleep(0.1)
        servers.end(ours)
        assert servers.family(ours) == []
        assert servers.running(bystander)
    finally:
        servers.end(bystander, patience_s=2)
        servers.end(ours, patience_s=2)
    assert not servers.running(bystander)


def test_a_pid_used_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    stale = servers.Process("old", os.getpid(), created=1.0, mark="never-used", log=str(tmp_path / "log"))
    assert not servers.running(stale)
    assert servers.end(stale) == 0


def test_a_server_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    process = servers.start(
        "server",
        [sys.executable, "-c", "raise SystemExit('the database is locked')"],
        servers.clean_environment({}),
        tmp_path / "server.log",
        "mark-three",
    )
    with pytest.raises(servers.ServiceError, match="the database is locked"):
        servers.wait_until(lambda: False, process, limit_s=20)
