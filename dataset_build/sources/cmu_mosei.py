"""CMU-MOSEI: which emotion does the speaker of this segment of a web video express?

Its parts travel in several packings, so `layout` says which one lists the segments and where their emotions are:

csd          `CMU_MOSEI_Labels.csd` of the CMU Multimodal SDK: intervals and the columns sentiment, happy, sad, anger,
             surprise, disgust, fear. The number of a segment is its place there. Texts from the transcripts, if they lie
             there, by equal times.
transcripts  `Raw/Transcript/Segmented/Combined/<video>.txt`, lines `video___segment___start___end___text`; the emotions
             from a `label.csv` with columns video_id, clip_id and one for each emotion.
mmsa         the pickle of MMSA, `Processed/aligned_50.pkl` or `unaligned_50.pkl` ({train, valid, test} with `id` as
             `video$_$clip` and `raw_text`); the emotions from `label.csv` as above, clips already cut, in
             `Raw/<video>/<clip>.mp4`. (Published with all features the pickle is larger than an annotation file may be:
             store its ids and texts in a smaller one.)

In the other two, clips are cut out of `Raw/Videos/Full/Combined/<video>.mp4` by their times. Video ids may begin with
`-` and hold `_`; they differ by case alone in places, which a file system that ignores case cannot hold.

An emotion is present where its value is above 0. The label is the strongest (of equal ones the first in the order of the
columns), the others are `other_labels`. Segments without any leave by rule, or are neutral with `without_emotion`.

The official split is by video and needs a list: `mode` or `split` in label.csv, the pickle's three parts, or
`folds/{train,valid,test}.txt` with a video id a line (the standard folds of the SDK). Videos in no list leave by rule.
`split: shares` draws its own shares by video instead.

Known dirt: damaged or black videos, segments without labels.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, hdf5, pickles, readers

NAME = "cmu_mosei"
VERSION = "1"
TITLE = "CMU-MOSEI: emotions in monologues of web videos"
LICENCE = "terms of the CMU Multimodal SDK, research use; videos of third parties, no redistribution"
CITATION = (
    "Zadeh et al., Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and Interpretable Dynamic Fusion Graph, "
    "ACL 2018"
)
LIMITS = (
    "Several emotions may be present at once; one answer is asked for, the strongest. Mild emotions of people who speak "
    "into a camera: joy is by far the most frequent. Splits keep videos apart, but perhaps not speakers."
)
SIZE = "about 23,000 segments of 3,227 videos in the standard folds"
DOWNLOAD = (
    "raw videos and CMU_MOSEI_Labels.csd as github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK says, the standard folds as "
    "folds/{train,valid,test}.txt; root: the folder with CMU_MOSEI_Labels.csd and Raw/"
)
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {"official": "official", "shares": "shares"}
GROUP_KEY = "video"
DEMONSTRATION = False

# Columns of the label sequence after sentiment, and of label.csv in several spellings.
_EMOTIONS = {
    "happy": "joy",
    "sad": "sadness",
    "anger": "anger",
    "surprise": "surprise",
    "disgust": "disgust",
    "fear": "fear",
}
_SPELLINGS = {
    "happy": ("happy", "happiness"),
    "sad": ("sad", "sadness"),
    "anger": ("anger", "angry"),
    "surprise": ("surprise",),
    "disgust": ("disgust",),
    "fear": ("fear",),
}
_SPLITS = {
    "train": "train", "valid": "val", "val": "val", "dev": "val", "test": "test", "0": "train", "1": "val", "2": "test"
}  # fmt: skip
_VIDEO = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_PICKLES = tuple(
    f"{folder}{name}_50.pkl"
    for folder in ("Processed/", "", "MOSEI/Processed/")
    for name in ("aligned", "unaligned")
)
# Two packings round the times of a segment differently.
_SAME_TIME_S = 0.1


class Options(base.EmotionOptions):
    """`layout`: which packing of the set lists the segments (`csd` of the SDK, its `transcripts`, or the pickle of `mmsa`).

    `split: shares` draws shares by video where no list of the official split is at hand. `without_emotion`: segments in
    which no emotion is above 0 are left out, or are neutral.
    """

    layout: Literal["csd", "transcripts", "mmsa"] = "csd"
    split: Literal["official", "shares"] = "official"
    without_emotion: Literal["leave_out", "neutral"] = "leave_out"


class _Segment(NamedTuple):
    """A row, wherever it was listed. `values` are the six emotions, or None without a label; `problem`: no segment."""

    where: str
    video: str
    clip: str
    media: MediaRef | None = None
    text: str = ""
    values: Sequence[float | None] | None = None
    problem: str = ""


class _Line(NamedTuple):
    """A line of a transcript."""

    clip: str
    start_s: float
    end_s: float
    text: str


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    listed = {"csd": _csd, "transcripts": _transcripts, "mmsa": _mmsa}[options.layout]
    segments = listed(root)
    first = list(
        itertools.islice(segments, 1)
    )  # a folder that is not the source is told as such, before its splits
    split_of = _split_list(root) if options.split == "official" else None
    for segment in itertools.chain(first, segments):
        yield from _items(segment, split_of, options)


# --- what lists the segments -----------------------------------------------------------------------------------------


def _csd(root: str) -> Iterator[_Segment]:
    path = readers.find(
        root, "CMU_MOSEI_Labels.csd", "labels/CMU_MOSEI_Labels.csd", "CMU_MOSEI/CMU_MOSEI_Labels.csd"
    )
    folder = _transcript_folder(root)
    for video, intervals in hdf5.sequence(root, path, 1 + len(_EMOTIONS)).items():
        lines = _said(root, f"{folder}/{video}.txt", video) if folder and _VIDEO.fullmatch(video) else []
        for number, (start, end, values) in enumerate(intervals):
            where = f"{path} {video} interval {number}"
            if not math.isfinite(start + end):
                yield _Segment(where, video, str(number), problem=f"its times are {start}, {end}")
                continue
            text = next((line.text for line in lines if _same_time(line, start, end)), "")
            yield _Segment(where, video, str(number), _clip(root, video, start, end), text, values[1:])


def _same_time(line: _Line, start: float, end: float) -> bool:
    return abs(line.start_s - start) <= _SAME_TIME_S and abs(line.end_s - end) <= _SAME_TIME_S


def _transcripts(root: str) -> Iterator[_Segment]:
    folder = _transcript_folder(root)
    if folder is None:
        readers.find(root, *_TRANSCRIPTS, what="folder of transcripts")
    emotions = _Table(root).emotions()
    for path in readers.listing(root, str(folder)):
        if not path.endswith(".txt"):
            continue
        video = posixpath.basename(path).removesuffix(".txt")
        for number, line in enumerate(readers.text(root, path).splitlines(), 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            parsed = parse(line, video)
            if parsed is None:
                problem = f"expected `{video}___segment___start___end___text`, found {line[:120]!r}"
                yield _Segment(where, video, f"line-{number}", problem=problem)
            else:
                clip, start, end, text = parsed
                values = emotions.get((video, clip))
                yield _Segment(where, video, clip, _clip(root, video, start, end), text, values)


def _mmsa(root: str) -> Iterator[_Segment]:
    path = readers.find(root, *_PICKLES)
    emotions = _Table(root).emotions()
    for part, ids, texts in _pickle_parts(root, path):
        for number, native in enumerate(ids):
            where = f"{path} {part} entry {number}"
            video, mark, clip = native.partition("$_$")
            if not mark or readers.whole(clip) is None:
                yield _Segment(
                    where, video, f"{part}-{number}", problem=f"id is {native[:80]!r}, expected video$_$clip"
                )
            else:
                ref = MediaRef("video", f"Raw/{video}/{clip}.mp4")
                text = texts[number] if number < len(texts) else ""
                yield _Segment(where, video, clip, ref, text, emotions.get((video, clip)))


_TRANSCRIPTS = ("Raw/Transcript/Segmented/Combined", "Transcript/Segmented/Combined")


def _transcript_folder(root: str) -> str | None:
    return next((folder for folder in _TRANSCRIPTS if readers.exists(root, folder)), None)


def parse(line: str, video: str) -> _Line | None:
    """A transcript's line. The id is known from the file's name: it may itself hold or end with the separator's `_`."""
    if not line.startswith(f"{video}___"):
        return None
    cells = line[len(video) + 3 :].split("___", 3)
    if len(cells) < 4 or readers.whole(cells[0]) is None:
        return None
    start, end = readers.number(cells[1]), readers.number(cells[2])
    if start is None or end is None:
        return None
    return _Line(cells[0].strip(), start, end, cells[3].strip())


