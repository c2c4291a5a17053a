"""A small EmoBench on disk: drawn pictures, a video, four folds by emoji, and rows without folds."""

from __future__ import annotations

import io
import json
import math
import random
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from dataset_build.provenance import sha256_of_bytes, sha256_of_file, sha256_of_json
from dataset_build.schema import SCHEMA_VERSION, sample_schema

LABELS = ("joy", "sadness", "anger", "fear")
_COLOURS = {"joy": "gold", "sadness": "navy", "anger": "red", "fear": "purple"}


def picture(label: str, seed: int, side: int = 32) -> bytes:
    """A PNG whose background tells the label."""
    drawing = Image.new("RGB", (side, side), _COLOURS.get(label, "grey"))
    rng = random.Random(seed)
    ImageDraw.Draw(drawing).ellipse(
        [rng.randrange(12), rng.randrange(12), 20 + rng.randrange(10), 30], fill="white"
    )
    stream = io.BytesIO()
    drawing.save(stream, format="PNG")
    return stream.getvalue()


def sound(seconds: float, hz: float = 440.0) -> bytes:
    """A 16 kHz mono WAV file with a tone."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        times = range(round(16_000 * seconds))
        file.writeframes(
            b"".join(
                round(8000 * math.sin(2 * math.pi * hz * t / 16_000)).to_bytes(2, "little", signed=True)
                for t in times
            )
        )
    return stream.getvalue()


def sample(
    number: int,
    *,
    fold: int | None,
    split: str,
    label: str,
    frames: int = 0,
    sound_s: float = 0.0,
    **changes: Any,
) -> dict[str, Any]:
    """One row with the columns of `sample_schema()`; a video may have sound."""
    order = list(LABELS)
    random.Random(number).shuffle(order)
    lettered = " ".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(order))
    data = [picture(label, 10 * number + i) for i in range(max(1, frames))]
    media = {
        "kind": "video" if frames else "image", "data": data, "sha256": sha256_of_bytes(b"".join(data)),
        "phash": f"{number:016x}", "width": 32, "height": 32, "duration_s": None, "fps": None, "sample_rate": None,
    }  # fmt: skip
    heard = [
        {**media, "kind": "audio", "data": [sound(sound_s, 200 + 20 * number)], "width": 0, "height": 0, "sample_rate": 16_000}
    ] if sound_s else []  # fmt: skip
    places = ("<video>" if frames else "<image>") + "<audio>" * len(heard)
    words = "Which emotion does this show?" + " Choose the feeling you see." * (number % 3)
    row: dict[str, Any] = dict.fromkeys(sample_schema().names)
    row |= {
        "uid": f"drawn/all/{number:04d}", "source": "drawn", "sub_task": "emo_c", "split": split, "fold": fold,
        "messages": [
            {"role": "user", "content": f"{words}\nOptions: {lettered}\n{places}"}
        ],
        "options": order, "answer": label, "other_answers": [], "media": [media, *heard],
        "group_keys": {"emoji": str(number)}, "demonstration": False, "n_text_tokens": None,
        "provenance": dict.fromkeys(
            ("adapter_version", "media_settings", "template_id", "label_rule", "native_label", "licence_tag"), "test"
        ),
    }  # fmt: skip
    return row | changes


def read_rows(data: Path | str, *splits: str) -> list[dict[str, Any]]:
    """The rows of these splits, sorted by uid."""
    tables = [
        pq.read_table(path) for split in splits for path in sorted((Path(data) / split).glob("*.parquet"))
    ]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).sort_by("uid").to_pylist()
    return rows


def in_words(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its media; its label is told by a word."""
    words = row["messages"][0]["content"].rpartition("\n")[0]
    return {
        **row, "media": [], "messages": [{"role": "user", "content": f"{words}\nText: \"{_COLOURS[row['answer']]}\""}]
    }  # fmt: skip


def write_emobench(
    folder: Path,
    rows: int = 32,
    folds: int = 2,
    has_media: Callable[[int], bool] = lambda number: True,
    validated: Callable[[int], bool] = lambda number: False,
) -> Path:
    """Write a finished EmoBench; every fifth row is a video of two frames, some with sound; every seventh row has
    no fold. Rows that `has_media` refuses are words alone; `validated` ones have no fold and are of split val."""
    samples = []
    for number in range(rows):
        free = number % 7 == 6 or validated(number)
        fold = None if free else number % folds
        split = ("test" if number % 2 else "train") if free else ("test" if fold == 0 else "train")
        split = "val" if validated(number) else split
        source = "free" if free else "drawn"
        samples.append(
            sample(
                number, fold=fold, split=split, label=LABELS[(number // folds) % len(LABELS)],
                frames=2 if number % 5 == 4 else 0, sound_s=0.7 if number % 15 == 9 else 0.0, source=source, uid=f"{source}/all/{number:04d}",
            )
        )  # fmt: skip
        if not has_media(number):
            samples[-1] = in_words(samples[-1])
    files = {}
    for split in ("train", "val", "test"):
        chosen = [
            {**row, "group_keys": list(row["group_keys"].items())} for row in samples if row["split"] == split
        ]
        if not chosen:
            continue
        path = folder / split / "drawn-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(chosen, schema=sample_schema()), path)
        files[f"{split}/{path.name}"] = {"sha256": sha256_of_file(str(path)), "rows": len(chosen)}
    manifest = {"schema_version": SCHEMA_VERSION, "digest": sha256_of_json(files), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
