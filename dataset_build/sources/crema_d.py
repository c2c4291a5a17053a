"""CREMA-D: which emotion does the actor express with this sentence?

Layout (github.com/CheyneyComputerScience/CREMA-D): `VideoFlash/AAAA_SSS_EEE_LL.flv`, `SentenceFilenames.csv` (the list
of clips), `processedResults/summaryTable.csv` (what the crowd saw and heard). The name says actor, sentence, intended
emotion and level. Without the list, the clips in `VideoFlash/` are the list.

The intended emotion is often not what people recognise. `labels: intended` (the default) takes it from the name;
`labels: crowd` takes the majority of those who saw and heard the clip, and leaves clips without one by rule.

Known dirt: a clone without git-lfs holds pointers instead of clips; four bad takes (1076_MTI_NEU_XX and 1076_MTI_SAD_XX
nearly empty, 1064_TIE_SAD_XX without duration, 1064_IEO_DIS_MD with all emotions of its sentence), of which a build
rejects what does not decode; clips fetched before December 2020 may lack their sound.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "crema_d"
VERSION = "1"
TITLE = "CREMA-D: emotions that actors express with twelve sentences"
LICENCE = "ODbL 1.0 (data base) and DbCL 1.0 (contents)"
CITATION = "Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Transactions on Affective Computing 2014"
LIMITS = (
    "91 actors say twelve sentences in a studio. The label is the emotion that the actor was asked for; viewers often "
    "recognise another one (option labels: crowd)."
)
SIZE = "7,442 clips of 91 actors"
DOWNLOAD = "git clone github.com/CheyneyComputerScience/CREMA-D with git-lfs (VideoFlash/ holds the clips); root: the clone"
EXPECTED = {"all": 7442}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "takes"
SPLIT: base.SplitMode = "folds"
SPLIT_MODES: dict[str, base.SplitMode] = {"folds": "folds", "shares": "shares"}
GROUP_KEY = "actor"
DEMONSTRATION = False

_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "joy",
    "NEU": "neutral",
    "SAD": "sadness",
}
_VOTES = {code[0]: label for code, label in _EMOTIONS.items()}
_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_FOLDERS = ("", "data/InfoAndStats/")
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})", re.ASCII)


class Options(base.EmotionOptions):
    """`labels`: the emotion intended by the actor or the crowd's vote; `split`: k-fold or shares, by actor."""

    labels: Literal["intended", "crowd"] = "intended"
    split: Literal["folds", "shares"] = "folds"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    votes = _crowd(root) if options.labels == "crowd" else None
    listed = next(
        (folder for folder in _FOLDERS if readers.exists(root, f"{folder}SentenceFilenames.csv")), None
    )
    if listed is None:
        names = [path for path in readers.listing(root, "VideoFlash") if path.lower().endswith(".flv")]
        if not names:
            raise BuildError(
                f"{root}: neither SentenceFilenames.csv nor a clip in VideoFlash/; set the root to the clone"
            )
        for path in names:
            yield from _items(path, posixpath.basename(path)[: -len(".flv")], votes, options)
        return
    table = f"{listed}SentenceFilenames.csv"
    for row in readers.table(root, table, ()):
        where = f"{table} row {row.line}"
        name = _file_name(row)
        if name is None and not row.problem:
            raise BuildError(f"{root}/{table}: column Filename missing; found {', '.join(row.cells)[:300]}")
        if row.problem or not name:
            detail = f"{where}: {row.problem or 'no file name'}; fetch the file again"
            yield from emotion_rows.refused(f"{NAME}/all/row-{row.line}", None, options, "bad_row", detail)
            continue
        yield from _items(where, name, votes, options)


def _file_name(row: readers.Row) -> str | None:
    """The clip's name without suffix. The tables of the source spell the column Filename, FileName and fileName."""
    found = next((cell for name, cell in row.cells.items() if name.lower() == "filename"), None)
    return None if found is None else re.sub(r"\.(flv|mp3|wav)$", "", found.strip())


def _crowd(root: str) -> dict[str, str]:
    """Clip → letters of the emotions that most people chose who saw and heard it, as `A` or, for a tie, `A:D`."""
    path = readers.find(
        root,
        *(f"{folder}processedResults/summaryTable.csv" for folder in _FOLDERS),
        what="table of the crowd's votes",
    )
    votes: dict[str, str] = {}
    for row in readers.table(root, path, ("MultiModalVote",)):
        name = _file_name(row)
        if not row.problem and name:
            votes.setdefault(name, row.cells["MultiModalVote"].strip())
    return votes


def _items(
    where: str, name: str, votes: Mapping[str, str] | None, options: Options
) -> Iterator[Record | Reject]:
    uid = f"{NAME}/all/{name}"
    fields = _NAME.fullmatch(name)
    if fields is None or fields[2] not in _SENTENCES:
        detail = f"{where}: {name[:80]!r} is not ACTOR_SENTENCE_EMOTION_LEVEL, as 1099_TIE_HAP_XX"
        yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
        return
    actor, sentence, intended, level = fields.groups()
    native, label, problem = _label(name, intended, votes)
    if problem:
        reason, detail = problem
        yield from emotion_rows.refused(uid, None, options, reason, f"{where} ({name}): {detail}")
        return
    row = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", f"VideoFlash/{name}.flv"),),
        label=label,
        native_label=native,
        licence_tag="ODbL-1.0",
        options=tuple(_EMOTIONS.values()),
        text=_SENTENCES[sentence],
        label_rule=options.labels,
        group_keys={"actor": f"crema_d-{actor}", "sentence": sentence, "level": level},
    )
    yield from emotion_rows.asked(row, options)


def _label(
    name: str, intended: str, votes: Mapping[str, str] | None
) -> tuple[str, str, tuple[str, str] | None]:
    """(native label, canonical label, None), or empty labels and (reject reason, detail)."""
    if votes is None:
        if intended in _EMOTIONS:
            return intended, _EMOTIONS[intended], None
        return "", "", ("unknown_label", f"emotion {intended} is not one of {', '.join(_EMOTIONS)}")
    vote = votes.get(name)
    if not vote:
        return "", "", ("bad_row", "summaryTable.csv has no MultiModalVote for it; fetch that file again")
    if vote in _VOTES:
        return vote, _VOTES[vote], None
    if set(vote.split(":")) <= set(_VOTES):
        return (
            "",
            "",
            ("source_rule", f"the crowd is divided ({vote}), so it has no label under labels = crowd"),
        )
    return "", "", ("unknown_label", f"MultiModalVote {vote[:80]!r} is not of {', '.join(_VOTES)}")
