"""MIntRec: what does the speaker want? (utterances of the sitcom Superstore as clips, 20 intents)

Layout (github.com/thuiar/MIntRec): `train.tsv`, `dev.tsv`, `test.tsv` with the columns season, episode, clip, text,
label, tab-separated and without quoting (a quote is a character of the text); the clip of S05, E98, 903 is
`raw_data/S05/E98/903.mp4`. The features in `video_data/` and `audio_data/` are not read.

Known dirt: the texts are in lower case; the official split is random over utterances, so every episode lies in train,
val and test, and some lines are spoken again in another split. `split: episode` keeps episodes whole instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "mintrec"
VERSION = "1"
TITLE = "MIntRec: intents in sitcom utterances"
LICENCE = "repository MIT; the clips are a broadcaster's, no redistribution"
CITATION = "Zhang et al., MIntRec: A New Dataset for Multimodal Intent Recognition, ACM Multimedia 2022"
LIMITS = (
    "One sitcom with few speakers, and the official split is random over utterances: faces, voices and scenes of the "
    "test clips are known from training. `split: episode` gives an episode-disjoint split."
)
SIZE = "2,224 clips"
DOWNLOAD = (
    "the three TSV files and raw_data/ through the links of github.com/thuiar/MIntRec; root: the folder with train.tsv "
    "and raw_data/"
)
EXPECTED = {"train": 1_334, "val": 445, "test": 445}
SUB_TASKS = ("intent",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {"official": "official", "episode": "shares"}
GROUP_KEY = "episode"
DEMONSTRATION = False

_COLUMNS = ("season", "episode", "clip", "text", "label")
_FILES = {"train": ("train.tsv",), "val": ("dev.tsv", "val.tsv"), "test": ("test.tsv",)}


class Options(base.Options):
    """`split`: `official` (random over utterances, as published) or `episode` (test and val shares by episode)."""

    split: Literal["official", "episode"] = "official"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    paths = {
        split: readers.find(root, *names, *(f"MIntRec/{name}" for name in names))
        for split, names in _FILES.items()
    }
    for split, path in paths.items():
        named = split if options.split == "official" else None
        for row in readers.table(root, path, _COLUMNS, delimiter="\t", quoting=False):
            yield _item(path, named, row, f"{split}-row-{row.line}")


def _item(path: str, split: str | None, row: readers.Row, row_id: str) -> Record | Reject:
    where = f"{path} row {row.line}"
    season, episode, clip = (row.cells.get(name, "").strip() for name in _COLUMNS[:3])
    problem = row.problem or ("" if season and episode and clip else "season, episode or clip is empty")
    if problem:
        uid = f"{NAME}/{split or 'all'}/{row_id}"
        return Reject(uid, NAME, split, "intent", "bad_row", f"{where}: {problem}; found {row.cells!r:.200}")
    uid = f"{NAME}/{split or 'all'}/{season}_{episode}_{clip}"
    label = labels.intent(row.cells["label"])
    if label not in labels.MINTREC_INTENTS:
        known = ", ".join(labels.MINTREC_INTENTS)
        detail = f"{where} ({season}_{episode}_{clip}): label {row.cells['label']!r} is not one of {known}"
        return Reject(uid, NAME, split, "intent", "unknown_label", detail)
    folder = path.rpartition("/")[0]
    return Record(
        uid=uid,
        source=NAME,
        sub_task="intent",
        split=split,
        media=(MediaRef("video", f"{folder}/raw_data/{season}/{episode}/{clip}.mp4".lstrip("/")),),
        label=label,
        native_label=row.cells["label"],
        licence_tag="mintrec-research",
        options=labels.MINTREC_INTENTS,
        text=row.cells["text"],
        group_keys={"episode": f"{season}_{episode}", "season": season, "show": "superstore"},
    )
