"""RAF-DB, basic emotions: which of seven emotions does the face show? (web pictures)

Layout: `basic/EmoLabel/list_patition_label.txt` (spelled so), lines `train_NNNNN.jpg k` or `test_NNNN.jpg k`, and
`basic/Image/aligned/train_NNNNN_aligned.jpg` (the face, 100 × 100) or `basic/Image/original/train_NNNNN.jpg` (the
picture it is from). The list names the picture without `_aligned`. Codes: 1 surprise, 2 fear, 3 disgust, 4 happiness,
5 sadness, 6 anger, 7 neutral.

There is no validation split and many authors select on the test split; here val is carved from train. The compound
emotions of the set are not read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Literal

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "raf_db"
VERSION = "1"
TITLE = "RAF-DB (basic): seven emotions in faces from the web"
LICENCE = "non-commercial research on request, with a password; no redistribution"
CITATION = (
    "Li et al., Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild, "
    "CVPR 2017"
)
LIMITS = (
    "Faces were found by emotion keyword on the web; the happy ones are fifteen times as many as the fearful ones. "
    "Who is shown is not published, so a person may be in train and test."
)
SIZE = "15,339 faces: 12,271 train, 3,068 test"
DOWNLOAD = "basic.zip from the authors on request; root: the folder with basic/, or the one with EmoLabel/ and Image/"
EXPECTED = {"train": 12_271, "test": 3_068}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

CODES = {1: "surprise", 2: "fear", 3: "disgust", 4: "joy", 5: "sadness", 6: "anger", 7: "neutral"}


class Options(base.EmotionOptions):
    """`pictures`: the aligned face, or the original picture, which may show more than one face."""

    pictures: Literal["aligned", "original"] = "aligned"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    name = "EmoLabel/list_patition_label.txt"
    path = readers.find(root, f"basic/{name}", name)
    folder = posixpath.join(path.removesuffix(name), "Image", options.pictures)
    for number, line in enumerate(readers.text(root, path).split("\n"), 1):
        if line.strip():
            yield from _items(f"{path} line {number}", folder, number, line.split(), options)


def _items(
    where: str, folder: str, number: int, cells: list[str], options: Options
) -> Iterator[Record | Reject]:
    split = cells[0].split("_")[0]
    if len(cells) != 2 or split not in ("train", "test"):
        detail = (
            f"{where}: expected train_NNNNN.jpg or test_NNNN.jpg and a code, found {' '.join(cells)[:120]!r}"
        )
        yield from emotion_rows.refused(f"{NAME}/all/line-{number}", None, options, "bad_row", detail)
        return
    stem, suffix = posixpath.splitext(cells[0])
    uid = f"{NAME}/{split}/{stem}"
    label = CODES.get(readers.whole(cells[1]) or 0)
    if label is None:
        detail = f"{where} ({stem}): code {cells[1][:40]!r} is not one of 1 to 7"
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    aligned = "_aligned" if options.pictures == "aligned" and not stem.endswith("_aligned") else ""
    record = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(MediaRef("image", f"{folder}/{stem}{aligned}{suffix}"),),
        label=label,
        native_label=cells[1],
        licence_tag="raf-db-noncommercial",
        options=labels.EKMAN_NEUTRAL,
        group_keys={"picture": f"{NAME}/{stem}"},
    )
    yield from emotion_rows.asked(record, options)
