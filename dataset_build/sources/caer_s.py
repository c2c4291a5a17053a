"""CAER-S: which emotion does a person in a frame of a television series show? (still frames)

Layout: `train/<emotion>/NNNN.png` and `test/<emotion>/NNNN.png`; the folder is the label. The anger folder is called
`Angry` in one split and `Anger` in the other, in published path lists; both are read in either.

There is no validation split, and many authors report their best epoch on the test split. Here val is carved from
train, by blocks of 100 consecutive indices of a class: consecutive frames are often of one shot (in 15 % of
neighbours in train a face detector finds the very same box), so a val drawn frame by frame would repeat training frames.
The show and clip of a frame are not published, so a split by show cannot be had.

Known dirt: frames without a face, with several faces or a statue; byte-identical frames within and across the splits.

`boxes` names face-box files that others published, rows `relpath,label,x1,y1,x2,y2`, such as those of
github.com/larrylu0426/CAERS-Annotation: then the faces are cut out, and frames that the files leave out are no items.
Their number for the label is not read; their own validation list lies in the folder `test` and is test here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from dataset_build import labels
from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, folders, readers

NAME = "caer_s"
VERSION = "1"
TITLE = "CAER-S: emotions in still frames of television series, with their context"
LICENCE = "research use after a request form; frames of television series, no redistribution"
CITATION = "Lee et al., Context-Aware Emotion Recognition Networks, ICCV 2019"
LIMITS = (
    "Frames are cut from the clips of CAER and do not say from which: train and test may share shows and actors. "
    "Never train on one of CAER and CAER-S and test on the other."
)
SIZE = "69,982 frames: 48,995 train, 20,987 test"
DOWNLOAD = (
    "CAER-S.zip from caer-dataset.github.io after the request form; root: the folder with train/ and test/"
)
EXPECTED = {"train": 48_995, "test": 20_987}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "block"
DEMONSTRATION = False

BLOCK = 100  # consecutive indices of a class that stay together
_BOX_COLUMNS = ("path", "label", "x1", "y1", "x2", "y2")


class Options(base.EmotionOptions):
    """`boxes`: face-box files, relative to the root; empty: the whole frame."""

    boxes: tuple[str, ...] = ()


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    top = folders.top(root, (".", "CAER-S"), ("train", "test"))
    frames = {
        split: list(folders.pictures(root, split if top == "." else f"{top}/{split}"))
        for split in ("train", "test")
    }
    if options.boxes:
        yield from _boxed(root, frames, options)
        return
    for split, found in frames.items():
        for frame in found:
            yield from _items(split, frame, None, options)


def _boxed(
    root: str, frames: dict[str, list[folders.Labelled]], options: Options
) -> Iterator[Record | Reject]:
    """The rows of the box files, then the frames that no row names."""
    on_disk: dict[tuple[str, str, str], folders.Labelled] = {}
    for split, found in frames.items():
        for frame in found:
            on_disk.setdefault(_key(split, frame.folder, frame.name), frame)
    named: set[str] = set()
    for path in options.boxes:
        for row in readers.table(root, path, (), delimiter=",", header=_BOX_COLUMNS):
            parts = row.cells.get("path", "").strip().replace("\\", "/").split("/")
            if row.problem or len(parts) < 3 or parts[-3] not in frames:
                shown = row.problem or f"path {row.cells['path'][:200]!r}"
                detail = f"{path} row {row.line}: expected train|test/<emotion>/<frame>,label,x1,y1,x2,y2; found {shown}"
                yield from emotion_rows.refused(
                    f"{NAME}/all/{path}-row-{row.line}", None, options, "bad_row", detail
                )
                continue
            frame = on_disk.get(_key(*parts[-3:])) or folders.Labelled("/".join(parts), *parts[-2:])
            named.add(frame.path)
            corners = [readers.number(row.cells[name]) for name in _BOX_COLUMNS[2:]]
            left, top, right, bottom = (math.nan if corner is None else corner for corner in corners)
            if not (left < right and top < bottom):
                shown = ",".join(row.cells[name] for name in _BOX_COLUMNS[2:])[:100]
                problem = f"{path} row {row.line}: x1,y1,x2,y2 = {shown} is no rectangle"
                frame = frame._replace(reason="bad_row", problem=problem)
            yield from _items(parts[-3], frame, Crop(left, top, right, bottom), options)
    for split, found in frames.items():
        for frame in found:
            if frame.path not in named:
                problem = frame.problem or f"no row of {', '.join(options.boxes)} names it"
                frame = frame._replace(reason=frame.reason or "source_rule", problem=problem)
                yield from _items(split, frame, None, options)


def _key(split: str, folder: str, name: str) -> tuple[str, str, str]:
    return split, labels.emotion(folder) or folder, name


def _items(
    split: str, frame: folders.Labelled, crop: Crop | None, options: Options
) -> Iterator[Record | Reject]:
    uid = f"{NAME}/{split}/{frame.folder}/{frame.name}"
    label = labels.emotion(frame.folder)
    if frame.reason:
        yield from emotion_rows.refused(uid, split, options, frame.reason, f"{frame.path}: {frame.problem}")
    elif label not in labels.EKMAN_NEUTRAL:
        detail = f"{frame.path}: folder {frame.folder!r} is not one of the seven emotions of CAER-S"
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
    else:
        index = readers.whole(frame.name.split(".")[0])
        block = frame.name if index is None else str(index // BLOCK)
        yield from emotion_rows.asked(
            Record(
                uid=uid,
                source=NAME,
                sub_task="emo_c",
                split=split,
                media=(MediaRef("image", frame.path, crop=crop),),
                label=label,
                native_label=frame.folder,
                licence_tag="caer-research",
                options=labels.EKMAN_NEUTRAL,
                group_keys={"block": f"{split}/{label}/{block}"},
            ),
            options,
        )
