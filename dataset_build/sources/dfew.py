"""DFEW: which emotion does the person in this film clip show?

Layout: `EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv` (the archives write an underscore, loaders a
hyphen) with columns `video_name,label`; clips in `Clip/original/`, as `NNNNN.mp4` at any depth, since they come in four
archives that some tools unpack into folders of their own; face-aligned frames in
`Clip/clip_224x224_16f/NNNNN/` (16 a clip) and `Clip/clip_224x224/NNNNN/`. The authors' repository
(github.com/jiangxingxun/DFEW) has `single_label/label/single_{train,test}set_K.csv` and frames in
`single_label/data/NNNNN/` instead.

`video_name` is a number without its leading zeros, as spreadsheets leave it; labels are 1 to 7. Only the 11,697 clips
with one clear label and a face are listed; the files of the others are never looked at.

The official protocol is five-fold: every clip is a test clip once, so it is one record with the fold that tests it, and
train list K must be all clips that test list K does not hold. A clip that a train list names against this, or labels
otherwise, is a bad row; clips that a train list lacks are only reported in the log, for protocol K trains on them here.
There is no validation list, and peers select on test; here none is selected on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "dfew"
VERSION = "1"
TITLE = "DFEW: emotions in film clips"
LICENCE = "signed request, non-commercial research; clips of films, no redistribution"
CITATION = "Jiang et al., DFEW: A Large-Scale Database for Recognizing Dynamic Facial Expressions in the Wild, ACM MM 2020"
LIMITS = (
    "The film of a clip is not published, so the folds may share films and actors. Classes are very uneven (about 1 % "
    "disgust). There is no validation set."
)
SIZE = "16,372 film clips, of which 11,697 have one clear label"
DOWNLOAD = (
    "after the signed request at dfew-dataset.github.io: EmoLabel_DataSplit and Clip/original (or Clip/clip_224x224_16f "
    "with clips: frames); root: the folder with EmoLabel_DataSplit/ and Clip/"
)
EXPECTED = {"all": 11_697}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "folds"
GROUP_KEY = "clip"
DEMONSTRATION = False

_NATIVE = {1: "Happy", 2: "Sad", 3: "Neutral", 4: "Angry", 5: "Surprise", 6: "Disgust", 7: "Fear"}
_FOLDS = (1, 2, 3, 4, 5)
_COLUMNS = ("video_name", "label")
_FILMS = "Clip/original"
_FRAMES = (
    "Clip/clip_224x224_16f",
    "clip_224x224_16f",
    "Clip/clip_224x224",
    "clip_224x224",
    "single_label/data",
    "data",
)

log = logging.getLogger(__name__)


class Options(base.EmotionOptions):
    """`clips`: the film clip, or `n_frames` of its face-aligned frames, evenly spaced, as pictures."""

    clips: Literal["original", "frames"] = "original"
    n_frames: int = Field(4, ge=1, le=16)


class _Row(NamedTuple):
    """A row of a list. `label` is a whole number or None; `problem` is not empty: no clip can be read from the row."""

    path: str
    line: int
    clip: str
    label: int | None
    problem: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    lists = {
        (part, fold): list(_rows(root, readers.find(root, *_list_names(part, fold))))
        for part in ("test", "train")
        for fold in _FOLDS
    }
    trained = [{row.clip: row for row in lists["train", fold] if not row.problem} for fold in _FOLDS]
    tested: dict[str, int] = {}
    for fold in _FOLDS:
        for row in lists["test", fold]:
            if not row.problem:
                tested.setdefault(row.clip, fold)
    files = _frames(root) if options.clips == "frames" else _films(root)
    for (part, fold), rows in lists.items():
        for row in rows:
            if row.problem:
                uid = f"{NAME}/all/{part}-{fold}-row-{row.line}"
                detail = f"{row.path} row {row.line}: {row.problem}; fetch the list again"
                yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
            elif part == "test":
                yield from _items(row, fold, trained, files, options)
    yield from _only_trained(trained, tested, options)
    for fold, listed in zip(_FOLDS, trained):
        missing = [clip for clip, where in tested.items() if where != fold and clip not in listed]
        if missing:
            log.warning(
                "%s: train list %d lacks %d clips that its test list does not hold (%s, …); they are trained on here",
                root,
                fold,
                len(missing),
                missing[0],
            )


def _list_names(part: str, fold: int) -> list[str]:
    official = [f"{part}(single{mark}labeled)/set_{fold}.csv" for mark in ("-", "_")]
    authors = [f"{top}label/single_{part}set_{fold}.csv" for top in ("single_label/", "")]
    return [f"{top}{name}" for top in ("EmoLabel_DataSplit/", "") for name in official] + authors


def _rows(root: str, path: str) -> Iterator[_Row]:
    for row in readers.table(root, path, _COLUMNS):
        number = None if row.problem else readers.whole(row.cells["video_name"])
        if number is None or not 0 <= number <= 99_999:
            problem = row.problem or f"video_name is {row.cells['video_name'][:80]!r}, expected a number"
            yield _Row(path, row.line, "", None, problem)
        else:
            yield _Row(path, row.line, f"{number:05d}", readers.whole(row.cells["label"]))


def _items(
    row: _Row,
    fold: int,
    trained: Sequence[Mapping[str, _Row]],
    files: Mapping[str, Sequence[str]],
    options: Options,
) -> Iterator[Record | Reject]:
    uid = f"{NAME}/all/{row.clip}"
    where = f"{row.path} row {row.line} (clip {row.clip})"
    if row.label not in _NATIVE:
        detail = f"{where}: label {row.label} is not one of 1 to 7"
        yield from emotion_rows.refused(uid, None, options, "unknown_label", detail)
        return
    contradiction = _contradiction(row, fold, trained)
    if contradiction:
        yield from emotion_rows.refused(uid, None, options, "bad_row", f"{where}: {contradiction}")
        return
    native = _NATIVE[row.label]
    record = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=None,
        media=_media(row.clip, files, options),
        label=str(labels.emotion(native)),
        native_label=native,
        licence_tag="dfew-request",
        options=labels.EKMAN_NEUTRAL,
        fold=fold - 1,
        group_keys={"clip": f"dfew-{row.clip}"},
    )
    yield from emotion_rows.asked(record, options)


def _contradiction(row: _Row, fold: int, trained: Sequence[Mapping[str, _Row]]) -> str:
    """What a train list says against a row of test list `fold`; empty where none does."""
    for number, listed in zip(_FOLDS, trained):
        other = listed.get(row.clip)
        if other is None:
            continue
        if number == fold:
            return f"{other.path} row {other.line} trains on it in the fold that tests it"
        if other.label != row.label:
            return f"label {row.label} here, but {other.label} in {other.path} row {other.line}"
    return ""


def _only_trained(
    trained: Sequence[Mapping[str, _Row]], tested: Mapping[str, int], options: Options
) -> Iterator[Reject]:
    """Clips that train lists name and no test list does: outside the protocol."""
    seen: set[str] = set()
    for listed in trained:
        for clip, row in listed.items():
            if clip not in tested and clip not in seen:
                seen.add(clip)
                detail = f"{row.path} row {row.line}: clip {clip} is in no test list; fetch the lists again"
                yield from emotion_rows.refused(f"{NAME}/all/{clip}", None, options, "bad_row", detail)


def _films(root: str) -> dict[str, list[str]]:
    """Clip → its file, the first where several folders hold one."""
    folder = _FILMS if readers.exists(root, _FILMS) else None
    found: dict[str, list[str]] = {}
    for path in readers.listing(root, folder) if folder else ():
        stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
        if dot and suffix.lower() == "mp4":
            found.setdefault(stem, [path])
    return found


def _frames(root: str) -> dict[str, list[str]]:
    """Clip → its frames in order."""
    folder = readers.find(root, *_FRAMES, what="folder of frames")
    found: dict[str, list[str]] = {}
    for path in readers.listing(root, folder):
        if path.lower().endswith((".jpg", ".jpeg", ".png")):
            found.setdefault(path.rsplit("/", 2)[-2], []).append(path)
    return found


def _media(clip: str, files: Mapping[str, Sequence[str]], options: Options) -> tuple[MediaRef, ...]:
    of_clip = files.get(clip)
    if options.clips == "original":
        return (MediaRef("video", of_clip[0] if of_clip else f"{_FILMS}/{clip}.mp4"),)
    if not of_clip:  # the build will say that it is missing
        return (MediaRef("image", f"{_FRAMES[0]}/{clip}/{clip}_00001.jpg"),)
    middles = [(2 * part + 1) * len(of_clip) // (2 * options.n_frames) for part in range(options.n_frames)]
    return tuple(MediaRef("image", of_clip[number]) for number in middles)
