"""MIntRec2.0: what does the speaker want? (utterances of three sitcoms as clips, in dialogues, 30 intents)

Layout (github.com/thuiar/MIntRec2.0): `in-scope/{train,dev,test}.tsv` with the columns Dialogue_id, Utterance_id, Text,
Label, Start_timestamp, End_timestamp, Source, speakername, tab-separated and without quoting; the utterances that no
intent fits (label UNK) are in `out-of-scope/MIntRec2.0-OOD/`, both together in `total/`. A clip is called
`dia<D>_utt<U>.mp4`; the raw clips are separate downloads without a documented place, so they are looked up by name
anywhere below the root. The timestamps are those of the broadcast, not of the clip, and are not read.

Earlier turns come from `total/`, else from the in-scope and out-of-scope files together; where only the in-scope files
are there, the turns between them are missing from the context, as they are from the data.

Known dirt: one speaker is Gleen or Glenn; extras are called "friends person1" and the like, anew in each dialogue; a
text holds a character from Unicode's private use area (left out: it has no meaning outside a font); short lines are
spoken in several splits.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import Field, field_validator

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, readers

NAME = "mintrec2"
VERSION = "1"
TITLE = "MIntRec2.0: intents in sitcom dialogues"
LICENCE = "CC BY-NC-SA 4.0; the clips are the broadcasters', no redistribution"
CITATION = (
    "Zhang et al., MIntRec2.0: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and Out-of-scope "
    "Detection in Conversations, ICLR 2024"
)
LIMITS = (
    "Dialogues are disjoint between splits, shows and main characters are not. Out-of-scope utterances are no part of "
    "the closed question; they serve as context."
)
SIZE = "9,304 in-scope clips (15,040 utterances with those out of scope)"
DOWNLOAD = (
    "annotations and raw in-scope videos (13 GB) through the links of github.com/thuiar/MIntRec2.0; root: the folder "
    "with in-scope/ and, anywhere below it, the clips"
)
EXPECTED = {"train": 6_165, "val": 1_106, "test": 2_033}
SUB_TASKS = ("intent",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "dialogue"
DEMONSTRATION = False

OUT_OF_SCOPE = "UNK"
_COLUMNS = ("Dialogue_id", "Utterance_id", "Text", "Label", "Source", "speakername")
_FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}
_TOPS = ("", "MIntRec2.0/")
_OOD = "out-of-scope/MIntRec2.0-OOD"
_SPEAKERS = {"Gleen": "Glenn"}
# As MUStARD calls the series, so that two sources that share a show are seen to.
_SHOWS = {"bigbang": "bbt"}
_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
_PLACES = ("split", "dialogue", "utterance")


class Options(base.Options):
    """`context_turns`: how many earlier turns of the dialogue go with an utterance. `out_of_scope`: also read the
    out-of-scope files; their rows leave as source_rule, because no intent of the list is right for them. `clip`: where
    a clip is, with {split}, {dialogue} and {utterance}; without it, clips are looked up by name below the root.
    """

    context_turns: int = Field(8, ge=0, le=100)
    out_of_scope: bool = False
    clip: str = ""

    @field_validator("clip")
    @classmethod
    def _known_places(cls, value: str) -> str:
        """Only plain {split}, {dialogue}, {utterance}: a template comes from a recipe and must not reach into objects."""
        fields = [
            (name, conversion, spec)
            for _, name, spec, conversion in string.Formatter().parse(value)
            if name is not None
        ]
        wrong = [name for name, conversion, spec in fields if name not in _PLACES or conversion or spec]
        if wrong or (value and not {"dialogue", "utterance"} <= {name for name, _, _ in fields}):
            raise ValueError(
                f"expected a path with {{dialogue}} and {{utterance}} (and {{split}}), found {value!r}"
            )
        return value


class _Said(NamedTuple):
    utterance: int
    turn: Turn


class _Dialogues(NamedTuple):
    """What goes with the rows of a split: turns by dialogue, in order, and the clips found by name."""

    turns: Mapping[int, list[_Said]]
    clips: Mapping[str, str]


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    candidates = {
        split: [top + folder + name for top in _TOPS for folder in ("in-scope/", "total/", "")]
        for split, name in _FILES.items()
    }
    paths = {split: readers.find(root, *names) for split, names in candidates.items()}
    clips = {} if options.clip else _clips(root)
    for split, path in paths.items():
        dialogues = _Dialogues(_turns(root, path, _FILES[split]), clips)
        yield from _rows(root, path, split, dialogues, options)
        beside = _beside(root, path, f"{_OOD}/{_FILES[split]}")
        if options.out_of_scope and beside and "in-scope/" in path:
            yield from _rows(root, beside, split, dialogues, options)


def _clips(root: str) -> dict[str, str]:
    """Clip name → its path; of several with one name, the first in the order of their paths."""
    found: dict[str, str] = {}
    for path in readers.listing(root):
        if path.endswith(".mp4"):
            found.setdefault(path.rpartition("/")[2], path)
    return found


def _beside(root: str, path: str, other: str) -> str:
    """A file of the set next to the one that was found; empty where it is not there."""
    top = next(top for top in sorted(_TOPS, reverse=True) if path.startswith(top))
    return top + other if readers.exists(root, top + other) else ""


def _turns(root: str, path: str, name: str) -> dict[int, list[_Said]]:
    total = _beside(root, path, f"total/{name}")
    files = [total] if total else [path, _beside(root, path, f"{_OOD}/{name}")]
    turns: dict[int, dict[int, Turn]] = defaultdict(dict)
    for file in filter(None, files):
        for row in readers.table(root, file, _COLUMNS, delimiter="\t", quoting=False):
            dialogue, utterance = _ids(row)
            if not row.problem and dialogue is not None and utterance is not None:
                turns[dialogue].setdefault(utterance, Turn(_speaker(row), _text(row)))
    return {
        dialogue: [_Said(utterance, said[utterance]) for utterance in sorted(said)]
        for dialogue, said in turns.items()
    }


def _rows(
    root: str, path: str, split: str, dialogues: _Dialogues, options: Options
) -> Iterator[Record | Reject]:
    for row in readers.table(root, path, _COLUMNS, delimiter="\t", quoting=False):
        yield _item(path, split, row, dialogues, options)


def _item(
    path: str, split: str, row: readers.Row, dialogues: _Dialogues, options: Options
) -> Record | Reject:
    where = f"{path} row {row.line}"
    dialogue, utterance = _ids(row)
    if row.problem or dialogue is None or utterance is None:
        problem = row.problem or "Dialogue_id and Utterance_id are whole numbers"
        uid = f"{NAME}/{split}/{path.split('/')[-2] if '/' in path else 'root'}-row-{row.line}"
        return Reject(uid, NAME, split, "intent", "bad_row", f"{where}: {problem}; found {row.cells!r:.200}")
    name = f"dia{dialogue}_utt{utterance}"
    uid = f"{NAME}/{split}/{name}"
    native = row.cells["Label"]
    if native.strip() == OUT_OF_SCOPE:
        detail = f"{where} ({name}): out of scope, no intent of the list fits; kept as context of later turns"
        return Reject(uid, NAME, split, "intent", "source_rule", detail)
    label = labels.intent(native)
    if label is None:
        detail = f"{where} ({name}): label {native!r} is not one of {', '.join(labels.MINTREC2_INTENTS)}"
        return Reject(uid, NAME, split, "intent", "unknown_label", detail)
    if options.clip:
        clip = options.clip.format(split=split, dialogue=dialogue, utterance=utterance)
    else:
        clip = dialogues.clips.get(f"{name}.mp4", f"raw_data/{name}.mp4")
    before = [said.turn for said in dialogues.turns.get(dialogue, []) if said.utterance < utterance]
    return Record(
        uid=uid,
        source=NAME,
        sub_task="intent",
        split=split,
        media=(MediaRef("video", clip),),
        label=label,
        native_label=native,
        licence_tag="cc-by-nc-sa-4.0",
        options=labels.MINTREC2_INTENTS,
        text=_text(row),
        speaker=_speaker(row),
        context=tuple(before[-options.context_turns :] if options.context_turns else ()),
        group_keys=_group_keys(row, dialogue),
    )


def _group_keys(row: readers.Row, dialogue: int) -> dict[str, str]:
    native = row.cells["Source"].strip().lower()
    show = _SHOWS.get(native, native)
    keys = {"dialogue": f"dia{dialogue}"}
    if show:
        keys["show"] = show
    if _speaker(row):
        keys["speaker"] = f"{show}/{_speaker(row)}"
    return keys


def _ids(row: readers.Row) -> tuple[int | None, int | None]:
    dialogue, utterance = (readers.whole(row.cells.get(name)) for name in _COLUMNS[:2])
    return dialogue, utterance


def _text(row: readers.Row) -> str:
    return _PRIVATE_USE.sub("", row.cells["Text"])


def _speaker(row: readers.Row) -> str:
    name = row.cells["speakername"].strip()
    return _SPEAKERS.get(name, name)