def _said(root: str, path: str, video: str) -> list[_Line]:
    if not readers.exists(root, path):
        return []
    return [parsed for line in readers.text(root, path).splitlines() if (parsed := parse(line, video))]


def _clip(root: str, video: str, start: float, end: float) -> MediaRef:
    return MediaRef("video", f"Raw/Videos/Full/Combined/{video}.mp4", start, end)


# --- label.csv, pickle, folds ----------------------------------------------------------------------------------------


class _Table:
    """`label.csv`: video, clip, and whichever of the emotions and the split it has."""

    NAMES = ("label.csv", "CMU_MOSEI_Labels.csv", "Raw/label.csv")

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = next((name for name in self.NAMES if readers.exists(root, name)), None)

    def _rows(self) -> Iterator[tuple[dict[str, str], str, str]]:
        """(cells by lower-case name, video, clip) of every row that names both."""
        assert self.path is not None
        for row in readers.table(self.root, self.path, ()):
            cells = {name.lower(): cell.strip() for name, cell in row.cells.items()}
            video, clip = cells.get("video_id", cells.get("file")), cells.get("clip_id", cells.get("index"))
            if video is None or clip is None:
                raise BuildError(
                    f"{self.root}/{self.path}: columns video_id and clip_id missing; found {', '.join(cells)[:300]}"
                )
            if not row.problem and video:
                yield cells, video, clip

    def emotions(self) -> dict[tuple[str, str], list[float | None]]:
        """(video, clip) → the six values. Raises BuildError without the table or without its columns."""
        if self.path is None:
            readers.find(self.root, *self.NAMES, what="table of emotions")
        found: dict[tuple[str, str], list[float | None]] = {}
        for cells, video, clip in self._rows():
            columns = [next((s for s in _SPELLINGS[word] if s in cells), "") for word in _EMOTIONS]
            if "" in columns:
                word = list(_EMOTIONS)[columns.index("")]
                raise BuildError(
                    f"{self.root}/{self.path}: column {word} missing; the tables of sentiment packings have no emotions, "
                    "set the option layout: csd"
                )
            found.setdefault((video, clip), [readers.number(cells[column]) for column in columns])
        return found

    def splits(self) -> dict[str, set[str]]:
        """Video → the splits that its rows name; empty where the table names none."""
        found: dict[str, set[str]] = {}
        for cells, video, _ in self._rows() if self.path else ():
            split = _SPLITS.get(cells.get("mode", cells.get("split", "")).lower())
            if split:
                found.setdefault(video, set()).add(split)
        return found


