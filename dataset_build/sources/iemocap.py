"""IEMOCAP: which emotion does this actor express in this turn of the dialogue? (split-screen video, sound, words)

Layout (IEMOCAP_full_release): for each `Session{1..5}/dialog/`, the labels in `EmoEvaluation/<dialog>.txt`, the words in
`transcriptions/<dialog>.txt` and one video a dialogue in `avi/DivX/<dialog>.avi`. Of the label files only rows of the
form `[start - end] TAB turn TAB emotion TAB [v, a, d]` are items; what starts otherwise are comments and single
raters. Some lines of the transcripts have another form: they are no turns, and a turn without one has no text.

The video shows both actors side by side. The sixth character of the dialogue's name says who is on the left (`F` or
`M`), the fourth character from the end of the turn's name who speaks: the crop is that half.

`label_set: four` is the usual protocol (anger; happiness and excitement as joy; sadness; neutral: 5,531 turns) and leaves
the other emotions by rule; `all` keeps nine. `xxx` (the raters disagree) and `oth` leave by rule in both.

Each session has a pair of actors of its own, so the folds are the five sessions; `split: session_5` tests on Session 5.
Scripted dialogues are played again in every session.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import Crop, MediaRef, Record, Reject, Turn
from dataset_build.sources import base, emotion_rows, readers

NAME = "iemocap"
VERSION = "1"
TITLE = "IEMOCAP: emotions in dialogues of two actors"
LICENCE = "signed release form of the University of Southern California, research use, no redistribution"
CITATION = "Busso et al., IEMOCAP: Interactive emotional dyadic motion capture database, Language Resources and Evaluation 2008"
LIMITS = (
    "Ten actors in a laboratory, partly from a script that every pair plays: a model can know the words without seeing "
    "the emotion. The faces carry motion-capture markers."
)
SIZE = "10,039 turns of 151 dialogues"
DOWNLOAD = "IEMOCAP_full_release after the release form at sail.usc.edu/iemocap; root: the folder with Session1/ … Session5/"
EXPECTED = {"all": 10_039}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "takes"
SPLIT: base.SplitMode = "folds"
SPLIT_MODES: dict[str, base.SplitMode] = {"leave_session_out": "folds", "session_5": "official"}
GROUP_KEY = "session"
DEMONSTRATION = False

_SESSIONS = (1, 2, 3, 4, 5)
# The usual four-class protocol, and every emotion that has a name; codes of the source to canonical labels.
_FOUR = {"ang": "anger", "hap": "joy", "exc": "joy", "sad": "sadness", "neu": "neutral"}
_ALL = {
    code: str(labels.emotion(code))
    for code in ("ang", "hap", "sad", "neu", "exc", "fru", "fea", "sur", "dis")
}
_WITHOUT = {"xxx": "the raters disagree", "oth": "another emotion, without a name"}
_SECONDS = r"(\d{1,6}(?:\.\d{1,9})?)"
_RANGE = re.compile(rf"\[{_SECONDS} - {_SECONDS}\]", re.ASCII)
_SAID = re.compile(rf"(\S+) \[{_SECONDS}-{_SECONDS}\]:(.*)", re.ASCII)
_SPEAKERS = {"F": "Woman", "M": "Man"}
_LEFT = Crop(0.0, 0.0, 0.5, 1.0, "share")
_RIGHT = Crop(0.5, 0.0, 1.0, 1.0, "share")


class Options(base.EmotionOptions):
    """`label_set`: see above. `context_turns`: how many earlier turns of the dialogue go with a row."""

    label_set: Literal["four", "all"] = "four"
    context_turns: int = Field(5, ge=0, le=100)
    split: Literal["leave_session_out", "session_5"] = "leave_session_out"


class _Said(NamedTuple):
    """A line of a transcript."""

    start_s: float
    turn: str
    text: str


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    top = posixpath.dirname(
        readers.find(
            root, "Session1/dialog", "IEMOCAP_full_release/Session1/dialog", what="folder Session1/dialog"
        )
    ).removesuffix("Session1")
    for session in _SESSIONS:
        folder = readers.find(root, f"{top}Session{session}/dialog", what=f"session {session}")
        evaluations = [
            path
            for path in readers.listing(root, f"{folder}/EmoEvaluation")
            if posixpath.dirname(path) == f"{folder}/EmoEvaluation" and path.endswith(".txt")
        ]
        if not evaluations:
            raise BuildError(f"{root}/{folder}/EmoEvaluation: no label files; unpack the whole release")
        for path in evaluations:
            yield from _dialogue(root, folder, path, session, options)


def _dialogue(root: str, folder: str, path: str, session: int, options: Options) -> Iterator[Record | Reject]:
    dialogue = posixpath.basename(path).removesuffix(".txt")
    said = _transcript(readers.text(root, f"{folder}/transcriptions/{dialogue}.txt"))
    video = f"{folder}/avi/DivX/{dialogue}.avi"
    for number, line in enumerate(readers.text(root, path).splitlines(), 1):
        if line.startswith("[") or "\tSes" in line:  # the second: its time range is damaged
            where = f"{path} line {number}"
            yield from _items(where, line, dialogue, session, video, said, options)


def _transcript(content: str) -> list[_Said]:
    """The turns of a transcript in the order of time."""
    found = (_SAID.fullmatch(line.strip()) for line in content.splitlines())
    said = [_Said(float(match[2]), match[1], match[4].strip()) for match in found if match]
    return sorted(said, key=lambda line: (line.start_s, line.turn))


def _split(session: int, options: Options) -> str | None:
    if options.split == "leave_session_out":
        return None
    return "test" if session == 5 else "train"


def _items(
    where: str,
    line: str,
    dialogue: str,
    session: int,
    video: str,
    said: Sequence[_Said],
    options: Options,
) -> Iterator[Record | Reject]:
    split = _split(session, options)
    place = f"{NAME}/{split or 'all'}"
    cells = line.split("\t")
    seconds = _RANGE.fullmatch(cells[0].strip())
    turn = cells[1].strip() if len(cells) == 4 else ""
    problem = _problem(seconds, turn, dialogue, session)
    if problem or seconds is None:
        uid = f"{place}/{dialogue}-line-{where.rsplit(' ', 1)[1]}"
        detail = f"{where}: {problem}, found {line[:120]!r}"
        yield from emotion_rows.refused(uid, split, options, "bad_row", detail)
        return
    uid = f"{place}/{turn}"
    code = cells[2].strip()
    vocabulary = _FOUR if options.label_set == "four" else _ALL
    if code not in vocabulary:
        detail = f"{where} ({turn}): "
        if code in _WITHOUT:
            detail += f"{code}: {_WITHOUT[code]}"
        elif code in _ALL:
            detail += f"{code} is none of the four classes (option label_set = four)"
        else:
            detail += f"emotion {code[:80]!r} is not one of {', '.join((*_ALL, *_WITHOUT))}"
        reason = "source_rule" if code in _WITHOUT or code in _ALL else "unknown_label"
        yield from emotion_rows.refused(uid, split, options, reason, detail)
        return
    start, end = float(seconds[1]), float(seconds[2])
    row = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(MediaRef("video", video, start, end, _LEFT if turn[-4] == dialogue[5] else _RIGHT),),
        label=vocabulary[code],
        native_label=code,
        licence_tag="iemocap-release",
        options=tuple(dict.fromkeys(vocabulary.values())),
        text=next((earlier.text for earlier in said if earlier.turn == turn), ""),
        speaker=_SPEAKERS[turn[-4]],
        context=_context(said, turn, start, options.context_turns),
        fold=session - 1 if split is None else None,
        label_rule=options.label_set,
        group_keys=_groups(dialogue, turn, session),
    )
    yield from emotion_rows.asked(row, options)


def _problem(seconds: re.Match[str] | None, turn: str, dialogue: str, session: int) -> str:
    if seconds is None or not turn:
        return "expected `[start - end] TAB turn TAB emotion TAB [v, a, d]`"
    if not re.match(f"Ses0{session}[FM]_", dialogue):
        return f"expected a dialogue of session {session}, named as Ses0{session}F_impro01"
    if not turn.startswith(f"{dialogue}_") or turn[-4] not in _SPEAKERS:
        return f"expected a turn of {dialogue}, named as {dialogue}_F000"
    return ""


def _context(said: Sequence[_Said], turn: str, start: float, limit: int) -> tuple[Turn, ...]:
    earlier = [line for line in said if line.start_s < start and line.turn != turn and line.text]
    return tuple(
        Turn(_SPEAKERS.get(line.turn[-4:][:1], ""), line.text)
        for line in earlier[max(0, len(earlier) - limit) :]
    )


def _groups(dialogue: str, turn: str, session: int) -> dict[str, str]:
    # Ses05M_script01_1b and Ses01F_script01_1 are the same scene of the script.
    scene = re.sub(r"[a-z]$", "", dialogue.partition("_")[2])
    return {
        "session": f"iemocap-{session}",
        "dialogue": f"iemocap-{dialogue}",
        "actor": f"iemocap-{session}{turn[-4]}",
        "scene": f"iemocap-{scene}",
    }
