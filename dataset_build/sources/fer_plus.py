"""FER2013 with the labels of FER+: which emotion does the face show? (48 × 48 grey pictures)

Two layouts are read.
tables     `fer2013.csv` (`emotion,pixels,Usage`, the pictures are inside the table) and beside it `fer2013new.csv` of
           github.com/microsoft/FERPlus (`Usage,Image name,` ten vote columns), whose rows are in the same order: they are
           joined by their place, since some rows have no name.
generated  what FERPlus's script makes of the two: `FER2013Train/`, `FER2013Valid/`, `FER2013Test/`, each with pictures
           and a `label.csv` without header: name, in some copies a box, ten votes.

Label rules (option `labels`):
ferplus    the official majority rule of FER+: an entry with a single vote is an outlier and is dropped; a label needs
           more than half of the votes left, counting those for "unknown" and "no face"; else the picture is left out.
fer2013    the label of fer2013.csv: one annotator's, often wrong; seven classes, no contempt.

The splits are those of the challenge: Training, PublicTest (val), PrivateTest (test). Known dirt: pictures that are no
faces, and near-duplicates across the splits.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator
from typing import Literal, NamedTuple

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "fer_plus"
VERSION = "1"
TITLE = "FER2013 with the crowd's labels of FER+: emotions in small grey faces"
LICENCE = "FER+ labels: MIT; pictures: research use by the rules of the Kaggle challenge, no redistribution"
CITATION = (
    "Goodfellow et al., Challenges in Representation Learning, ICONIP 2013; Barsoum et al., Training Deep Networks for "
    "Facial Expression Recognition with Crowd-Sourced Label Distribution, ICMI 2016"
)
LIMITS = (
    "Faces of 48 x 48 grey pixels, found by keyword in a web search. What ten people did not agree about is left out, "
    "so the pictures kept are the clearer ones."
)
SIZE = "35,887 faces: 28,709 train, 3,589 val, 3,589 test"
DOWNLOAD = (
    "fer2013.csv of the Kaggle challenge and fer2013new.csv from github.com/microsoft/FERPlus, side by side; or the "
    "folders that FERPlus's generate_training_data.py makes of them; root: the folder that holds them"
)
EXPECTED = {"train": 28_709, "val": 3_589, "test": 3_589}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

FER2013 = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
EIGHT = (*labels.EKMAN_NEUTRAL, "contempt")
VOTES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF",
)  # fmt: skip
_USAGE = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_GENERATED = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
_PIXELS = 48 * 48


class Options(base.EmotionOptions):
    """`labels`: the label rule, see the module's text."""

    labels: Literal["ferplus", "fer2013"] = "ferplus"


class Verdict(NamedTuple):
    """What a label rule says of a row: the source's label, or a reject reason and why."""

    native: str
    reason: str = ""
    problem: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    if readers.exists(root, "fer2013.csv") or not readers.exists(root, "FER2013Train/label.csv"):
        yield from _tables(root, options)
    elif options.labels == "fer2013":
        raise BuildError(
            f"{root}: options.labels=fer2013 needs fer2013.csv; the generated folders do not hold it"
        )
    else:
        for folder, split in _GENERATED.items():
            yield from _generated(root, folder, split, options)


def majority(votes: list[int]) -> Verdict:
    """The official majority rule of FER+ on the ten vote counts, in the order of `VOTES`."""
    counted = [count if count > 1 else 0 for count in votes]
    most = max(counted)
    if most * 2 <= sum(counted):  # true as well where nothing is left
        return Verdict("", "source_rule", "no emotion has more than half of the votes that are not outliers")
    native = VOTES[counted.index(most)]
    if native in ("unknown", "NF"):
        meaning = "no face" if native == "NF" else "an unknown emotion"
        return Verdict("", "source_rule", f"most annotators saw {meaning}")
    return Verdict(native)


