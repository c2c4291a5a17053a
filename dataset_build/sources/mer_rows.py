"""What MER2023 and MER2024 share: tables `name,discrete,valence`, clips found by name, a transcript beside them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

LICENCE = (
    "end-user licence agreement: academic research only; samples must not be edited or uploaded anywhere"
)
# Said in the cards of both.
NO_HOSTED_MODELS = (
    "Under the academic end-user licence agreement the samples must not be given to third parties: never send them to "
    "hosted API models, neither to rewrite instructions nor to be scored."
)
# The order of the authors' code.
NATIVE = ("neutral", "angry", "happy", "sad", "worried", "surprise")
VOCABULARY = tuple(str(labels.emotion(word)) for word in NATIVE)

# How a table says that nobody labelled a clip; pandas writes a missing value as nothing or as nan.
_UNLABELLED = ("", "nan", "none", "unlabeled", "unlabelled")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".flv")


class Options(base.EmotionOptions):
    """`language` of the transcript that goes with a clip: the spoken Chinese or its English translation."""

    language: Literal["chinese", "english"] = "chinese"


class Part(NamedTuple):
    """One table: `name` (train, test1, …), its split, where the table and the folder of its clips may be."""

    name: str
    split: str
    tables: Sequence[str]
    folders: Sequence[str]


def transcript(root: str, options: Options) -> dict[str, str]:
    """Clip → what is said in it; empty where no transcript of that language lies at the root."""
    names = ("label-transcription.csv", "transcription.csv", "transcription-engchi-polish.csv")
    for path in names:
        if readers.exists(root, path):
            rows = [row for row in readers.table(root, path, ("name",)) if not row.problem]
            return {
                row.cells["name"].strip(): row.cells[options.language].strip()
                for row in rows
                if options.language in row.cells
            }
    return {}


def read(
    source: str, root: str, part: Part, texts: Mapping[str, str], suffix: str, options: Options
) -> Iterator[Record | Reject]:
    """All rows of a part. `suffix` is the usual one, for the path of a clip that is not there."""
    table = readers.find(root, *part.tables, what=f"table of {part.name}")
    folder = next((folder for folder in part.folders if readers.exists(root, folder)), None)
    clips: dict[str, str] = {}
    for path in readers.listing(root, folder) if folder else ():
        stem, ending = posixpath.splitext(posixpath.basename(path))
        if ending.lower() in _VIDEOS:
            clips.setdefault(stem, path)
    # A clip of a test table is named with its part: the three test sets number their clips independently.
    place = f"{source}/{part.split}" + ("" if part.split == "train" else f"/{part.name}")
    for row in readers.table(root, table, ("name", "discrete")):
        where = f"{table} row {row.line}"
        name = "" if row.problem else row.cells["name"].strip()
        if not _NAME.fullmatch(name):
            problem = row.problem or f"name is {name[:80]!r}, expected the name of a clip, as sample_00099001"
            uid = f"{place}/row-{row.line}"
            detail = f"{where}: {problem}; fetch the table again"
            yield from emotion_rows.refused(uid, part.split, options, "bad_row", detail)
            continue
        path = clips.get(name, f"{folder or part.folders[0]}/{name}{suffix}")
        yield from _items(f"{where} ({name})", f"{place}/{name}", part, row, path, texts, options)


def _items(
    where: str,
    uid: str,
    part: Part,
    row: readers.Row,
    path: str,
    texts: Mapping[str, str],
    options: Options,
) -> Iterator[Record | Reject]:
    name, native = row.cells["name"].strip(), row.cells["discrete"].strip()
    if native.lower() in _UNLABELLED:
        detail = f"{where}: without a label (discrete is {native!r})"
        yield from emotion_rows.refused(uid, part.split, options, "source_rule", detail)
        return
    if native.lower() not in NATIVE:
        detail = f"{where}: discrete {native[:80]!r} is not one of {', '.join(NATIVE)}"
        yield from emotion_rows.refused(uid, part.split, options, "unknown_label", detail)
        return
    source = uid.split("/", 1)[0]
    record = Record(
        uid=uid,
        source=source,
        sub_task="emo_c",
        split=part.split,
        media=(MediaRef("video", path),),
        label=str(labels.emotion(native)),
        native_label=native,
        licence_tag=f"{source}-eula",
        options=VOCABULARY,
        text=texts.get(name, ""),
        # MER2024 names the clips of MER2023 as MER2023 does.
        group_keys={
            "clip": f"mer/{name}" if part.split == "train" else f"mer/{part.name}/{name}",
            "part": part.name,
        },
    )
    yield from emotion_rows.asked(record, options)
