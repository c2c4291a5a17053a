"""build-videos: clips of 4 s → 8 frames and 16 kHz mono sound each, in Parquet.

    python -m tests.benchmarks.build_videos ours --root TREE --out OUT

Ours is a whole build, with all that `tests.benchmarks.builds.build` lists. The peer is what a user writes with a
process pool: ffmpeg once per output, that is eight times with `-ss` for the frames and once for the sound of each clip,
then one Parquet file. It neither checks nor hashes anything but what it writes.

Equal work: the same clips, as many frames of each in the same size, and sound of the same length to 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import builds, harness
from tests.benchmarks.harness import Benchmark, Side, Size

FRAMES, SIDE_PX, SECONDS = 8, 224, 4
COUNTS = {"smoke": 4, "normal": 60, "large": 300}
EMOTIONS = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
FOLDERS = {"train": "train", "val": "validation", "test": "test"}
# Raise it when the clips change, so that no cached ones are used.
VERSION = 1


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    root = clips(harness.CACHE / "clips", COUNTS[size])

    def side(name: str, word: str) -> Side:
        argv = [sys.executable, "-m", "tests.benchmarks.build_videos", word, "--root", str(root)]
        return Side(name, [*argv, "--out", str(folder / word)])

    return side("dataset_build", "ours"), [side("ffmpeg per output", "pool")]


def clips(folder: Path, count: int) -> Path:
    """The root of a tree in CAER's layout, made where it is not there yet: H.264 with MP3 sound, as encoders' defaults
    are (a key frame every 250 pictures), 712 × 400 at 25 pictures per second, with a little noise."""
    root = folder / f"caer-{VERSION}-{count}"
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    draw = random.Random(count)
    jobs = []
    for number in range(count):
        split = (
            draw.choices(list(FOLDERS), weights=(0.7, 0.1, 0.2))[0] if number > 2 else list(FOLDERS)[number]
        )
        path = root / FOLDERS[split] / EMOTIONS[number % len(EMOTIONS)] / f"{number:04d}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        jobs.append((path, number))
    with multiprocessing.get_context("spawn").Pool(builds.CORES) as pool:
        pool.starmap(_clip, jobs)
    (root / "complete").touch()
    return root


def _clip(path: Path, number: int) -> None:
    """Moving shapes whose colours and tone differ from clip to clip."""
    picture = (
        f"testsrc2=size=712x400:rate=25,hue=h={number * 47 % 360},rotate={number}*PI/97,noise=alls=4:allf=t"
    )
    sound = f"sine=frequency={200 + 13 * number}:sample_rate=44100"
    _ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-t", str(SECONDS), "-c:v", "libx264",
            "-pix_fmt", "yuv420p", "-threads", "1", "-c:a", "libmp3lame", str(path))  # fmt: skip


def _ffmpeg(*options: str) -> None:
    from dataset_build.decoder import ffmpeg_binary

    subprocess.run([ffmpeg_binary(), "-y", "-nostdin", "-loglevel", "error", *options], check=True)


def ours(root: Path, out: Path) -> dict[str, Any]:
    made = builds.build(
        builds.recipe("bench-videos", out, {"caer": root}, video_frames=FRAMES, frame_side_px=SIDE_PX)
    )
    work: dict[str, Any] = builds.work_of(
        (media[0]["sha256"], media[0]["width"], media[0]["height"]) for media in builds.media_rows(out)
    )
    work["frames"] = sum(len(media[0]["data"]) for media in builds.media_rows(out))
    work["sound_s"] = sum(media[1]["duration_s"] for media in builds.media_rows(out))
    return {
        "seconds": made.seconds,
        "units": work["rows"],
        "work": work,
        "notes": {
            "ray_start_s": made.ray_start_s,
            "digest": made.manifest["digest"],
            "versions": builds.versions("ray", "imageio-ffmpeg"),
        },
    }


def pool(root: Path, out: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True)
    paths = sorted(root.rglob("*.avi"))
    with multiprocessing.get_context("fork").Pool(builds.CORES) as workers:
        began = time.perf_counter()
        rows = workers.starmap(_outputs, [(path, out) for path in paths], chunksize=1)
        pq.write_table(pa.Table.from_pylist(rows), out / "all.parquet", compression="zstd")
        seconds = time.perf_counter() - began
    work: dict[str, Any] = builds.work_of((row["sha256"], row["width"], row["height"]) for row in rows)
    work["frames"] = sum(len(row["frames"]) for row in rows)
    work["sound_s"] = sum((len(row["sound"]) - 44) / 32_000 for row in rows)
    return {
        "seconds": seconds,
        "units": work["rows"],
        "work": work,
        "notes": {"versions": builds.versions("imageio-ffmpeg")},
    }


def _outputs(path: Path, out: Path) -> dict[str, Any]:
    import hashlib

    from PIL import Image

    frames = []
    for number in range(FRAMES):
        frame = out / f"{path.stem}-{number}.jpg"
        at = (2 * number + 1) * SECONDS / (2 * FRAMES)
        _ffmpeg("-threads", "1", "-ss", f"{at:.3f}", "-i", str(path), "-frames:v", "1", "-vf",
                f"scale={SIDE_PX}:-2:flags=bicubic", "-q:v", "2", str(frame))  # fmt: skip
        frames.append(frame.read_bytes())
    sound = out / f"{path.stem}.wav"
    _ffmpeg(
        "-i",
        str(path),
        "-vn",
        "-ac",
        "1",
        "-ar",
        "16000",
        "-flags",
        "bitexact",
        "-fflags",
        "bitexact",
        str(sound),
    )
    width, height = Image.open(out / f"{path.stem}-0.jpg").size
    return {
        "path": path.name,
        "label": path.parent.name,
        "frames": frames,
        "sound": sound.read_bytes(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "width": width,
        "height": height,
    }


def check(ours_work: harness.Work, peer_work: harness.Work) -> str | None:
    return harness.equal_work(sound_s=0.1 * ours_work["rows"])(ours_work, peer_work)


BENCHMARKS = [
    Benchmark(
        name="build-videos",
        title="clips of 4 s → 8 frames and 16 kHz sound each, in Parquet",
        unit="clips/s",
        target=1.5,
        sides=sides,
        check=check,
    )
]


def main() -> int:
    parser = argparse.ArgumentParser(description="One side of build-videos; prints its report.")
    parser.add_argument("side", choices=("ours", "pool"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    print(json.dumps((ours if options.side == "ours" else pool)(options.root, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
