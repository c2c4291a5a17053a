"""Memory and rate of what a training rank reads as the data set grows: one epoch through the real stream, a run a size.

    python tests/benchmarks/loader_memory.py --rows 2000 20000 --workers 0 2

Writes EmoBenches of pictures of about 20 KB, each with bytes of its own, makes their index and reads an epoch of them
(texts encoded, pictures decoded, no model). Prints the peak resident memory of the rank and of its largest decode worker
(Linux counts shared pages in both), what the rank needs before the first row, and rows/s. Row groups are kept up to
32 MiB, less than the smallest data set, so what is kept is full for every size. `--s3` reads from a local S3 server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
_MIB = 2**20


def write(folder: Path, rows: int, per_file: int = 1024) -> None:
    """A finished EmoBench of noisy pictures; one file's rows are in memory at a time."""
    import io
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from dataset_build.provenance import sha256_of_file, sha256_of_json
    from dataset_build.schema import sample_schema
    from tests.emollm.train.small_emobench import LABELS, sample

    noisy = []
    for seed in range(32):
        stream = io.BytesIO()
        noise = random.Random(seed).randbytes(3 * 144 * 144)
        Image.frombytes("RGB", (144, 144), noise).save(stream, format="JPEG", quality=90)
        noisy.append(stream.getvalue())
    files: dict[str, Any] = {}
    for number, start in enumerate(range(0, rows, per_file)):
        found = []
        for uid in range(start, min(rows, start + per_file)):
            row = sample(uid, fold=None, split="train", label=LABELS[uid % 4], uid=f"drawn/all/{uid:06d}")
            row["media"][0]["data"] = [noisy[uid % len(noisy)] + uid.to_bytes(4, "little")]  # behind its end
            found.append({**row, "group_keys": []})
        path = folder / "train" / f"drawn-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(found, schema=sample_schema()), path, row_group_size=128)
        entry = {"sha256": sha256_of_file(str(path)), "rows": len(found), "bytes": path.stat().st_size}
        files[f"train/{path.name}"] = entry
    manifest = {"schema_version": "1.0", "digest": sha256_of_json(files), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Peak:
    """The largest resident memory of this process and of each below it, sampled ten times a second."""

    def __init__(self) -> None:
        self.own = self.below = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.1):
            self.own = max(self.own, me.memory_info().rss)
            for child in me.children(recursive=True):
                try:
                    self.below = max(self.below, child.memory_info().rss)
                except psutil.Error:
                    continue

    def stop(self) -> tuple[int, int]:
        self._end.set()
        self._thread.join()
        return self.own // _MIB, self.below // _MIB


def read(data: str, out: Path, models: Path, workers: int) -> dict[str, Any]:
    """One epoch of `data` by the only rank of a world of one."""
    import numpy as np

    from emollm.config import load_recipe
    from emollm.data.emobench import read_digest
    from emollm.data.index import make_index
    from emollm.data.plan import plan_training
    from emollm.data.rows import Rows
    from emollm.data.stream import Steps, Stream
    from emollm.train.fold import row_encoder

    loader = f"loader={{decode_workers: {workers}, shuffle_rows: 512, memory_mib: 32, cache_folder: {out / 'cache'}}}"
    foundation = (
        f"foundation.{part}={models / name}"
        for part, name in (("vision", "dinov2-small"), ("language", "smollm2-135m-instruct"))
    )
    recipe = load_recipe("smoke", [f"data={data}", f"out={out}", loader, "tune.batch_size=32", *foundation])
    encoder = row_encoder(recipe)
    before = psutil.Process().memory_info().rss // _MIB
    started = time.monotonic()
    index = make_index(data, str(out), encoder, read_digest(data)).of_fold(0)
    indexed = time.monotonic() - started
    steps = plan_training(index.keys, index.lengths, recipe, places=index.places, world_size=1, rank=0)
    planned = psutil.Process().memory_info().rss // _MIB
    rows = Rows(data, index, encoder, recipe.loader)
    decode = np.array([bool(key) for key in index.media_keys])
    peak = Peak()
    seen, first = 0, 0.0
    began = time.monotonic()
    with Stream(
        Steps(rows, [step.micro_batches for step in steps], decode, index.shortest), recipe.loader
    ) as stream:
        for step in steps:
            next(stream)
            first = first or time.monotonic() - began
            seen += sum(len(batch) for batch in step.micro_batches)
    spent = time.monotonic() - began
    own, below = peak.stop()
    assert seen == len(index)
    return {
        "rows": seen, "decode_workers": workers, "index_s": round(indexed, 1), "start_mib": before, "planned_mib": planned,
        "rank_peak_mib": own, "worker_peak_mib": below, "first_step_s": round(first, 2), "rows_per_s": round(seen / spent),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--s3", action="store_true", help="read from an S3 server on loopback")
    parser.add_argument(
        "--one", nargs=4, metavar=("DATA", "OUT", "MODELS", "WORKERS"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    if chosen.one:
        data, out, models, workers = chosen.one
        print("FOUND " + json.dumps(read(data, Path(out), Path(models), int(workers))))
        return
    from tests.fixtures.s3_server import S3Server
    from tests.fixtures.tiny_models import write_tiny_models

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tiny_models(root / "models")
        server = S3Server() if chosen.s3 else None
        for rows in chosen.rows:
            data: str = str(root / f"data-{rows}")
            write(Path(data), rows)
            size = sum(path.stat().st_size for path in Path(data).rglob("*.parquet"))
            print(f"{rows} rows: {size / _MIB:.0f} MiB of Parquet", flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if server:
                os.environ.update(server.environment)
                environment |= server.environment
                server.start()
                bucket = server.bucket(f"rows-{rows}")
                server.upload(Path(data), f"{bucket}/emobench")
                data = f"{bucket}/emobench"
            for workers in chosen.workers:
                out = root / f"out-{rows}-{workers}"
                arguments = [data, str(out), str(root / "models"), str(workers)]
                command = [sys.executable, __file__, "--one", *arguments]
                said = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                ).stdout
                print(
                    next(line for line in said.splitlines() if line.startswith("FOUND ")).removeprefix(
                        "FOUND "
                    ),
                    flush=True,
                )
        if server:
            server.stop()


if __name__ == "__main__":
    main()
