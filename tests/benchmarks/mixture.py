"""An EmoBench whose rows are as long as those of the shipped recipe `emobench`, without its sources.

Each of the ten sources comes as often as it has rows (LAYOUTS: 285,279 together), with its media, its options and this
project's own instructions. Only the words are drawn: so many as an utterance, tweet or caption of that source has
typically, and earlier turns as many as its adapter shows. Pictures are a few small drawings, clips eight frames.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_build.instructions import ask
from dataset_build.labels import EKMAN_NEUTRAL, INTENTONOMY, MIKELS, MINTREC2_INTENTS, YES_NO
from dataset_build.provenance import sha256_of_bytes, sha256_of_file, sha256_of_json
from dataset_build.schema import SCHEMA_VERSION, MediaRef, Record, Turn, sample_schema
from tests.emollm.train.small_emobench import picture

FRAMES, DRAWINGS = 8, 4
VERSION = 1


class Source(NamedTuple):
    """`words` of the text, `turns` before it at most and `turn_words` of each; `written` words in the picture."""

    name: str
    rows: int
    sub_task: str
    options: Sequence[str]
    clip: bool = False
    words: int = 0
    turns: int = 0
    turn_words: int = 0
    written: int = 0


# How many words are typical is an assumption where LAYOUTS does not say it; a share of 0.2 of the emotion rows is asked
# openly, as in the recipe.
SOURCES = (
    Source("emoset", 118_102, "emo", MIKELS),
    Source("caer_s", 69_982, "emo", EKMAN_NEUTRAL),
    Source("meld", 13_708, "emo", EKMAN_NEUTRAL, clip=True, words=8, turns=5, turn_words=8),
    Source("dfew", 11_697, "emo", EKMAN_NEUTRAL, clip=True),
    Source("intentonomy", 14_455, "intent", tuple(INTENTONOMY.values())),
    Source("mintrec2", 9_304, "intent", MINTREC2_INTENTS, clip=True, words=9, turns=8, turn_words=9),
    Source("hateful_memes", 12_540, "hate", YES_NO, written=12),
    Source("mmsd2", 24_635, "sarcasm", YES_NO, words=16),
    Source("mustard", 690, "sarcasm", YES_NO, clip=True, words=14, turns=4, turn_words=10),
    Source("urfunny", 10_166, "humor", YES_NO, clip=True, words=16, turns=6, turn_words=15),
)
_WORDS = [
    "the",
    "a",
    "you",
    "it",
    "was",
    "really",
    "not",
    "home",
    "today",
    "people",
    "think",
    "what",
    "because",
    "again",
]


def records(rows: int, seed: int = 0) -> list[Record]:
    """Sources in their shares, in random order."""
    rng = random.Random(seed)

    def words(typical: int) -> str:
        count = max(1, round(rng.lognormvariate(0, 0.5) * typical)) if typical else 0
        return " ".join(rng.choices(_WORDS, k=count))

    found = []
    for number in range(rows):
        source = rng.choices(SOURCES, weights=[one.rows for one in SOURCES])[0]
        task = source.sub_task
        if task == "emo":
            task = "emo_o" if rng.random() < 0.2 else "emo_c"
        kinds = ("video", "audio") if source.clip else ("image",)
        turns = rng.randrange(source.turns + 1)
        found.append(
            Record(
                uid=f"{source.name}/train/{number:05d}",
                source=source.name,
                sub_task=task,
                split="train",
                media=tuple(MediaRef(kind, "drawn") for kind in kinds),
                label=rng.choice(source.options),
                native_label="",
                licence_tag="drawn",
                options=() if task == "emo_o" else tuple(source.options),
                text=words(source.words),
                ocr_text=words(source.written),
                context=tuple(Turn("Ann", words(source.turn_words)) for _ in range(turns)),
            )
        )
    return found


def write(folder: Path, rows: int, seed: int = 0) -> Path:
    """Write the EmoBench, unless it is there; returns its folder."""
    out = folder / f"mixture-{VERSION}-{rows}-{seed}"
    if (out / "manifest.json").exists():
        return out
    samples = [_sample(number, record) for number, record in enumerate(records(rows, seed))]
    path = out / "train" / "drawn-00000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=sample_schema()), path)
    files = {f"train/{path.name}": {"sha256": sha256_of_file(str(path)), "rows": rows}}
    manifest = {"schema_version": SCHEMA_VERSION, "digest": sha256_of_json(files), "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def _sample(number: int, record: Record) -> dict[str, Any]:
    kinds = [medium.kind for medium in record.media]
    asked = ask(record, kinds)
    media = [_medium(kind, number % DRAWINGS) for kind in kinds if kind != "audio"]
    row: dict[str, Any] = dict.fromkeys(sample_schema().names)
    return row | {
        "uid": record.uid,
        "source": record.source,
        "sub_task": record.sub_task,
        "split": "train",
        "messages": [{"role": "user", "content": asked.content.replace("<audio>", "")}],
        "options": list(asked.options),
        "answer": record.label,
        "other_answers": [],
        "media": media,
        "group_keys": [("row", str(number))],
        "demonstration": False,
        "provenance": dict.fromkeys(
            ("adapter_version", "media_settings", "template_id", "label_rule", "native_label", "licence_tag"),
            asked.template_id,
        ),
    }


def _medium(kind: str, drawing: int) -> dict[str, Any]:
    """One of a few drawings: what a frozen tower makes of them is computed once."""
    data = [picture("joy", 10 * drawing + frame) for frame in range(FRAMES if kind == "video" else 1)]
    return {
        "kind": kind, "data": data, "sha256": sha256_of_bytes(b"".join(data)), "phash": f"{drawing:016x}",
        "width": 32, "height": 32, "duration_s": None, "fps": None, "sample_rate": None,
    }  # fmt: skip
