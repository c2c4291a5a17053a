"""MUStARD: is the utterance sarcastic? (clips of four television shows, with the dialogue before)

Layout (github.com/soujanyaporia/MUStARD): `sarcasm_data.json`, one object keyed by id, each
`{utterance, speaker, context: [...], context_speakers: [...], show, sarcasm}`; `split_indices.p`, five pairs of index
arrays (train, test) over the order of its keys. Clips: `utterances_final/<id>.mp4`, `context_final/<id>_c.mp4`.

Splits. `speaker_independent` (default): FRIENDS is test, the other shows are train; validation is carved from train by
speaker. `speaker_dependent`: the five published folds, in which a show, a speaker and even a dialogue lie on both sides.
Labels follow show and speaker closely (GOLDENGIRLS 39 of 40 sarcastic, SARCASMOHOLICS all), so report the first.

Known dirt: 13 utterances have Õ for an apostrophe and one has ā€™; both are mended. Some utterances repeat ("Okay?").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.labels import YES_NO
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, pickles, readers
from dataset_build.sources.sitcom_lines import Scene, dialogues, mend

NAME = "mustard"
VERSION = "1"
TITLE = "MUStARD: sarcasm in television dialogues"
LICENCE = "annotations and code MIT; clips of television shows, research use, no redistribution"
CITATION = "Castro et al., Towards Multimodal Sarcasm Detection (An _Obviously_ Perfect Paper), ACL 2019"
LIMITS = (
    "690 utterances of four comedies; label, show and speaker go together, so a speaker-only baseline is strong. "
    "Its Friends lines are also in MELD, and nearly all of it is in MUStARD++."
)
SIZE = "690 utterances, 345 of them sarcastic"
DOWNLOAD = (
    "data/ of github.com/soujanyaporia/MUStARD, and mmsd_raw_data.zip linked there; root: the folder with "
    "sarcasm_data.json (or data/sarcasm_data.json) and utterances_final/"
)
EXPECTED = {"train": 334, "test": 356, "all": 690}
SUB_TASKS = ("sarcasm",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {"speaker_independent": "official", "speaker_dependent": "folds"}
GROUP_KEY = "speaker"
DEMONSTRATION = False

TEST_SHOW = "FRIENDS"


class Options(base.Options):
    """`split`: which published protocol. `context_video`: the clip of the dialogue before comes as a second video."""

    split: Literal["speaker_independent", "speaker_dependent"] = "speaker_independent"
    context_video: bool = False


class _Row(NamedTuple):
    utterance: str
    speaker: str
    show: str
    context: tuple[Turn, ...]
    sarcasm: Any


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, "sarcasm_data.json", "data/sarcasm_data.json")
    items = [(key, _row(value)) for key, value in readers.json_value(root, path, dict).items()]
    folds = _folds(root, [key for key, _ in items]) if _in_folds(options) else None
    dialogue_of = dialogues(
        Scene(key, row.show, [row.utterance, *(turn.text for turn in row.context)])
        for key, row in items
        if isinstance(row, _Row)
    )
    clips = _clip_folder(root, "utterances_final")
    context_clips = _clip_folder(root, "context_final") if options.context_video else ""
    for key, row in items:
        split = _split(row, options)
        uid = f"{NAME}/{split or 'all'}/{key}"
        if isinstance(row, str):
            yield Reject(uid, NAME, split, "sarcasm", "bad_row", f"{path}, entry {key!r}: {row}")
        elif not isinstance(row.sarcasm, (bool, int)) or row.sarcasm not in (0, 1):
            detail = f"{path}, entry {key!r}: sarcasm is {row.sarcasm!r:.60}; expected true or false"
            yield Reject(uid, NAME, split, "sarcasm", "unknown_label", detail)
        else:
            media = [MediaRef("video", f"{clips}/{key}.mp4")]
            if options.context_video:
                media.append(MediaRef("video", f"{context_clips}/{key}_c.mp4"))
            show = row.show.lower()
            yield Record(
                uid=uid,
                source=NAME,
                sub_task="sarcasm",
                split=split,
                media=tuple(media),
                label="Yes" if row.sarcasm else "No",
                native_label="true" if row.sarcasm else "false",
                licence_tag="mustard-research",
                options=YES_NO,
                text=row.utterance,
                speaker=row.speaker,
                context=row.context,
                fold=folds[key] if folds else None,
                group_keys={
                    "speaker": f"{show}/{row.speaker.lower()}",
                    "show": show,
                    "dialogue": dialogue_of[key],
                    "scene": key,
                },
            )


def _in_folds(options: Options) -> bool:
    return options.split == "speaker_dependent"


def _split(row: _Row | str, options: Options) -> str | None:
    """None where folds decide, and for a row whose show is not known."""
    if _in_folds(options) or isinstance(row, str):
        return None
    return "test" if row.show == TEST_SHOW else "train"


def _row(value: Any) -> _Row | str:
    """The entry's fields, or what is wrong with them."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}, expected an object"
    texts: dict[str, Any] = {name: value.get(name) for name in ("utterance", "speaker", "show")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            return f"{name} is {text!r:.60}; expected a text"
    lines, speakers = value.get("context", []), value.get("context_speakers", [])
    for name, cells in (("context", lines), ("context_speakers", speakers)):
        if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
            return f"{name} is {cells!r:.60}; expected a list of texts"
    # Where the two lists differ in length, nobody knows whose name is missing: the lines stay, without names.
    names = speakers if len(speakers) == len(lines) else []
    turns = tuple(Turn(name, mend(line)) for line, name in itertools.zip_longest(lines, names, fillvalue=""))
    return _Row(mend(texts["utterance"]), texts["speaker"], texts["show"], turns, value.get("sarcasm"))


def _clip_folder(root: str, name: str) -> str:
    return readers.folder(root, name, f"mmsd_raw_data/{name}", f"data/{name}", f"data/videos/{name}")


def _folds(root: str, ids: list[str]) -> dict[str, int]:
    """The fold in which each id is a test item. Raises BuildError where the file does not fit these ids."""
    path = readers.find(root, "split_indices.p", "data/split_indices.p", what="file of published folds")
    full = storage.join(root, path)
    found: dict[str, int] = {}
    try:
        tests = [[int(place) for place in test] for _, test in pickles.load(root, path)]
        for fold, places in enumerate(tests):
            for place in places:
                if not 0 <= place < len(ids) or ids[place] in found:
                    raise ValueError(f"test index {place} of fold {fold} is out of range or used twice")
                found[ids[place]] = fold
    except BuildError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise BuildError(f"{full}: not (train, test) index arrays for {len(ids)} items: {error}") from error
    if len(found) != len(ids):
        raise BuildError(
            f"{full}: its folds test {len(found)} of {len(ids)} items; take both files from the same release"
        )
    return found