def _split_list(root: str) -> dict[str, str]:
    """Video → split. Raises BuildError where no list is there, or one puts a video into two splits."""
    found = _Table(root).splits() or _fold_files(root) or _pickle_splits(root)
    if not found:
        raise BuildError(
            f"{root}: no list of the official split: neither label.csv with a column mode, nor folds/train.txt, "
            "folds/valid.txt and folds/test.txt, nor MMSA's pickle; add one, or set the option split: shares"
        )
    for video, splits in found.items():
        if len(splits) > 1:
            raise BuildError(
                f"{root}: video {video[:100]} is in {' and '.join(sorted(splits))}; mend the list"
            )
    return {video: next(iter(splits)) for video, splits in found.items()}


def _fold_files(root: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in ("train", "valid", "test"):
        path = f"folds/{name}.txt"
        if readers.exists(root, path):
            for video in readers.text(root, path).split():
                found.setdefault(video, set()).add(_SPLITS[name])
    return found


def _pickle_splits(root: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    path = next((path for path in _PICKLES if readers.exists(root, path)), None)
    for part, ids, _ in _pickle_parts(root, path) if path else ():
        for native in ids:
            found.setdefault(native.partition("$_$")[0], set()).add(_SPLITS[part])
    return found


def _pickle_parts(root: str, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(part, ids, texts) of MMSA's pickle."""
    value = pickles.load(root, path)
    for part in ("train", "valid", "test"):
        inner = value.get(part) if isinstance(value, dict) else None
        ids = _texts(inner.get("id")) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or ids is None:
            raise BuildError(f"{root}/{path}: expected {{train, valid, test}} with `id` each; fetch it again")
        yield part, ids, _texts(inner.get("raw_text")) or []


def _texts(value: Any) -> list[str] | None:
    """A list or array of texts as a list; None for anything else."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        return None
    return [str(text)[: readers.MAX_CELL_CHARS] for text in values]


# --- rows to items ---------------------------------------------------------------------------------------------------


def _items(
    segment: _Segment, split_of: Mapping[str, str] | None, options: Options
) -> Iterator[Record | Reject]:
    split = None if split_of is None else split_of.get(segment.video)
    uid = f"{NAME}/{split or 'all'}/{segment.video[:100]}/{segment.clip[:40]}"
    ranked: list[str] = []
    if segment.problem or segment.media is None or not _VIDEO.fullmatch(segment.video):
        reason, detail = "bad_row", segment.problem or f"{segment.video[:100]!r} is not the id of a video"
    elif split_of is not None and split is None:
        reason, detail = "source_rule", f"video {segment.video} is in no list of the official split"
    elif segment.values is None:
        reason, detail = "source_rule", "nobody labelled its emotions"
    else:
        reason, detail, ranked = _ranked(segment.values, options)
    if reason or segment.media is None:
        yield from emotion_rows.refused(uid, split, options, reason, f"{segment.where}: {detail}")
        return
    extra = ("neutral",) if options.without_emotion == "neutral" else ()
    row = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(segment.media,),
        label=_EMOTIONS.get(ranked[0], "neutral"),
        native_label=ranked[0],
        licence_tag="cmu-mosei-research",
        options=(*_EMOTIONS.values(), *extra),
        other_labels=tuple(_EMOTIONS[word] for word in ranked[1:]),
        text=segment.text,
        label_rule="strongest" if not extra else "strongest, neutral without any",
        group_keys={"video": segment.video},
    )
    yield from emotion_rows.asked(row, options)


def _ranked(values: Sequence[float | None], options: Options) -> tuple[str, str, list[str]]:
    """(reject reason, detail, emotions that are present from strong to weak)."""
    numbers = dict(zip(_EMOTIONS, values))
    wrong = [word for word, value in numbers.items() if value is None or not math.isfinite(value)]
    if wrong:
        return "bad_row", f"{', '.join(wrong)} is no number; fetch the labels again", []
    strength = {word: float(value or 0) for word, value in numbers.items()}
    present = sorted((word for word in _EMOTIONS if strength[word] > 0), key=lambda word: -strength[word])
    if present:
        return "", "", present
    if options.without_emotion == "neutral":
        return "", "", ["none"]
    return "source_rule", "no emotion is above 0 (option without_emotion = leave_out)", []
