"""AffectNet: which of eight emotions does the face show? (web pictures, labelled by hand)

Two layouts are read.
full   `training.csv` and `validation.csv` (in `Manually_Annotated_file_lists/` or the root; some copies of the second
       have no header) with `subDirectory_filePath,face_x,…,expression,valence,arousal`, and the pictures below
       `Manually_Annotated_Images/`.
small  `train_set/` and `val_set/`, each with `images/N.jpg` and, for every picture, `annotations/N_exp.npy`, which
       holds the code as a number or as text.

Codes: 0 neutral, 1 happiness, 2 sadness, 3 surprise, 4 fear, 5 disgust, 6 anger, 7 contempt; 8 none, 9 uncertain and
10 no face are no emotions, and many authors also leave contempt out (`classes: 7`). The pictures that a network
labelled (`automatically_annotated.csv`) are not read: their labels are no ground truth. Nor are valence and arousal.

**Splits.** The test split was never published. Whoever tunes on the validation split and reports on it selects on the
test; so by default the published validation split is `test` here, and val is carved from train. `split: published`
keeps the names of the source (then nothing of it is a test sample); `split: shares` draws all three from all pictures,
which gives test and train the same distribution of labels (the published validation split is balanced, train is not).

Known dirt: pictures that are listed but missing, in formats other than their name says, and twice.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Literal

from dataset_build import labels, storage
from dataset_build.errors import BuildError
from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import arrays, base, emotion_rows, readers

NAME = "affectnet"
VERSION = "1"
TITLE = "AffectNet: eight emotions in faces from the web"
LICENCE = "research only, under an agreement that the head of the laboratory signs; no redistribution"
CITATION = (
    "Mollahosseini et al., AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in the Wild, "
    "IEEE Transactions on Affective Computing 2019"
)
LIMITS = (
    "One annotator per face, so the labels are noisy. Train is far from balanced, the published validation split is. "
    "A result is comparable with published ones only if these, too, did not choose their model on that split."
)
SIZE = "about 290,000 faces with one of eight emotions"
DOWNLOAD = (
    "Manually_Annotated_Images and its file lists, or the small version (train_set/, val_set/), from the authors after "
    "the agreement; root: the folder that holds them"
)
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {
    "val_as_test": "official",
    "published": "official",
    "shares": "shares",
}
GROUP_KEY = "picture"
DEMONSTRATION = False

CODES = ("neutral", "joy", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
NOT_EMOTIONS = {8: "none", 9: "uncertain", 10: "no face"}
_COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks",
    "expression", "valence", "arousal",
)  # fmt: skip
_LISTS = {"train": "training.csv", "val": "validation.csv"}
_EXP = "_exp.npy"


class Options(base.EmotionOptions):
    """`classes`: with contempt or without. `split`: see the module's text. `view`: the picture, which shows a face
    with some of what is around it, or its face box alone (full layout only)."""

    classes: Literal[7, 8] = 8
    split: Literal["val_as_test", "published", "shares"] = "val_as_test"
    view: Literal["picture", "face"] = "picture"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    if any(readers.exists(root, f"{split}_set/annotations") for split in _LISTS):
        if options.view == "face":
            raise BuildError(
                f"{root}: the small layout of {NAME} has no face boxes; set options.view=picture"
            )
        for split in _LISTS:
            yield from _small(root, split, options)
        return
    lists = {
        split: readers.find(root, name, f"Manually_Annotated_file_lists/{name}")
        for split, name in _LISTS.items()
    }
    folders = (
        "Manually_Annotated_Images",
        "Manually_Annotated/Manually_Annotated_Images",
        "Manually_Annotated",
    )
    folder = readers.folder(root, *folders)
    for split, path in lists.items():
        for row in _rows(root, path):
            yield from _listed(path, folder, split, row, options)


def _rows(root: str, path: str) -> Iterator[readers.Row]:
    """The rows of a list, whether or not its first line names the columns."""
    names: list[str] | None = None
    for row in readers.table(root, path, (), delimiter=",", header=_COLUMNS):
        if row.line == 1 and "expression" in row.cells.values():
            names = [cell.strip() for cell in row.cells.values()]
            if row.problem or set(names) != set(_COLUMNS):
                raise BuildError(
                    f"{storage.join(root, path)}: expected columns {', '.join(_COLUMNS)}, found {', '.join(names)[:300]}"
                )
        elif names is None:
            yield row
        else:
            yield row._replace(line=row.line - 1, cells=dict(zip(names, row.cells.values())))


def _listed(
    path: str, folder: str, split: str, row: readers.Row, options: Options
) -> Iterator[Record | Reject]:
    where = f"{path} row {row.line}"
    name = row.cells.get("subDirectory_filePath", "").strip()
    if row.problem or not name:
        detail = f"{where}: {row.problem or 'subDirectory_filePath is empty'}"
        yield from _items(split, f"row-{row.line}", None, "", detail, options)
        return
    crop, problem = None, ""
    if options.view == "face":
        cells = [row.cells[column] for column in _COLUMNS[1:5]]
        left, top, width, height = (readers.number(cell) for cell in cells)
        if left is None or top is None or not width or not height or width < 0 or height < 0:
            shown = ", ".join(cell[:20] for cell in cells)
            problem = f"{where} ({name}): face_x, face_y, face_width, face_height are no rectangle: {shown}"
        else:
            crop = Crop(left, top, left + width, top + height)
    ref = MediaRef("image", f"{folder}/{name}", crop=crop)
    yield from _items(
        split, name, ref, row.cells["expression"].strip(), problem, options, f"{where} ({name})"
    )


def _small(root: str, split: str, options: Options) -> Iterator[Record | Reject]:
    for path in readers.listing(root, f"{split}_set/annotations"):
        if not path.endswith(_EXP):  # valence, arousal, landmarks
            continue
        number = posixpath.basename(path).removesuffix(_EXP)
        code, problem = "", ""
        try:
            code = arrays.scalar(root, path).strip()
        except ValueError as error:
            problem = f"{path}: {error}"
        ref = MediaRef("image", f"{split}_set/images/{number}.jpg")
        yield from _items(split, number, ref, code, problem, options, path)


def _items(
    published: str,
    native_id: str,
    ref: MediaRef | None,
    code: str,
    problem: str,
    options: Options,
    where: str = "",
) -> Iterator[Record | Reject]:
    """The items of one row; `problem` says why it is none, `where` names it in messages."""
    split: str | None
    if options.split == "shares":
        split, uid = None, f"{NAME}/all/{published}/{native_id}"
    else:
        split = "test" if published == "val" and options.split == "val_as_test" else published
        uid = f"{NAME}/{split}/{native_id}"
    vocabulary = (*labels.EKMAN_NEUTRAL, "contempt") if options.classes == 8 else labels.EKMAN_NEUTRAL
    number = readers.whole(code)
    if problem or ref is None:
        yield from emotion_rows.refused(uid, split, options, "bad_row", problem)
    elif number in NOT_EMOTIONS:
        detail = f"{where}: code {number} ({NOT_EMOTIONS[number]}) is no emotion"
        yield from emotion_rows.refused(uid, split, options, "source_rule", detail)
    elif number is None or not 0 <= number < len(CODES):
        detail = f"{where}: code {code[:40]!r} is not one of 0 to 10"
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
    elif CODES[number] not in vocabulary:
        detail = f"{where}: {CODES[number]} is left out by options.classes={options.classes}"
        yield from emotion_rows.refused(uid, split, options, "source_rule", detail)
    else:
        record = Record(
            uid=uid,
            source=NAME,
            sub_task="emo_c",
            split=split,
            media=(ref,),
            label=CODES[number],
            native_label=code,
            licence_tag="affectnet-agreement",
            options=vocabulary,
            label_rule="official" if options.classes == 8 else "seven_classes",
            group_keys={"picture": f"{NAME}/{published}/{native_id}"},
        )
        yield from emotion_rows.asked(record, options)
