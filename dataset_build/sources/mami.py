"""MAMI: is this meme misogynous? (memes collected from the web)

Layouts. The organisers' (github.com/MIND-Lab/SemEval2022-Task-5-Multimedia-Automatic-Misogyny-Identification-MAMI-):
`TRAINING/training.csv` and `test/Test.csv` with the pictures beside them, tab-separated in spite of the name and with a
BOM; the test truth is `test_labels.txt`, without a header. A widespread repack: `train.tsv`, `validation.tsv`, `test.tsv`
(9,000/1,000/1,000, its columns called label and text, in test.tsv `mifile_name` for file_name) with the pictures in
`MAMI_2022_images/`. Val is carved from train where the layout has none.

The archive also unpacks a trial set under a stray home folder. It belongs to no split and is read, as training rows,
only with the option `trial`.

Known dirt: the four kinds of misogyny may be 1 only where misogynous is 1. A row that contradicts this leaves as
bad_row: one of the two is wrong, and nobody can say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "mami"
VERSION = "1"
TITLE = "MAMI: misogynous memes"
LICENCE = "request form and password of the organisers; academic research only, no redistribution"
CITATION = "Fersini et al., SemEval-2022 Task 5: Multimedia Automatic Misogyny Identification, SemEval 2022"
LIMITS = (
    "One kind of hate only, English. Memes were searched for by topic, so an everyday picture of a woman is rare among "
    "the negative ones."
)
SIZE = "11,000 memes"
DOWNLOAD = (
    "the archive that the organisers send on request (with test_labels.txt); root: the folder with TRAINING/, test/ and "
    "test_labels.txt, or the one with train.tsv and MAMI_2022_images/"
)
EXPECTED = {
    "test": 1_000,
    "all": 11_000,
}  # both layouts; the repack takes val out of the 10,000 training rows
SUB_TASKS = ("hate",)
PICTURES: base.Pictures = "memes"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

KINDS = ("shaming", "stereotype", "objectification", "violence")
_TOPS = ("", "MAMI DATASET/", "MAMI/")
_TRIAL = ("Users/fersiniel/Desktop/MAMI - TO LABEL/TRIAL DATASET/trial.csv", "TRIAL DATASET/trial.csv")
_REPACK = {
    "train": ("train.tsv", "MAMI_2022_images/training_images"),
    "val": ("validation.tsv", "MAMI_2022_images/training_images"),
    "test": ("test.tsv", "MAMI_2022_images/test_images"),
}
# How the columns are called, the organisers' name first.
_NAMES = {
    "file_name": ("file_name", "mifile_name"),
    "misogynous": ("misogynous", "label"),
    "text": ("Text Transcription", "text"),
}


class Options(base.Options):
    """`trial` True adds the trial set to the training rows."""

    trial: bool = False


class _Truth(NamedTuple):
    """The labels of one picture, as written; `kinds` by name, those that the file has."""

    misogynous: str
    kinds: Mapping[str, str]


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    training = [
        f"{top}{name}" for top in _TOPS for name in ("TRAINING/training.csv", "training/training.csv")
    ]
    path = readers.find(root, *training, *(f"{top}train.tsv" for top in _TOPS))
    if path.endswith("train.tsv"):
        top = path.removesuffix("train.tsv")
        for split, (name, folder) in _REPACK.items():
            yield from _rows(root, readers.find(root, top + name), split, f"{top}{folder}")
        return
    top = path.rpartition("/")[0].rpartition("/")[0]
    top = f"{top}/" if top else ""
    test = readers.find(root, f"{top}test/Test.csv", f"{top}TEST/Test.csv", f"{top}test/test.csv")
    truth_path = readers.find(root, f"{top}test_labels.txt", f"{top}test/test_labels.txt", what="test truth")
    yield from _rows(root, path, "train", path.rpartition("/")[0])
    if options.trial:
        trial = readers.find(root, *(top + name for name in _TRIAL), what="trial set (option trial)")
        yield from _rows(root, trial, "train", trial.rpartition("/")[0], prefix="trial-")
    truth, problems = _truth(root, truth_path)
    asked = set()
    for item in _rows(root, test, "test", test.rpartition("/")[0], truth):
        asked.add(item.uid)
        yield item
    yield from problems
    for name in truth:
        uid = f"{NAME}/test/{name}"
        if uid not in asked:
            detail = f"{truth_path}: labels for {name}, of which {test} knows nothing"
            yield Reject(uid, NAME, "test", "hate", "bad_row", detail)


def _truth(root: str, path: str) -> tuple[dict[str, list[_Truth]], list[Reject]]:
    """The test labels by file name (several where they contradict each other), and the lines that cannot be read."""
    header = ("file_name", "misogynous", *KINDS)
    truth: dict[str, list[_Truth]] = {}
    problems = []
    for row in readers.table(root, path, header, delimiter="\t", header=header):
        name = row.cells.get("file_name", "").strip()
        if row.problem or not name:
            detail = f"{path} row {row.line}: {row.problem or 'file_name is empty'}; found {row.cells!r:.200}"
            uid = f"{NAME}/test/test_labels-row-{row.line}"
            problems.append(Reject(uid, NAME, "test", "hate", "bad_row", detail))
            continue
        found = _Truth(row.cells["misogynous"], {kind: row.cells[kind] for kind in KINDS})
        if found not in truth.setdefault(name, []):
            truth[name].append(found)
    return truth, problems


def _rows(
    root: str,
    path: str,
    split: str,
    folder: str,
    truth: Mapping[str, list[_Truth]] | None = None,
    prefix: str = "",
) -> Iterator[Record | Reject]:
    """The rows of one table; `truth` has the labels of a table without any."""
    columns: dict[str, str] | None = None
    for row in readers.table(root, path, ()):
        if row.problem:
            uid = f"{NAME}/{split}/{prefix}row-{row.line}"
            detail = f"{path} row {row.line}: {row.problem}; found {row.cells!r:.200}"
            yield Reject(uid, NAME, split, "hate", "bad_row", detail)
            continue
        columns = columns or _columns(f"{root}/{path}", row.cells, with_labels=truth is None)
        yield _item(path, split, folder, row, columns, truth, prefix)


def _columns(where: str, cells: Mapping[str, str], with_labels: bool) -> dict[str, str]:
    """Our names → what the file calls the column. Raises BuildError where one is missing."""
    found = {ours: name for ours, names in _NAMES.items() for name in reversed(names) if name in cells}
    missing = [
        " or ".join(_NAMES[ours])
        for ours in _NAMES
        if ours not in found and (with_labels or ours != "misogynous")
    ]
    if missing:
        raise BuildError(f"{where}: column {', '.join(missing)} missing; found {', '.join(cells)[:300]}")
    return found


def _item(
    path: str,
    split: str,
    folder: str,
    row: readers.Row,
    columns: Mapping[str, str],
    truth: Mapping[str, list[_Truth]] | None,
    prefix: str,
) -> Record | Reject:
    name = row.cells[columns["file_name"]].strip()
    where = f"{path} row {row.line} ({name[:80]})"
    if not name:
        uid = f"{NAME}/{split}/{prefix}row-{row.line}"
        return Reject(uid, NAME, split, "hate", "bad_row", f"{where}: file_name is empty")
    uid = f"{NAME}/{split}/{prefix}{name}"
    if "misogynous" in columns:
        kinds = {kind: row.cells[kind] for kind in KINDS if kind in row.cells}
        given = [_Truth(row.cells[columns["misogynous"]], kinds)]
    else:
        given = list((truth or {}).get(name, []))
    if len(given) != 1:
        detail = f"{where}: {len(given) or 'no'} different lines in test_labels.txt, expected one"
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    misogynous = readers.whole(given[0].misogynous)
    if misogynous not in (0, 1):
        detail = f"{where}: misogynous is {given[0].misogynous!r:.80}, neither 0 nor 1"
        return Reject(uid, NAME, split, "hate", "unknown_label", detail)
    kinds_given = {kind: readers.whole(value) for kind, value in given[0].kinds.items()}
    wrong = [
        f"{kind} = {given[0].kinds[kind]!r:.80}" for kind, value in kinds_given.items() if value not in (0, 1)
    ]
    if wrong:
        detail = f"{where}: {', '.join(wrong)}, neither 0 nor 1"
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    present = [kind for kind, value in kinds_given.items() if value == 1]
    if present and not misogynous:
        detail = f"{where}: not misogynous, but {', '.join(present)}: one of the two is wrong"
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    keys = {"picture": name}
    if present:
        keys["kinds"] = ",".join(present)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="hate",
        split=split,
        media=(MediaRef("image", f"{folder}/{name}"),),
        label="Yes" if misogynous else "No",
        native_label=str(misogynous),
        licence_tag="mami-research",
        options=labels.YES_NO,
        ocr_text=row.cells[columns["text"]],
        group_keys=keys,
    )
