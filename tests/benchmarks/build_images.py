"""build-images: JPEG files of mixed size → verified, at most 448 px, hashed, with an instruction, as Parquet.

    python -m tests.benchmarks.build_images ours --root TREE --out OUT

Sides:
- ours: `dataset_build.pipeline.build`, everything that a build does (plan, conversion, duplicates, leakage, splits,
  writing, reading back, card, manifest). Ray is up before the clock starts, as on a cluster; `notes.ray_start_s` says
  how long a local one takes.
- datasets: what a user of Hugging Face `datasets` writes: the `Image` feature, `map(num_proc=cores)`, `to_parquet`.
- datasets, reduced decode: the same, by somebody who knows that Pillow decodes a JPEG at reduced scale when asked.
- data-juicer: its executor with its own filter on shapes (which loads each picture) and a mapper that resizes and
  hashes; see `tests/benchmarks/peers/data_juicer/`.
- bare loop: a process pool that does nothing but decode at reduced scale, resize, encode and hash; no table, no file.

Equal work: the same number of rows, the same sha256 of their sources, and widths and heights that agree to a pixel
per row (what is decoded at reduced scale rounds its shorter side once more).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks import builds, harness, pictures
from tests.benchmarks.environments import PEERS, PeerMissing, peer_python
from tests.benchmarks.harness import Benchmark, Side, Size

MAX_SIDE_PX, QUALITY = 448, 92
COUNTS = {"smoke": 24, "normal": 2_000, "large": 10_000}
MEGAPIXELS = {"smoke": (0.2, 1.0), "normal": pictures.MEGAPIXELS, "large": pictures.MEGAPIXELS}


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    root = pictures.tree(harness.CACHE / "pictures", COUNTS[size], megapixels=MEGAPIXELS[size])

    def side(name: str, word: str, python: str = sys.executable, **more: Any) -> Side:
        argv = [python, "-m", "tests.benchmarks.build_images", word, "--root", str(root)]
        return Side(name, [*argv, "--out", str(folder / word)], **more)

    return side("dataset_build", "ours"), [
        side("datasets", "datasets"),
        side("datasets, reduced decode", "datasets-draft"),
        _data_juicer(root, size, folder),
        side("bare loop", "bare"),
    ]


def _data_juicer(root: Path, size: Size, folder: Path) -> Side:
    if size == "smoke":
        return Side("data-juicer", missing="left out at toy size: its environment holds a torch of its own")
    try:
        python = peer_python("data_juicer")
    except PeerMissing as error:
        return Side("data-juicer", missing=str(error))
    rows = folder / "rows.jsonl"
    with rows.open("w") as stream:
        for row in entries(root):
            picture = {"text": "<__dj__image>", "images": [row["path"]]}
            stream.write(
                json.dumps({**picture, **{key: row[key] for key in ("label", "uid", "split")}}) + "\n"
            )
    script = str(PEERS / "data_juicer" / "side.py")
    out = str(folder / "data-juicer")
    return Side(
        "data-juicer", [python, script, "--rows", str(rows), "--out", out, "--cores", str(builds.CORES)]
    )


def check(ours_work: harness.Work, peer_work: harness.Work) -> str | None:
    rows = ours_work["rows"]
    return harness.equal_work(width_px=rows, height_px=rows)(ours_work, peer_work)


def written(pattern: str, folder: Path) -> Iterable[tuple[str, int, int]]:
    """Rows of a peer's Parquet files."""
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob(pattern)):
        table = pq.read_table(path, columns=["sha256", "width", "height"])
        yield from zip(*(table[name].to_pylist() for name in ("sha256", "width", "height")))


def ours(root: Path, out: Path) -> dict[str, Any]:
    made = builds.build(
        builds.recipe("bench-images", out, {"emoset": root}, max_side_px=MAX_SIDE_PX, jpeg_quality=QUALITY)
    )
    work = builds.work_of(
        (media["sha256"], media["width"], media["height"]) for (media,) in builds.media_rows(out)
    )
    return {
        "seconds": made.seconds,
        "units": work["rows"],
        "work": work,
        "notes": {
            "ray_start_s": made.ray_start_s,
            "bytes": builds.size_of(out),
            "digest": made.manifest["digest"],
            "versions": builds.versions("ray", "pillow"),
        },
    }


def entries(root: Path) -> list[dict[str, str]]:
    """The annotation as plain rows, for the peers."""
    return [
        {"path": str(root / path), "label": emotion, "uid": name, "split": split}
        for split in pictures.SPLITS
        for emotion, name, path, _ in json.loads((root / f"{split}.json").read_text())
    ]


