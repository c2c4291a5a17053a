"""EmoSet-118K: which of eight emotions does the picture evoke? (web pictures)

Layout (github.com/JingyuanYY/EmoSet): `train.json`, `val.json`, `test.json` are lists of
`[emotion, image_id, image_path, annotation_path]`, paths relative to the root. The attributes of
`annotation/<emotion>/<id>.json` (scene, object, …) are not read: they are no labels of ours.
Third-party loaders disagree about the order of the labels, so they are mapped by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "emoset"
VERSION = "1"
TITLE = "EmoSet-118K: emotions that web pictures evoke"
LICENCE = "no data licence published (repository code: MIT); research use, pictures of third parties, no redistribution"
CITATION = "Yang et al., EmoSet: A Large-scale Visual Emotion Dataset with Rich Attributes, ICCV 2023"
LIMITS = "Pictures were crawled by emotion keyword, so labels follow how people tag pictures, not how viewers feel."
SIZE = "118,102 pictures"
DOWNLOAD = (
    "EmoSet-118K.zip through the links of github.com/JingyuanYY/EmoSet; root: the folder with train.json, val.json, "
    "test.json and image/"
)
EXPECTED = {"all": 118_102}  # its parts are published as shares only: about 80, 5 and 15 %
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
ASKS: base.Asks = "evoked"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

Options = base.EmotionOptions


def read(root: str, options: base.EmotionOptions) -> Iterator[Record | Reject]:
    paths = {split: readers.find(root, f"{split}.json") for split in ("train", "val", "test")}
    for split, path in paths.items():
        for number, row in enumerate(readers.json_value(root, path, list)):
            yield from _items(path, split, number, row, options)


def _items(
    path: str, split: str, number: int, row: Any, options: base.EmotionOptions
) -> Iterator[Record | Reject]:
    if (
        not isinstance(row, list)
        or len(row) < 3
        or not all(isinstance(cell, str) and cell for cell in row[:3])
    ):
        uid = f"{NAME}/{split}/row-{number}"
        detail = f"{path} entry {number}: expected [emotion, image_id, image path, annotation path], found {row!r:.120}"
        yield from emotion_rows.refused(uid, split, options, "bad_row", detail)
        return
    native, image_id, image = row[:3]
    uid = f"{NAME}/{split}/{image_id}"
    label = labels.emotion(native)
    if label not in labels.MIKELS:
        detail = (
            f"{path} entry {number} ({image_id}): emotion {native!r} is not one of {', '.join(labels.MIKELS)}"
        )
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    record = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(MediaRef("image", image),),
        label=label,
        native_label=native,
        licence_tag="emoset-research",
        options=labels.MIKELS,
        group_keys={"picture": image_id},
    )
    yield from emotion_rows.asked(record, options)
