"""HateMM: is this video hateful? (English videos of a hosting site, with sound)

Layout (github.com/hate-alert/HateMM, files on Zenodo): `HateMM_annotation.csv` with the columns video_file_name, label
(`Hate` or `Non Hate`), hate_snippet, target; the videos in `hate_videos/` and `non_hate_videos/`, each in the folder
that its name begins with.

Videos are taken whole. `hate_snippet` (a Python list of ['hh:mm:ss', 'hh:mm:ss'] pairs, empty for the others) says where
the hate is, but only hateful videos have one: cutting them to it would give the answer away by length. It is only
checked to be such a list, because another text there means that the row is torn; its known oddities (spans of no
length, one reversed, some past the end of the video) cost nothing. `target` is a word, a comma list or a list literal,
for non-hateful videos too; it goes into the group keys with the misspelling `Sexits` mended.

No split is published (the authors' fold files are not); folds are drawn here, stratified, one group per video.
Transcripts are not part of the release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "hatemm"
VERSION = "1"
TITLE = "HateMM: hateful videos"
LICENCE = "no licence text verified (Zenodo record 7799469); research use, videos of third parties, no redistribution"
CITATION = "Das et al., HateMM: A Multi-Modal Dataset for Hate Video Classification, ICWSM 2023"
LIMITS = (
    "No split is published, so numbers of different papers are on different folds; re-uploads of one channel are known "
    "only where the files are alike. Videos are long and few frames of each are seen."
)
SIZE = "1,083 videos, about 43 hours"
DOWNLOAD = (
    "hate_videos.zip, non_hate_videos.zip and HateMM_annotation.csv from Zenodo record 7799469; root: the folder that "
    "holds all three unpacked"
)
EXPECTED = {"all": 1_083}
SUB_TASKS = ("hate",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "folds"
GROUP_KEY = "video"
DEMONSTRATION = False

Options = base.Options

_COLUMNS = ("video_file_name", "label", "hate_snippet", "target")
_LABELS = {"Hate": "Yes", "Non Hate": "No"}
_FOLDERS = {"Hate": "hate_videos", "Non Hate": "non_hate_videos"}
_TARGETS = {"Sexits": "Sexist"}


def read(root: str, options: base.Options) -> Iterator[Record | Reject]:
    path = readers.find(root, "HateMM_annotation.csv", "HateMM/HateMM_annotation.csv")
    top = path.removesuffix("HateMM_annotation.csv")
    for row in readers.table(root, path, _COLUMNS, delimiter=","):
        yield _item(path, top, row)


def _item(path: str, top: str, row: readers.Row) -> Record | Reject:
    where = f"{path} row {row.line}"
    name = row.cells.get("video_file_name", "").strip()
    if row.problem or not name:
        problem = row.problem or "video_file_name is empty"
        detail = f"{where}: {problem}; found {row.cells!r:.200}"
        return Reject(f"{NAME}/all/row-{row.line}", NAME, None, "hate", "bad_row", detail)
    video = name.removesuffix(".mp4")
    uid = f"{NAME}/all/{video}"
    native = row.cells["label"].strip()
    if native not in _LABELS:
        detail = f"{where} ({name}): label {row.cells['label']!r:.80} is neither 'Hate' nor 'Non Hate'"
        return Reject(uid, NAME, None, "hate", "unknown_label", detail)
    try:
        targets = _targets(row.cells["target"])
        _check_snippets(row.cells)
    except ValueError as error:
        return Reject(uid, NAME, None, "hate", "bad_row", f"{where} ({name}): {error}")
    keys = {"video": video}
    if targets:
        keys["target"] = ",".join(targets)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="hate",
        split=None,
        media=(MediaRef("video", f"{top}{_folder(name, native)}/{name}"),),
        label=_LABELS[native],
        native_label=native,
        licence_tag="hatemm-research",
        options=labels.YES_NO,
        group_keys=keys,
    )


def _folder(name: str, native: str) -> str:
    """By the file's name, because a copy that corrects labels does not move files; by the label for other names."""
    if name.startswith(("hate_video", "non_hate_video")):
        return "non_hate_videos" if name.startswith("non") else "hate_videos"
    return _FOLDERS[native]


def _targets(cell: str) -> tuple[str, ...]:
    """The targeted groups, sorted: from one word, a comma list or a list literal. Raises ValueError."""
    found = readers.literal(cell) if cell.strip().startswith("[") else cell.split(",")
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError(f"target {cell!r:.120} is not a list of words")
    words = {word.strip() for word in found} - {""}
    return tuple(sorted({_TARGETS.get(word, word) for word in words}))


def _check_snippets(cells: Mapping[str, str]) -> None:
    """Raises ValueError where hate_snippet is neither empty nor a list, or where a Non Hate row has spans."""
    cell = cells["hate_snippet"].strip()
    spans = readers.literal(cell) if cell and cell.lower() != "nan" else []
    if not isinstance(spans, list):
        raise ValueError(f"hate_snippet {cell!r:.120} is not a list of spans; the row may be torn")
    if spans and cells["label"].strip() == "Non Hate":
        raise ValueError(f"a Non Hate video with hate_snippet {cell!r:.120}: one of the two is wrong")