def instruction(label: str) -> dict[str, Any]:
    options = list(pictures.EMOTIONS)
    asked = f"<image>\nWhich emotion does this picture evoke? Choose one of: {', '.join(options)}."
    return {"messages": [{"role": "user", "content": asked}], "options": options, "answer": label}


def stored(picture: Any, data: bytes) -> dict[str, Any]:
    """An RGB picture scaled down, encoded and hashed; the other sides do to it what a build does."""
    import imagehash
    from PIL import Image

    if max(picture.size) > MAX_SIDE_PX:
        picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return {
        "data": buffer.getvalue(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": str(imagehash.phash(picture)),
        "width": picture.width,
        "height": picture.height,
    }


def reduced(data: bytes) -> Any:
    """The picture as RGB, upright, decoded at the smallest scale that is still large enough."""
    from PIL import Image, ImageOps

    opened = Image.open(io.BytesIO(data))
    scale = MAX_SIDE_PX / max(opened.size)
    if scale < 1:
        opened.draft("RGB", (round(opened.width * scale), round(opened.height * scale)))
    opened.load()
    return ImageOps.exif_transpose(opened).convert("RGB")


def convert_feature(row: dict[str, Any]) -> dict[str, Any]:
    """For `datasets` with its `Image` feature: the picture comes decoded; the file's bytes are read for its digest."""
    data = Path(row["path"]).read_bytes()
    return {**stored(row["image"].convert("RGB"), data), **instruction(row["label"])}


def convert_reduced(row: dict[str, Any]) -> dict[str, Any]:
    data = Path(row["path"]).read_bytes()
    return {**stored(reduced(data), data), **instruction(row["label"])}


def huggingface(root: Path, out: Path, feature: bool) -> dict[str, Any]:
    import datasets
    import imagehash  # noqa: F401  before the processes are forked

    datasets.disable_progress_bars()
    datasets.disable_caching()

    cache = out / "cache"
    cache.mkdir(parents=True)
    began = time.perf_counter()
    rows = entries(root)
    table = datasets.Dataset.from_list(rows)
    if feature:
        table = table.add_column("image", [row["path"] for row in rows]).cast_column(
            "image", datasets.Image()
        )
    table = table.map(
        convert_feature if feature else convert_reduced,
        remove_columns=["image"] if feature else [],
        num_proc=builds.CORES,
        cache_file_name=str(cache / "mapped.arrow"),
        writer_batch_size=200,
    )
    for split in pictures.SPLITS:
        chosen = table.select([place for place, name in enumerate(table["split"]) if name == split])
        chosen.to_parquet(str(out / f"{split}.parquet"))
    seconds = time.perf_counter() - began
    work = builds.work_of(written("*.parquet", out))
    return {
        "seconds": seconds,
        "units": work["rows"],
        "work": work,
        "notes": {"versions": builds.versions("datasets", "pillow"), "bytes": builds.size_of(out)},
    }


def bare_one(path: str) -> tuple[str, int, int]:
    data = Path(path).read_bytes()
    row = stored(reduced(data), data)
    return row["sha256"], row["width"], row["height"]


def bare(root: Path, out: Path) -> dict[str, Any]:
    import multiprocessing

    import imagehash  # noqa: F401  before the processes are forked

    began = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(builds.CORES) as pool:
        rows = list(pool.imap_unordered(bare_one, [row["path"] for row in entries(root)], chunksize=4))
    seconds = time.perf_counter() - began
    work = builds.work_of(rows)
    return {
        "seconds": seconds,
        "units": work["rows"],
        "work": work,
        "notes": {"versions": builds.versions("pillow")},
    }


BENCHMARKS = [
    Benchmark(
        name="build-images",
        title="JPEG files of 0.3 to 12 Mpx → verified, at most 448 px, hashed, with an instruction, in Parquet",
        unit="pictures/s",
        target={"datasets": 2.0, "data-juicer": 2.0, "bare loop": 0.85},
        sides=sides,
        check=check,
    )
]


def main() -> int:
    parser = argparse.ArgumentParser(description="One side of build-images; prints its report.")
    parser.add_argument("side", choices=("ours", "datasets", "datasets-draft", "bare"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    if options.side == "ours":
        report = ours(options.root, options.out)
    elif options.side == "bare":
        report = bare(options.root, options.out)
    else:
        report = huggingface(options.root, options.out, options.side == "datasets")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
