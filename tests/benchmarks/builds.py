"""What the benchmarks of building share: a timed build in this process, and what its peers are compared by."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SPLITS = ("train", "val", "test")


class Timed(NamedTuple):
    """A build's manifest, its seconds from the recipe to the manifest, and how long Ray and its workers took to start
    before them."""

    manifest: dict[str, Any]
    seconds: float
    ray_start_s: float


def recipe(name: str, out: Path, sources: dict[str, Path], **media: Any) -> dict[str, Any]:
    """A recipe as its YAML file says it."""
    named = [{"name": source, "root": str(root)} for source, root in sources.items()]
    return {"name": name, "out": str(out), "sources": named, "media": media}


def build(settings: dict[str, Any]) -> Timed:
    """A whole build: plan, conversion, duplicates, leakage, splits, writing, reading back, card, manifest.

    Ray is started before the clock, as a cluster is up before a build comes, and so are Ray Data's actors and a worker
    process on every core with the imports of a build, as peers have theirs. Raises AssertionError for a row that did not
    come through: these trees hold none that may be left out.
    """
    import ray.data  # an import, and not the work

    from dataset_build import pipeline, ray_local
    from dataset_build.recipe import BuildRecipe

    read = BuildRecipe.model_validate(settings)
    began = time.perf_counter()
    ray_local.connect()
    cores = int(ray.cluster_resources()["CPU"])
    with tempfile.TemporaryDirectory() as folder:
        ray.get([ray.remote(num_cpus=1)(_import).remote(folder, cores) for _ in range(cores)], timeout=120)
    ray.data.range(1).materialize()  # starts Ray Data's own actors
    ready = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # its own lines, which would stand beside the report
        manifest = pipeline.build(read)
    seconds = time.perf_counter() - ready
    for splits in manifest["sources"].values():
        for counts in splits.values():
            assert counts["kept"] == counts["records"], manifest["sources"]
    return Timed(manifest, seconds, ready - began)


def _import(folder: str, cores: int) -> None:
    """What a worker imports for a build; waits for the others, so that every core gets a worker of its own."""
    import imagehash  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import ray.data  # noqa: F401

    from dataset_build import pipeline  # noqa: F401

    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < cores:
        time.sleep(0.05)


def media_rows(out: Path) -> Iterable[list[dict[str, Any]]]:
    """The media of every sample of a finished build."""
    import pyarrow.parquet as pq

    for split in SPLITS:
        for path in sorted((out / split).glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=["media"]):
                yield from batch["media"].to_pylist()


def work_of(rows: Iterable[tuple[str, int, int]]) -> dict[str, Any]:
    """How many rows, a digest of their sources' sha256 in any order, the sums of their widths and heights."""
    listed = sorted(rows)
    together = hashlib.sha256("\n".join(row[0] for row in listed).encode()).hexdigest()
    widths, heights = sum(row[1] for row in listed), sum(row[2] for row in listed)
    return {"rows": len(listed), "sources": together[:16], "width_px": widths, "height_px": heights}


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))
