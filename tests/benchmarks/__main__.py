"""Run the benchmarks: `python -m tests.benchmarks [NAME …]`; see docs/benchmarks.md for what each number means."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from tests.benchmarks import harness

# Name on the command line → module with a list BENCHMARKS. The order is the order of a whole run.
MODULES = {
    "start": "tests.benchmarks.start",
    "build-images": "tests.benchmarks.build_images",
    "build-videos": "tests.benchmarks.build_videos",
    "rebuild": "tests.benchmarks.rebuild",
    "build-scale": "tests.benchmarks.build_scale",
    "train-step": "tests.benchmarks.train_step",
    "train-overhead": "tests.benchmarks.train_overhead",
    "checkpoint": "tests.benchmarks.checkpoint",
    "mvp-cost": "tests.benchmarks.mvp_cost",
    "evaluate": "tests.benchmarks.evaluate",
}


def load(name: str) -> list[harness.Benchmark]:
    return list(importlib.import_module(MODULES[name]).BENCHMARKS)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Ours beside its peers, on the same work, in the same run.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones (default all): {', '.join(MODULES)}"
    )
    parser.add_argument("--size", choices=("smoke", "normal", "large"), default="normal")
    parser.add_argument(
        "--pairs", type=int, help="pairs after the warm-up (default 5; 1 for smoke, which has no warm-up)"
    )
    parser.add_argument(
        "--out", default="benchmarks.json", help="records are appended here (default benchmarks.json)"
    )
    parser.add_argument(
        "--peer", action="append", metavar="PEER", help="run beside this peer alone (may be given again)"
    )
    parser.add_argument("--no-peers", action="store_true", help="only our own side")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    options = parser.parse_args()
    for name in options.names:
        if name not in MODULES:
            parser.error(f"no benchmark is called {name!r}; there are {', '.join(MODULES)}")
    if options.pairs is not None and options.pairs < 1:
        parser.error("--pairs wants at least 1")
    # A side has a session of its own: ended from outside, this process has to end it, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.names or list(MODULES)
    if options.list:
        for name in names:
            for benchmark in load(name):
                print(f"{name:<16}{benchmark.name:<24}{benchmark.title}")
        return 0
    pairs = options.pairs or (1 if options.size == "smoke" else 5)
    out = None if options.size == "smoke" else Path(options.out)
    only = [] if options.no_peers else options.peer
    records, failed = [], []
    for name in names:
        for benchmark in load(name):
            try:
                records += harness.run(benchmark, options.size, pairs, out, only)
            except harness.BenchmarkError as error:
                failed.append(benchmark.name)
                print(f"{benchmark.name} FAILED: {error}", file=sys.stderr, flush=True)
    print(harness.table(records))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
