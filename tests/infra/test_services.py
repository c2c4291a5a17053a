"""`up`, `down` and `status` on real servers: idempotent, repairing, private."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import servers, services
from infra.prefect_api import ApiError, PrefectApi

FLOWS = ("build-emobench", "train-emollm", "evaluate-emollm", "retrain-emollm")


def command(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.services", *words, "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_second_up_changes_nothing(local_services: services.Services) -> None:
    before = local_services.state_path.read_bytes()
    result = command("up", home=local_services.home)
    assert result.returncode == 0 and "already up" in result.stdout
    assert local_services.state_path.read_bytes() == before
    status = command("status", home=local_services.home)
    assert status.returncode == 0
    assert status.stdout.count(" up ") == 3 and " down" not in status.stdout


def test_every_flow_is_deployed_twice_and_no_schedule_is_active(local_services: services.Services) -> None:
    assert local_services.prefect
    api = PrefectApi(local_services.prefect.api_url)
    found = api.call("POST", "/deployments/filter", {})
    assert len(found) == 8
    for flow in FLOWS:
        assert api.deployment_id(f"{flow}/quickstart") and api.deployment_id(f"{flow}/smoke")
    assert {deployment["name"] for deployment in found} == {"quickstart", "smoke"}
    assert all(deployment["description"] and deployment["tags"] for deployment in found)
    assert all(deployment["global_concurrency_limit"]["limit"] == 1 for deployment in found)
    automations = api.call("POST", "/automations/filter", {})
    assert len(automations) == 2 and all(automation["enabled"] for automation in automations)
    (pool,) = api.call("POST", "/work_pools/filter", {})
    assert (pool["name"], pool["concurrency_limit"]) == (services.POOL, 8)
    schedules = [schedule for deployment in found for schedule in deployment["schedules"]]
    assert [schedule["active"] for schedule in schedules] == [False]
    assert schedules[0]["schedule"]["timezone"] == "Europe/Berlin"
    assert schedules[0]["parameters"] == {"jitter_minutes": 15}


def test_the_env_file_makes_prefect_and_ray_find_the_services(local_services: services.Services) -> None:
    script = f". {local_services.home}/env && {sys.executable} -m prefect deployment ls -o json"
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert {deployment["name"] for deployment in json.loads(result.stdout)} == {"quickstart", "smoke"}
    script = (
        f". {local_services.home}/env && {sys.executable} -c "
        "'from flows import ray_jobs; print(len(ray_jobs.connect().list_jobs()))'"
    )
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_rays_token_is_private_and_in_no_log_or_state(local_services: services.Services) -> None:
    path = local_services.home / "ray-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    assert len(token) >= 64
    for file in local_services.home.rglob("*"):
        if file.is_file() and file != path:
            assert token.encode() not in file.read_bytes(), f"{file} holds the token"


def test_everything_listens_on_loopback_only(local_services: services.Services) -> None:
    import psutil

    addresses = set()
    for process in local_services.processes():
        for member in servers.family(process):
            try:
                found = member.net_connections(kind="inet")
            except psutil.Error:
                continue
            addresses |= {(c.laddr.ip, member.name()) for c in found if c.status == psutil.CONN_LISTEN}
    assert addresses, "no listening socket was found: the test would hold over nothing"
    outside = {(ip, name) for ip, name in addresses if not _is_loopback(ip)}
    assert not outside, outside


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@pytest.mark.parametrize("killed", [("worker",), ("worker", "Prefect server")])
def test_up_repairs_what_was_killed_and_marks_its_runs_as_crashed(
    local_services: services.Services, killed: tuple[str, ...]
) -> None:
    assert local_services.prefect and local_services.worker
    api = PrefectApi(local_services.prefect.api_url)
    deployment = api.deployment_id("build-emobench/smoke")
    run = api.start(deployment, {"recipe": "smoke"})
    api.set_state(run["id"], "RUNNING", "as if a worker had started it", force=True)
    ray_before = local_services.ray
    victims = {"worker": local_services.worker, "Prefect server": local_services.prefect.process}
    for name in killed:
        os.kill(victims[name].pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while any(servers.running(victims[name]) for name in killed) and time.monotonic() < until:
        time.sleep(0.1)
    assert command("status", home=local_services.home).returncode == 1

    repaired = services.up(local_services.home)
    assert repaired.all_healthy()
    assert repaired.ray == ray_before, "a healthy Ray head must be left alone"
    assert repaired.prefect
    state = PrefectApi(repaired.prefect.api_url).run(run["id"])
    assert state["state_type"] == "CRASHED" and "stopped while it ran" in state["state"]["message"]
    local_services.prefect, local_services.worker = repaired.prefect, repaired.worker


@pytest.mark.slow
def test_with_a_password_only_who_has_it_reaches_prefect_and_it_is_in_its_own_file_only(
    tmp_path: Path,
) -> None:
    home = tmp_path / "services"
    running = services.up(home, auth=True)
    try:
        assert running.prefect
        with pytest.raises(ApiError, match="401"):
            PrefectApi(running.prefect.api_url).call("POST", "/deployments/filter", {})
        script = f". {home}/env && {sys.executable} -m prefect deployment ls -o json"
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
        result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=env)
        assert result.returncode == 0, result.stderr
        assert len(json.loads(result.stdout)) == 8
        assert running.all_healthy(), "the worker must know the password too"
        password = (home / "prefect-auth").read_text().partition(":")[2]
        assert len(password) == 64 and stat.S_IMODE((home / "prefect-auth").stat().st_mode) == 0o600
        for file in home.rglob("*"):
            if file.is_file() and file.name != "prefect-auth":
                assert password.encode() not in file.read_bytes(), f"{file} holds the password"
    finally:
        services.down(home)


def test_a_service_that_cannot_start_ends_the_others_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "OBJECT_STORE_BYTES", 1000)  # Ray refuses an object store under 75 MB
    monkeypatch.setattr(services, "_object_store_bytes", lambda: 1000)
    with pytest.raises(servers.ServiceError, match="Ray head"):
        services.up(tmp_path)
    left = services.Services.load(tmp_path)
    assert left.processes() == []


def test_down_without_up_is_fine(tmp_path: Path) -> None:
    result = command("down", home=tmp_path)
    assert result.returncode == 0 and "no local services were up" in result.stdout


def test_the_api_says_what_the_server_said(prefect_server: servers.PrefectServer) -> None:
    api = PrefectApi(prefect_server.api_url, auth_string=prefect_server.auth_string)
    with pytest.raises(ApiError, match="404"):
        api.deployment_id("no-such-flow/quickstart")
    with pytest.raises(ApiError, match="does not answer"):
        PrefectApi("http://127.0.0.1:9/api").call("GET", "/health")
