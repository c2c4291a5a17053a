"""build-scale: memory and time per row of a build as the number of rows grows, over generated small pictures.

    python -m tests.benchmarks.build_scale --rows 10000 --folder FOLDER

Each build runs as a process of its own with a local Ray; beside it the proportional set size (PSS: shared pages divided
among those who share them) of that process and all its descendants is sampled, so driver, workers, Ray's own daemons and
its object store all count. The larger build is held against the smaller one: cost of a row, and peak of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from tests.benchmarks.harness import PROJECT, Benchmark, Measure, Side, Size

# The smaller builds, then the one that is held against each of them.
ROWS: dict[Size, tuple[int, ...]] = {
    "smoke": (100, 300),
    "normal": (5_000, 20_000),
    "large": (10_000, 100_000, 287_000),
}
EMOTIONS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}


def write_tree(root: Path, rows: int, side_px: int) -> None:
    """An EmoSet tree of small JPEG pictures of random blocks, each with bytes and a hash of its own."""
    from PIL import Image

    draw = random.Random(rows)
    lists: dict[str, list[list[str]]] = {split: [] for split in SHARES}
    for number in range(rows):
        emotion = EMOTIONS[number % len(EMOTIONS)]
        split = draw.choices(list(SHARES), weights=list(SHARES.values()))[0]
        name = f"{emotion}_{number:06d}"
        path = root / "image" / emotion / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = Image.frombytes("RGB", (8, 8), draw.randbytes(8 * 8 * 3))
        blocks.resize((side_px, side_px), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)
        lists[split].append(
            [emotion, name, f"image/{emotion}/{name}.jpg", f"annotation/{emotion}/{name}.json"]
        )
    for split, entries in lists.items():
        (root / f"{split}.json").write_text(json.dumps(entries))


def recipe(root: Path, out: Path) -> dict[str, object]:
    return {
        "name": "scale",
        "out": str(out),
        "sources": [{"name": "emoset", "root": str(root)}],
        "media": {"max_side_px": 64},
    }


def memory_of_tree(process: psutil.Process) -> dict[str, int]:
    """PSS by kind of process, in bytes; processes that end while they are read count nothing."""
    found = {"driver": 0, "workers": 0, "ray": 0}
    for member in [process, *process.children(recursive=True)]:
        try:
            name = " ".join(member.cmdline()[:1])
            kind = "driver" if member.pid == process.pid else "workers" if name.startswith("ray::") else "ray"
            found[kind] += member.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return found


def build(path: Path, every_s: float, workers: int) -> dict[str, object]:
    """Run one build to its end, sampling its process tree. Raises CalledProcessError where it fails."""
    started = time.monotonic()
    command = [sys.executable, "-m", "dataset_build", "build", str(path), "--workers", str(workers)]
    process = subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=sys.stderr
    )
    tree, peak, parts, cpu_s = psutil.Process(process.pid), 0, {}, {}
    while process.poll() is None:
        now = memory_of_tree(tree)
        if sum(now.values()) > peak:
            peak, parts = sum(now.values()), now
        for member in _members(tree):
            cpu_s[member.pid] = _cpu_seconds(member, cpu_s.get(member.pid, 0.0))
        time.sleep(every_s)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "seconds": time.monotonic() - started,
        "peak_bytes": peak,
        "peak_parts": parts,
        "cpu_seconds": sum(cpu_s.values()),
    }


def _members(tree: psutil.Process) -> list[psutil.Process]:
    try:
        return [tree, *tree.children(recursive=True)]
    except psutil.Error:
        return []


def _cpu_seconds(member: psutil.Process, before: float) -> float:
    try:
        times = member.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return before


def report(rows: int, folder: Path, side_px: int, workers: int, every_s: float) -> dict[str, object]:
    """One build from nothing. Raises AssertionError where rows are lost."""
    root, out = folder / f"tree-{rows}", folder / f"out-{rows}"
    if not (root / "test.json").exists():
        write_tree(root, rows, side_px)
    shutil.rmtree(out, ignore_errors=True)
    path = folder / f"recipe-{rows}.yaml"
    path.write_text(yaml.safe_dump(recipe(root, out)))
    found = build(path, every_s, workers)
    splits = json.loads((out / "manifest.json").read_text())["sources"]["emoset"].values()
    lost = rows - sum(counts["kept"] for counts in splits)
    shutil.rmtree(out)
    return {"seconds": found.pop("seconds"), "units": rows, "work": {"rows_lost": lost}, "notes": found}


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    counts = ROWS[size]

    def side(rows: int) -> Side:
        argv = [sys.executable, "-m", "tests.benchmarks.build_scale", "--rows", str(rows), "--folder"]
        return Side(f"{rows:,} rows", [*argv, str(folder)])

    return side(counts[-1]), [side(rows) for rows in counts[:-1]]


BENCHMARKS = [
    Benchmark(
        name="build-scale",
        title="a build of more rows against one of fewer: time per row, and peak of memory",
        unit="s per row",
        target=1.15,
        sides=sides,
        better="less",
        also=(
            Measure(
                "build-scale-memory", "GiB at the peak", 1.25, lambda run: run["notes"]["peak_bytes"] / 2**30
            ),
        ),
    )
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--side-px", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every-s", type=float, default=0.5, help="pause between two samples of memory")
    parser.add_argument("--folder", type=Path, required=True, help="where the tree and the build are made")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    made = report(options.rows, options.folder, options.side_px, options.workers, options.every_s)
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
