"""What is killed while the flows run: worker, server, flow, job, a Ray node, the S3 server.

Every fault ends in success or in a clear final state, another run finishes the work, and no process is left behind. Each
test starts its flow through its deployment on servers of its own (`python -m infra.services up` in a folder).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from dataset_build import storage
from infra import deploy, servers, services
from infra.servers import Process, clean_environment
from tests.fixtures.emoji_tree import write_emoji_tree
from tests.fixtures.house import House
from tests.fixtures.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def house(s3_environment: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    from tests.fixtures.tiny_models import write_tiny_models

    folder = tmp_path_factory.mktemp("faults")
    write_emoji_tree(folder / "samples")
    write_tiny_models(folder / "models")
    home = Path(tempfile.mkdtemp(prefix="emofaults"))
    house = House(home, folder)
    try:
        yield house
    finally:
        latest = services.Services.load(home)
        services.down(home)
        shutil.rmtree(home, ignore_errors=True)
        left = [member for process in latest.processes() for member in servers.family(process)]
        assert left == [], f"processes were left behind: {left}"


@pytest.fixture(autouse=True)
def a_worker_for_the_next(house: House) -> Iterator[None]:
    """A test that failed must not leave the others without a worker."""
    yield
    assert house.services.worker
    if not servers.running(house.services.worker):
        house.restart_worker()


@pytest.fixture(scope="module")
def built(house: House) -> House:
    if not (house.out / "emobench" / "manifest.json").exists():
        house.finish("build")
    return house


@pytest.fixture(scope="module")
def trained(built: House) -> House:
    if not built.model_is_there():
        built.finish("train")
    return built


@pytest.mark.parametrize("step", ["build", "train", "evaluate"])
def test_a_killed_job_process_is_tried_again_by_the_same_flow_run(
    step: str, request: pytest.FixtureRequest
) -> None:
    house: House = request.getfixturevalue({"build": "house", "train": "built", "evaluate": "trained"}[step])
    run = house.start(step, force=True)
    house.wait_for_line(run, r"Ray job .*: submitted")
    house.wait_for_driver(step).kill()
    ended = house.wait_for_end(run)
    assert ended["state_type"] == "COMPLETED"
    said = "\n".join(house.messages(run))
    assert "killed by signal 9" in said and re.search(r"Ray job .*-a\d+: submitted", said)


def test_a_cancelled_flow_stops_its_job_within_30_s_and_frees_its_cpus(built: House) -> None:
    run = built.start("train", force=True)
    built.wait_for_line(run, r"Ray job .*: submitted")
    built.wait_for_driver("train")
    time.sleep(8)  # until Ray Train holds its workers' CPUs
    began = time.monotonic()
    built.api.set_state(run, "CANCELLING", "test")
    while built.drivers("train"):
        assert time.monotonic() - began < 30
        time.sleep(0.2)
    print(f"the job's process ended {time.monotonic() - began:.1f} s after the cancellation")
    free = (
        "import ray, time; ray.init(log_to_driver=False); t = time.monotonic()\n"
        "while ray.available_resources().get('CPU') != ray.cluster_resources()['CPU']:\n"
        "    assert time.monotonic() - t < 20, ray.available_resources()\n    time.sleep(0.2)"
    )
    result = subprocess.run(
        [sys.executable, "-c", free],
        env=clean_environment(built.services.env),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert built.wait_for_end(run, 60)["state_type"] == "CANCELLED"


def test_a_flow_outlives_the_death_of_its_worker(built: House) -> None:
    run = built.start("train", force=True)
    built.wait_for_line(run, r"Ray job .*: submitted")
    assert built.services.worker
    os.kill(built.services.worker.pid, signal.SIGKILL)
    ended = built.wait_for_end(run)
    assert ended["state_type"] == "COMPLETED"
    built.restart_worker()
    built.finish("train")


def test_a_run_whose_worker_and_process_died_is_crashed_by_the_automation_and_its_job_is_swept(
    built: House,
) -> None:
    deploy.put_automations(built.api, within_s=60)
    run = built.start("train", force=True)
    built.wait_for_line(run, r"Ray job .*: submitted")
    driver = built.wait_for_driver("train")
    driver.suspend()  # so that it does not end by itself while nobody watches
    flows = built.flow_processes()
    assert built.services.worker and flows
    os.kill(built.services.worker.pid, signal.SIGKILL)
    for process in flows:
        process.kill()
    assert built.api.run(run)["state_type"] == "RUNNING"
    ended = built.wait_for_end(run, limit_s=180)
    assert ended["state_type"] == "CRASHED" and "heartbeat" in ended["state"]["message"]
    said = built.orphans()
    assert "is Crashed: stopped" in said
    assert built.drivers("train") == []
    assert "no orphans" in built.orphans()
    built.restart_worker()
    built.finish("train")


def test_the_prefect_server_may_be_killed_and_started_again(built: House) -> None:
    run = built.start("train", force=True)
    built.wait_for_line(run, r"Ray job .*: submitted")
    local = built.services
    assert local.prefect
    os.kill(local.prefect.process.pid, signal.SIGKILL)
    servers.end(local.prefect.process)
    time.sleep(5)
    port = int(re.search(r":(\d+)/", local.prefect.api_url)[1])  # type: ignore[index]
    home = Path(local.prefect.home)
    again = servers.start_prefect_server(home, local.home / "prefect-server.log", port)
    assert again.api_url == local.prefect.api_url
    servers.wait_until(again.healthy, again.process, 60)
    local.prefect = again
    local.save()
    ended = built.wait_for_end(run)
    assert ended["state_type"] in ("COMPLETED", "FAILED", "CRASHED")
    built.restart_worker()
    built.finish("train")
    assert built.model_is_there()


@pytest.mark.parametrize("step", ["build", "train", "evaluate"])
def test_a_ray_node_may_die(step: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    house: House = request.getfixturevalue({"build": "house", "train": "built", "evaluate": "trained"}[step])
    with house.held(leave=0, log=tmp_path / "holder.log"), ExitStack() as stack:
        logs = [tmp_path / "second.log", tmp_path / "third.log"]
        nodes = [stack.enter_context(house.node(log, cpus=2)) for log in logs]
        run = house.start(step, force=True)
        house.wait_for_driver(step)
        for process in servers.family(wait_for_a_busy_node(nodes, 90)):
            process.kill()
        ended = house.wait_for_end(run)
        assert ended["state_type"] in ("COMPLETED", "FAILED")
        if ended["state_type"] == "FAILED":
            house.finish(step)
    assert [member for node in nodes for member in servers.family(node)] == []


def wait_for_a_busy_node(nodes: list[Process], limit_s: float) -> Process:
    """The node on which something of the job runs (not only idle workers)."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        for node in nodes:
            for process in servers.family(node):
                try:
                    name = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if name.startswith("ray::") and "IDLE" not in name:
                    print("killed the node that ran", name)
                    return node
        time.sleep(0.1)
    raise AssertionError("nothing of the job ran on the other nodes: the test would hold over nothing")


def test_a_build_outlives_30_s_without_s3_or_says_so_and_goes_on_later(
    house: House, s3_server: S3Server
) -> None:
    bucket = s3_server.bucket("fault-tests")
    s3_server.upload(house.folder / "samples", f"{bucket}/samples")
    overrides = [f"root={bucket}/samples", f"out={bucket}/emobench"]
    run = house.start("build", overrides=overrides)
    house.wait_for_driver("build")
    time.sleep(6)  # in the middle of reading
    s3_server.faults.down = True
    began = time.monotonic()
    threading.Timer(30, lambda: setattr(s3_server.faults, "down", False)).start()
    ended = house.wait_for_end(run)
    print(f"ended {time.monotonic() - began:.0f} s after S3 went away")
    assert (
        s3_server.requests["GET", 503] + s3_server.requests["HEAD", 503] + s3_server.requests["PUT", 503] > 0
    )
    if ended["state_type"] != "COMPLETED":
        assert ended["state_type"] == "FAILED" and "s3://" in ended["state"]["message"]
        s3_server.calm()
        again = house.wait_for_end(house.start("build", overrides=overrides))
        assert again["state_type"] == "COMPLETED", again["state"]["message"]
    assert storage.exists(f"{bucket}/emobench/manifest.json")
