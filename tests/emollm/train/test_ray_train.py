"""A Ray Train run with two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from emollm.train.metrics import read_metrics

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
