"""MUStARD++: is the utterance sarcastic, and what does the speaker feel? (clips of five television shows)

Layout (github.com/cfiltnlp/MUStARD_Plus_Plus): `mustard++_text.csv` with one row per line of dialogue. KEY
`<SCENE>_c_<n>` is a line of context, `<SCENE>_u` the utterance; only the latter has labels and is an item. Clips:
`final_utterance_videos/<SCENE>_u.mp4` and `final_context_videos/<SCENE>_c.mp4`.

Two emotions are annotated: the explicit one, which is shown, and the implicit one, which is meant (and may be ridicule).
They differ for sarcastic utterances. `emotion_label` says which is asked for; the default is the implicit one.

Known dirt, and what becomes of it:
* The utterance of scene 1_S11E03_067 has `Disgust` as its KEY. A row with a sarcasm label is an utterance, whatever its KEY.
* The speakers of context lines are `-` in many of the scenes that were added to MUStARD, as far as we saw only in ones
  that are not sarcastic: whether names are there gives the label away. So context comes without names unless
  `context_speakers` asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from dataset_build import labels
from dataset_build.labels import YES_NO
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, readers
from dataset_build.sources.sitcom_lines import Scene, dialogues, mend

NAME = "mustard_pp"
VERSION = "1"
TITLE = "MUStARD++: sarcasm and emotion in television dialogues"
LICENCE = "no licence published; clips of television shows, research use, no redistribution"
CITATION = "Ray et al., A Multimodal Corpus for Emotion Recognition in Sarcasm, LREC 2022"
LIMITS = (
    "1,202 utterances of five comedies, no official split; 688 of them are MUStARD's. Context was cut and written down "
    "differently in sarcastic and other scenes, so text alone can tell them apart to some degree."
)
SIZE = "1,202 utterances, 601 of them sarcastic; each with an emotion"
DOWNLOAD = (
    "mustard++_text.csv of github.com/cfiltnlp/MUStARD_Plus_Plus, and the videos linked there; root: the folder with "
    "the table and final_utterance_videos/"
)
EXPECTED = {"all": 1202}
SUB_TASKS = ("sarcasm", "emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "folds"
GROUP_KEY = "dialogue"
DEMONSTRATION = False

# What each of the two annotations may say.
EXPLICIT = (
    "frustration", "neutral", "disgust", "anger", "sadness", "joy", "excitement", "surprise", "fear",
)  # fmt: skip
IMPLICIT = ("ridicule", *EXPLICIT)

_COLUMNS = (
    "SCENE", "KEY", "SENTENCE", "SPEAKER", "SHOW", "Sarcasm", "Implicit_Emotion", "Explicit_Emotion",
)  # fmt: skip
_CONTEXT_KEY = re.compile(r"_c_(\d+)$")
_EPISODE = re.compile(r"_(S\d+E\d+)_")
_UNKNOWN_SPEAKERS = ("", "-")


class Options(base.EmotionOptions):
    """`emotion_label`: the emotion that is asked for. `context_video`: the context's clip as a second video.

    `context_speakers`: names before the lines of context, although their absence gives away what is not sarcastic.
    """

    emotion_label: Literal["implicit", "explicit"] = "implicit"
    context_video: bool = False
    context_speakers: bool = False


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, "mustard++_text.csv", "data/mustard++_text.csv")
    rows = list(readers.table(root, path, _COLUMNS, delimiter=","))
    context: dict[str, list[tuple[int, Turn]]] = {}
    utterances: dict[str, str] = {}
    for row in rows:
        scene, number = row.cells.get("SCENE", ""), _context_number(row)
        if number is None:
            utterances.setdefault(scene, row.cells.get("SENTENCE", ""))
        elif not row.problem:
            context.setdefault(scene, []).append((number, _turn(row, options)))
    turns = {
        scene: tuple(turn for _, turn in sorted(found, key=lambda pair: pair[0]))
        for scene, found in context.items()
    }
    shows = {row.cells.get("SCENE", ""): row.cells.get("SHOW", "") for row in rows}
    dialogue_of = dialogues(
        Scene(
            scene,
            show,
            [utterances.get(scene, ""), *(turn.text for turn in turns.get(scene, ()))],
            _episode(scene),
        )
        for scene, show in shows.items()
    )
    clips = _clip_folder(root, "final_utterance_videos")
    context_clips = _clip_folder(root, "final_context_videos")
    told: set[str] = set()
    for row in rows:
        where, scene = f"{path}, row {row.line}", row.cells.get("SCENE", "")
        if row.problem:
            yield from _rejects(f"{NAME}/all/row-{row.line}", options, "bad_row", f"{where}: {row.problem}")
        elif _context_number(row) is None:
            media = [MediaRef("video", f"{clips}/{scene}_u.mp4")]
            if options.context_video:
                media.append(MediaRef("video", f"{context_clips}/{scene}_c.mp4"))
            yield from _items(
                where, row.cells, media, turns.get(scene, ()), dialogue_of.get(scene, ""), options
            )
        elif scene not in utterances and scene not in told:
            told.add(scene)
            detail = f"{where}: scene {scene!r} has lines of context but no row {scene}_u with the utterance"
            yield from _rejects(f"{NAME}/all/{scene}", options, "bad_row", detail)


def _clip_folder(root: str, name: str) -> str:
    """The archive of the clips holds a folder all_videos/."""
    return readers.folder(
        root, *(f"{above}{name}" for above in ("", "all_videos/", "videos/", "data/videos/"))
    )


def _context_number(row: readers.Row) -> int | None:
    """The place of a line of context; None for an utterance, which is a row with a sarcasm label or without such a KEY."""
    found = _CONTEXT_KEY.search(row.cells.get("KEY", ""))
    if found is None or row.cells.get("Sarcasm", "").strip():
        return None
    return readers.whole(found[1]) or 0


def _turn(row: readers.Row, options: Options) -> Turn:
    speaker = row.cells["SPEAKER"].strip()
    named = options.context_speakers and speaker not in _UNKNOWN_SPEAKERS
    return Turn(speaker if named else "", mend(row.cells["SENTENCE"]))


def _episode(scene: str) -> str:
    found = _EPISODE.search(scene)
    return found[1] if found else ""


def _sub_tasks(uid: str, options: Options) -> tuple[str, ...]:
    return ("sarcasm", *options.sub_tasks(uid))


def _rejects(uid: str, options: Options, reason: str, detail: str) -> Iterator[Reject]:
    yield from base.rejects(uid, NAME, None, _sub_tasks(uid, options), reason, detail)


def _items(
    where: str,
    cells: dict[str, str],
    media: Sequence[MediaRef],
    context: tuple[Turn, ...],
    dialogue: str,
    options: Options,
) -> Iterator[Record | Reject]:
    scene, show, speaker = (cells[name].strip() for name in ("SCENE", "SHOW", "SPEAKER"))
    text = mend(cells["SENTENCE"])
    if not scene or not show or not text.strip():
        detail = f"{where}: SCENE {scene!r}, SHOW {show!r}, SENTENCE {text!r:.60}; none may be empty"
        yield from _rejects(f"{NAME}/all/{scene or where.rpartition(', ')[2]}", options, "bad_row", detail)
        return
    uid = f"{NAME}/all/{scene}"
    sub_tasks = _sub_tasks(uid, options)
    known = "" if speaker in _UNKNOWN_SPEAKERS else speaker
    groups = {"dialogue": dialogue, "scene": scene, "show": show.lower()}
    if known:
        groups["speaker"] = f"{show}/{known}".lower()
    if _episode(scene):
        groups["episode"] = f"{show}/{_episode(scene)}".lower()
    for sub_task in sub_tasks:
        label, native, choices, rule = _label(sub_task, cells, options)
        own = base.uid_for(uid, sub_task, sub_tasks)
        if label is None:
            detail = (
                f"{where} (scene {scene}): {rule} is {native!r:.60}; expected one of {', '.join(choices)}"
            )
            yield Reject(own, NAME, None, sub_task, "unknown_label", detail)
            continue
        yield Record(
            uid=own,
            source=NAME,
            sub_task=sub_task,
            split=None,
            media=tuple(media),
            label=label,
            native_label=native,
            licence_tag="mustard-pp-research",
            options=() if sub_task == "emo_o" else choices,
            text=text,
            speaker=known,
            context=context,
            label_rule=rule,
            group_keys=groups,
        )


def _label(
    sub_task: str, cells: dict[str, str], options: Options
) -> tuple[str | None, str, tuple[str, ...], str]:
    """Canonical label (None where the table's word is none), the table's word, the choices, and the column it is from."""
    if sub_task == "sarcasm":
        native = cells["Sarcasm"].strip()
        return labels.yes_no(readers.whole(native)), native, YES_NO, "Sarcasm"
    column, choices = {
        "implicit": ("Implicit_Emotion", IMPLICIT),
        "explicit": ("Explicit_Emotion", EXPLICIT),
    }[options.emotion_label]
    native = cells[column].strip()
    label = labels.emotion(native)
    return (label if label in choices else None), native, choices, column
