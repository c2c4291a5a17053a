"""start: how long a person waits before anything happens.

    python -m tests.benchmarks.start help

- help: seconds until `python -m dataset_build --help` has ended.
- dry-run: seconds of `python -m dataset_build build RECIPE --dry-run` over 10,000 rows.
- flow: seconds of CPU of the process that runs the flow build-emobench: imports, finding that there is something to do,
  submitting the Ray job, following it, checking what it wrote, artifacts. What the servers and the job itself take is
  not counted; `notes.servers_cpu_s` says what the Prefect server took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import build_scale, harness
from tests.benchmarks.harness import Benchmark, Side, Size

ROWS = {"smoke": 200, "normal": 10_000, "large": 100_000}
FLOW_ROWS = 40


def _sides(word: str, name: str):
    def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
        rows = FLOW_ROWS if word == "flow" else ROWS[size]
        argv = [
            sys.executable,
            "-m",
            "tests.benchmarks.start",
            word,
            "--out",
            str(folder),
            "--rows",
            str(rows),
        ]
        return Side(name, argv), []

    return sides


def _timed(argv: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
    """Wall-clock and CPU seconds of a command and the processes that it waited for. Raises CalledProcessError."""
    began = time.perf_counter()
    process = subprocess.Popen(argv, cwd=harness.PROJECT, env=env, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), argv)
    return {"wall_s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime}


def command_help() -> dict[str, Any]:
    found = _timed([sys.executable, "-m", "dataset_build", "--help"])
    return {"seconds": found["wall_s"], "units": 1, "work": {}, "notes": found}


def _recipe(out: Path, rows: int) -> Path:
    root = out / f"tree-{rows}"
    if not (root / "test.json").exists():
        build_scale.write_tree(root, rows, 24)
    path = out / f"recipe-{rows}.yaml"
    path.write_text(yaml.safe_dump(build_scale.recipe(root, out / f"built-{rows}")))
    return path


def dry_run(out: Path, rows: int) -> dict[str, Any]:
    path = _recipe(out, rows)
    found = _timed([sys.executable, "-m", "dataset_build", "build", str(path), "--dry-run"])
    return {"seconds": found["wall_s"], "units": 1, "work": {"rows": rows}, "notes": found}


def flow(out: Path, rows: int) -> dict[str, Any]:
    import psutil

    from infra import servers

    path = _recipe(out, rows)
    shutil.rmtree(out / f"built-{rows}", ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="emobench") as name:
        folder = Path(name)
        ray = servers.start_ray_head(
            folder / "r", folder / "token", folder / "ray.log", cpus=2, object_store_bytes=200 << 20
        )
        prefect = servers.start_prefect_server(
            folder / "home", folder / "server.log", auth_path=folder / "auth"
        )
        try:
            servers.wait_until(ray.healthy, ray.process, limit_s=120)
            servers.wait_until(prefect.healthy, prefect.process, limit_s=120)
            server = psutil.Process(prefect.process.pid)
            before = _cpu(server)
            code = f"from flows.build_emobench import build_emobench as f; assert f({str(path)!r})['how'] == 'submitted'"
            found = _timed([sys.executable, "-c", code], {**os.environ, **ray.env, **prefect.env})
            found["servers_cpu_s"] = _cpu(server) - before
        finally:
            servers.end(prefect.process)
            servers.end(ray.process)
    return {"seconds": found["cpu_s"], "units": 1, "work": {"rows": rows}, "notes": found}


def _cpu(server: Any) -> float:
    family = [server, *server.children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


BENCHMARKS = [
    Benchmark("start-help", "`dataset_build --help`", "s", 0.5, _sides("help", "dataset_build"), better="less"),
    Benchmark(
        "start-dry-run", "`build --dry-run` of 10,000 rows", "s", 3.0, _sides("dry-run", "dataset_build"), better="less"
    ),
    Benchmark(
        "start-flow", "the flow's own share of a build as a Ray job", "s of CPU", 10.0, _sides("flow", "flows"), better="less"
    ),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="One measurement of start; prints its report.")
    parser.add_argument("what", choices=("help", "dry-run", "flow"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    options = parser.parse_args()
    if options.what == "help":
        report = command_help()
    else:
        report = (dry_run if options.what == "dry-run" else flow)(options.out, options.rows)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
