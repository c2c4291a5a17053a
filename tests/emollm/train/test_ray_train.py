"""Under Ray Train: a worker is killed, then the driver; errors that a new start would only meet again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from emollm.config import load_recipe
from emollm.train.loop import NonFiniteLossError
from emollm.train.metrics import read_metrics
from emollm.train.resume import METADATA, ONLY_THE_SAME
from tests.emollm.train.ranks import curve, same_bits

ROOT = Path(__file__).resolve().parents[3]


def training_workers(cluster_pid: int) -> list[psutil.Process]:
    """Ray Train's worker processes of this cluster, by the title Ray gives them."""
    found = []
    for process in psutil.Process(cluster_pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "RayTrainWorker" in title:
            found.append(process)
    return found


@pytest.mark.timeout(400)
def test_killed_ray_worker_is_replaced_and_a_second_start_does_nothing(
    ray_cluster, tiny_overrides: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "model"
    command = [
        sys.executable,
        "-m",
        "emollm",
        "train",
        "smoke",
        "--set",
        "tune.epochs=10",
        "--set",
        "tune.batch_size=4",
    ]
    for override in [*tiny_overrides, "checkpoint.every_steps=3", "tune.log_every=5"]:
        command += ["--set", override]
    environment = {**os.environ, **ray_cluster.env, "RAY_ADDRESS": ray_cluster.address}
    log = tmp_path / "train.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 150
        metrics = str(out / "fold-0" / "log" / "metrics.jsonl")
        while len(read_metrics(metrics)) < 5:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        workers = training_workers(ray_cluster.process.pid)
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)
        assert not (out / "fold-0" / "fold.json").exists()
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    said = log.read_text()
    assert "goes on at step" in said
    training = json.loads((out / "training.json").read_text())
    assert [fold["fold"] for fold in training["folds"]] == [0, 1]
    assert all(
        fold["samples_seen"] == 10 * fold["rows"] and fold["world_size"] == 2 for fold in training["folds"]
    )
    assert not (out / "checkpoints").exists()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "nothing changed" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_worker_and_killed_driver_end_with_the_bits_of_a_run_without_ray(
    ray_cluster, twenty_steps: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "model", tmp_path / "train.log"
    overrides = [*twenty_steps, f"out={out}", "tune.log_every=5"]
    command = [sys.executable, "-m", "emollm", "train", "smoke"]
    command += [word for override in overrides for word in ("--set", override)]
    environment = {**os.environ, **ray_cluster.env, "RAY_ADDRESS": ray_cluster.address}

    def begin() -> subprocess.Popen:
        with log.open("a") as stream:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def wait_until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not reached():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)

    def whole(step: int) -> bool:
        return (out / "checkpoints" / "fold-0" / f"step-{step:06d}" / METADATA).exists()

    process = begin()
    try:
        wait_until(lambda: whole(4))
        workers = training_workers(ray_cluster.process.pid)
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)
        wait_until(lambda: "goes on at step" in log.read_text())
        process.kill()
        assert process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while training_workers(ray_cluster.process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not training_workers(ray_cluster.process.pid), "Ray ends the workers of a driver that is gone"
        assert not (out / "training.json").exists()
        process = begin()
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    training = json.loads((out / "training.json").read_text())
    assert [fold["fold"] for fold in training["folds"]] == [0, 1]
    assert all(
        fold["samples_seen"] == 5 * fold["rows"] and fold["world_size"] == 2 for fold in training["folds"]
    )
    assert [line["step"] for line in curve(out)] == list(range(1, 21))
    assert same_bits(out, undisturbed / "two")
    assert not (out / "checkpoints").exists()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "nothing changed" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_an_error_of_the_loop_ends_the_run_at_once_and_as_it_is(
    ray_session, twenty_steps: list[str], tmp_path: Path
) -> None:
    """Weights that have become infinite would be so again after every new start."""
    from emollm.train.ray_worker import train_under_ray

    recipe = load_recipe(
        "smoke", [*twenty_steps, f"out={tmp_path}", "tune.learning_rate=1e30", "workers.count=1"]
    )
    with pytest.raises(NonFiniteLossError, match=r"fold 0, step \d+: the loss is not finite; batch: drawn/"):
        train_under_ray(recipe, "test-digest", [0], ONLY_THE_SAME)
    starts = list((tmp_path / "fold-0" / "log" / "tensorboard").iterdir())
    assert len(starts) == 1, "another start would have written curves of its own"