def _tables(root: str, options: Options) -> Iterator[Record | Reject]:
    what = "fer2013.csv, or FER2013Train/label.csv beside its pictures,"
    path = readers.find(root, "fer2013.csv", "fer2013/fer2013.csv", what=what)
    rows = readers.table(root, path, ("emotion", "pixels", "Usage"), delimiter=",")
    if options.labels == "fer2013":
        for row in rows:
            verdict = Verdict(row.cells.get("emotion", "").strip())
            yield from _table_item(path, row, row.problem, verdict, options)
        return
    beside = posixpath.join(posixpath.dirname(path), "fer2013new.csv")
    votes_path = readers.find(root, beside, "fer2013new.csv", "FERPlus/fer2013new.csv")
    vote_rows = readers.table(root, votes_path, ("Usage", "Image name", *VOTES), delimiter=",")
    for row, vote_row in itertools.zip_longest(rows, vote_rows):
        if row is None:  # the vote table is longer: a picture that is not there
            uid = f"{NAME}/all/votes-row-{vote_row.line}"
            detail = f"{votes_path} row {vote_row.line}: {path} has no row at this place; fetch both again"
            yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
            continue
        problem, verdict = row.problem, Verdict("")
        if vote_row is None:
            problem = problem or f"{votes_path} has no row at this place; fetch both again"
        elif vote_row.problem:
            problem = problem or f"{votes_path}: {vote_row.problem}"
        elif vote_row.cells["Usage"].strip() != row.cells.get("Usage", "").strip():
            problem = problem or (
                f"Usage is {row.cells['Usage'][:40]!r} here and {vote_row.cells['Usage'][:40]!r} in {votes_path}: "
                "the two are not in the same order; fetch both again"
            )
        elif not vote_row.cells["Image name"].strip():
            verdict = Verdict(
                "",
                "source_rule",
                f"{votes_path} has no name for it, which is how FER+ marks what is no picture",
            )
        else:
            verdict = _counted([vote_row.cells[name] for name in VOTES])
        yield from _table_item(path, row, problem, verdict, options)


def _table_item(
    path: str, row: readers.Row, problem: str, verdict: Verdict, options: Options
) -> Iterator[Record | Reject]:
    """The item of one row of fer2013.csv."""
    split = _USAGE.get(row.cells.get("Usage", "").strip())
    pixels = row.cells.get("pixels", "")
    if not problem and split is None:
        problem = f"Usage {row.cells['Usage'][:40]!r} is not one of {', '.join(_USAGE)}"
    elif not problem and (found := len(pixels.split())) != _PIXELS:
        problem = f"pixels holds {found} values, expected {_PIXELS} (48 x 48)"
    if problem:
        verdict = Verdict("", "bad_row", problem)
    ref = MediaRef("image", path, pixels=pixels.strip())
    yield from _items(f"{path} row {row.line}", split, f"row-{row.line}", ref, verdict, options)


def _generated(root: str, folder: str, split: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, f"{folder}/label.csv")
    boxed = "(" in readers.text(root, path).split("\n", 1)[0]  # the box is always the whole picture
    header = ("name", "box", *VOTES) if boxed else ("name", *VOTES)
    for row in readers.table(root, path, (), delimiter=",", header=header):
        name = row.cells.get("name", "").strip()
        if row.problem or not name:
            verdict = Verdict("", "bad_row", row.problem or "the name is empty")
        else:
            verdict = _counted([row.cells[column] for column in VOTES])
        native_id = posixpath.splitext(name)[0] or f"row-{row.line}"
        ref = MediaRef("image", f"{folder}/{name}")
        yield from _items(f"{path} row {row.line}", split, native_id, ref, verdict, options)


def _counted(cells: list[str]) -> Verdict:
    votes = [readers.whole(cell) for cell in cells]
    known = [count for count in votes if count is not None and count >= 0]
    if len(known) < len(votes):
        return Verdict("", "bad_row", f"votes {', '.join(cells)[:120]!r}: expected ten whole numbers")
    return majority(known)


def _items(
    where: str, split: str | None, native_id: str, ref: MediaRef, verdict: Verdict, options: Options
) -> Iterator[Record | Reject]:
    uid = f"{NAME}/{split or 'all'}/{native_id}"
    if verdict.reason:
        yield from emotion_rows.refused(uid, split, options, verdict.reason, f"{where}: {verdict.problem}")
        return
    label = labels.emotion(verdict.native)
    vocabulary: tuple[str, ...] = EIGHT
    if options.labels == "fer2013":
        vocabulary = labels.EKMAN_NEUTRAL
        code = readers.whole(verdict.native)
        label = FER2013[code] if code is not None and 0 <= code < len(FER2013) else None
    if label is None:
        detail = f"{where}: emotion {verdict.native[:40]!r} is not one of 0 to {len(FER2013) - 1}"
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    record = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(ref,),
        label=label,
        native_label=verdict.native,
        licence_tag="fer2013-research",
        options=vocabulary,
        label_rule="ferplus_majority" if options.labels == "ferplus" else "fer2013",
        group_keys={"picture": f"{NAME}/{native_id}"},
    )
    yield from emotion_rows.asked(record, options)
