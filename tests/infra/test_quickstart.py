"""The quickstart command as a user meets it: interrupted, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra import quickstart, servers, services
from infra.memory import PeakMemory
from infra.prefect_api import PrefectApi
from tests.fixtures.emoji_tree import smoke_overrides, write_emoji_tree


def test_peak_memory_sees_a_child_that_has_gone_again() -> None:
    import psutil

    me = psutil.Process()
    with PeakMemory(lambda: [me, *me.children()], every_s=0.1) as memory:
        before = memory.peak_bytes
        code = "import time; block = bytearray(200_000_000); block[::4096] = b'x' * len(block[::4096]); time.sleep(2)"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert memory.peak_bytes - before > 190_000_000
    assert memory.peak_bytes < psutil.virtual_memory().total


def test_prefects_own_lines_are_left_out_and_errors_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    quickstart._show(20, "Deployment step 'set_working_directory' completed successfully")
    quickstart._show(20, "(convert pid=4711, ip=127.0.0.1) converting: 24/188 rows, 13 %")
    quickstart._show(20, "(convert pid=4711)\n(convert pid=4711, ip=127.0.0.1) \n\n")
    quickstart._show(
        40, "job build-1 failed:\n  error: no such folder\nTraceback (most recent call last):\n  File x"
    )
    said = capsys.readouterr().out
    assert said == "  converting: 24/188 rows, 13 %\n  ! job build-1 failed:\n  !   error: no such folder\n"


class SilentRun(PrefectApi):
    """A run that says nothing and stays open, as after the death of what ran it."""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return {"state_type": "RUNNING", "state_name": "Running"} if method == "GET" else []


def test_a_run_that_nobody_runs_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "_SILENCE_S", 0.5)
    looks = iter([True, False])
    with pytest.raises(quickstart.QuickstartFailed, match="run the same command again"):
        quickstart._follow(SilentRun("http://127.0.0.1:9/api"), "run", lambda: next(looks))
    assert list(looks) == []


def test_a_worker_that_died_runs_nothing_unless_a_flow_of_it_is_left(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    worker = servers.start("worker", sleeper, servers.clean_environment({}), tmp_path / "log", "mark-worker")
    flow = servers.start("flow", sleeper, servers.clean_environment({}), tmp_path / "log", "mark-worker")
    local = services.Services(tmp_path, worker=worker)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while servers.running(worker) and time.monotonic() < until:
            time.sleep(0.05)
        assert quickstart._anyone_runs_it(local)
        assert services._end_worker(local) == 1  # the flow that was left
        assert not servers.running(flow)
        assert local.worker is None and services.Services.load(tmp_path).worker is None
        assert not quickstart._anyone_runs_it(local)
    finally:
        servers.end(flow, patience_s=2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_quickstart_goes_on_and_leaves_nothing_running(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Stopped while the training runs; the second start skips the build, finishes, and stops its services."""
    from tests.fixtures.tiny_models import LANGUAGE, VISION, write_tiny_models

    write_emoji_tree(tmp_path / "samples")
    write_tiny_models(tmp_path / "models")
    home, out = tmp_path / "services", tmp_path / "runs"
    settings = {
        "--set-build": smoke_overrides(tmp_path / "samples", out / "emobench"),
        "--set-train": [
            f"data={out / 'emobench'}",
            f"out={out / 'model'}",
            f"foundation.vision={tmp_path / 'models' / VISION}",
            f"foundation.language={tmp_path / 'models' / LANGUAGE}",
        ],
    }
    command = [
        sys.executable,
        "-m",
        "infra.quickstart",
        "--recipe",
        "smoke",
        "--no-samples",
        "--home",
        str(home),
    ]
    command += [word for option, values in settings.items() for value in values for word in (option, value)]
    try:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        assert any("Ray job train-emollm-smoke" in line for line in first.stdout)
        started = services.Services.load(home).processes()
        time.sleep(2)
        first.send_signal(how)
        first.stdout.read()
        code = first.wait(timeout=120)
        if how == signal.SIGINT:
            assert code == 130
            assert [member for process in started for member in servers.family(process)] == []
        built = (out / "emobench" / "manifest.json").stat().st_mtime_ns

        second = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert second.returncode == 0, second.stdout + second.stderr
        assert (out / "emobench" / "manifest.json").stat().st_mtime_ns == built
        assert json.loads((out / "registry" / "champion.json").read_text())["decision"] == "promoted"
        assert [member for process in started for member in servers.family(process)] == []
    finally:
        services.down(home)
