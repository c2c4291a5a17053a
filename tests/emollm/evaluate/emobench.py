"""A small EmoBench of drawn faces, gestures and text cards, laid out as DESIGN.md says, for tests of the evaluation."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS
from dataset_build.provenance import sha256_of_bytes, sha256_of_file, sha256_of_json
from dataset_build.schema import sample_schema

FOLDS = 3
SOURCE_FACTS = {
    "faces": {"group_key": "emoji"},
    "clips": {"group_key": "emoji"},
    "gestures": {"group_key": "gesture"},
    "jokes": {"group_key": "text"},
}
COLOURS = ("gold", "pink", "skyblue", "tomato", "plum", "orange", "yellowgreen", "silver")


def face(label: str, number: int, side: int = 48) -> bytes:
    """A PNG of a disc in the label's colour, with a mouth that depends on the number."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((3, 3, side - 3, side - 3), fill=COLOURS[EMOJI_FEELINGS.index(label)])
    draw.arc(
        (side // 4, side // 3, 3 * side // 4, side - 8), 0, 100 + number * 7 % 150, fill="black", width=3
    )
    draw.point([(number % side, 1), (number // side, 2)], fill="navy")
    return _png(picture)


def card(text: str) -> bytes:
    picture = Image.new("RGB", (192, 64), "white")
    ImageDraw.Draw(picture).multiline_text((6, 6), text, fill="black")
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def sample(uid: str, sub_task: str, split: str, fold: int | None, options: tuple[str, ...], answer: str,
           frames: list[bytes], group: tuple[str, str], demonstration: bool = False) -> dict[str, Any]:  # fmt: skip
    kind = "video" if len(frames) > 1 else "image"
    shuffled = sorted(options, key=lambda option: sha256_of_bytes(f"{uid}/{option}".encode()))
    question = "What does this show?" if options else "Name the feeling in one word."
    shown = (
        "\nOptions: " + " ".join(f"({'ABCDEFGH'[n]}) {option}" for n, option in enumerate(shuffled))
        if options
        else ""
    )
    medium = {
        "kind": kind, "data": frames, "sha256": sha256_of_bytes(b"".join(frames)), "phash": "0" * 16, "width": 48, "height": 48,
        "duration_s": None, "fps": None, "sample_rate": None,
    }  # fmt: skip
    return {
        "uid": uid, "source": uid.split("/")[0], "sub_task": sub_task, "split": split, "fold": fold,
        "messages": [{"role": "user", "content": f"{question}{shown}\n<{kind}>"}],
        "options": shuffled, "answer": answer, "other_answers": [], "media": [medium], "group_keys": [group, ("vendor", uid.split("/")[2][:2])],
        "demonstration": demonstration, "n_text_tokens": None,
        "provenance": {
            "adapter_version": "1", "media_settings": "", "template_id": "t", "label_rule": "official",
            "native_label": answer, "licence_tag": "CC0",
        },
    }  # fmt: skip


def make_rows(emoji: int = 24) -> list[dict[str, Any]]:
    """Per emoji two drawings and a clip; gestures, and cards of two kinds. Folds go by emoji."""
    generator = random.Random(0)
    rows = []
    for number in range(emoji):
        label, fold, group = EMOJI_FEELINGS[number % 8], number // 8 % FOLDS, ("emoji", f"1f{number:03x}")
        split = "test" if fold == 0 else "train"
        for vendor in range(2):
            picture, code = face(label, number * 3 + vendor), f"v{vendor}-{number:03d}"
            rows.append(
                sample(
                    f"faces/all/{code}:emo_c", "emo_c", split, fold, EMOJI_FEELINGS, label, [picture], group
                )
            )
            rows.append(sample(f"faces/all/{code}:emo_o", "emo_o", split, fold, (), label, [picture], group))
        if number % 4 == 0:
            frames = [face(label, number * 3 + 40 + shift) for shift in range(4)]
            rows.append(
                sample(f"clips/all/c{number:03d}", "emo_c", split, fold, EMOJI_FEELINGS, label, frames, group)
            )
    for number in range(32):
        intent, split = GESTURE_INTENTS[number % 8], ("train", "train", "test", "val")[number // 8]
        picture = face(EMOJI_FEELINGS[number % 8], 300 + number)
        rows.append(sample(f"gestures/all/g{number:03d}", "intent", split, None, GESTURE_INTENTS, intent, [picture],
                           ("gesture", f"g{number % 16}")))  # fmt: skip
    for number in range(24):
        answer, split = ("Yes", "No")[number % 2], "train" if number < 12 else "test"
        text = (
            f"{'Why?! ' * generator.randrange(1, 4)}"
            if answer == "Yes"
            else "A plain sentence <b>without</b> marks"
        )
        rows.append(sample(f"jokes/all/j{number:03d}", "humor", split, None, ("Yes", "No"), answer,
                           [card(f"{text}\n{number}")], ("text", f"t{number}"), demonstration=True))  # fmt: skip
    return rows


def write_emobench(folder: Path, rows: list[dict[str, Any]] | None = None, rows_per_group: int = 16) -> Path:
    """Write OUT/{split}/<source>-00000.parquet and manifest.json."""
    rows = make_rows() if rows is None else rows
    files: dict[str, Any] = {}
    for split, source in sorted({(row["split"], row["source"]) for row in rows}):
        some = [row for row in rows if (row["split"], row["source"]) == (split, source)]
        name = f"{split}/{source}-00000.parquet"
        (folder / split).mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(some, sample_schema()), folder / name, row_group_size=rows_per_group
        )
        files[name] = {
            "sha256": sha256_of_file(str(folder / name)), "rows": len(some), "bytes": (folder / name).stat().st_size,
        }  # fmt: skip
    manifest = {
        "schema_version": "1.0",
        "digest": sha256_of_json(files),
        "files": files,
        "sources": {},
        "source_facts": SOURCE_FACTS,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
