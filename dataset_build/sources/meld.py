"""MELD: which emotion does the speaker of this line of *Friends* express? (clip, sound and words)

Layout (github.com/declare-lab/MELD, MELD.Raw.tar.gz): `{train,dev,test}_sent_emo.csv` at the root, in a folder of the
split's name, or in `data/MELD/` as in the repository; the clips of the inner archives in `train_splits/`,
`dev_splits_complete/` and `output_repeated_splits_test/`, each of which may lie in a folder of the split's name. A clip
is `diaD_uttU.mp4`, unpadded; dialogues count from 0 again in every split, so (split, dialogue, utterance) is the key.
`Sr No.` is none: it repeats, and MELD_Dyadic lacks it. Utterance numbers have gaps.

Known dirt. Bad clips, found as missing_media or undecodable when a build opens them: train dia125_utt3, dev dia110_utt7,
test dia279_utt15. Files without a row (dev dia66_utt9, dia49_utt4, dia49_utt5, test dia108_utt2, `final_videos_test…`)
are never looked at. Older copies hold Windows-1252 bytes, which `readers.text` mends. Some clips are cut wrongly or show
another moment than the text.

`StartTime` and `EndTime` are positions in the episode, not in the clip, so they are not read: a row whose end is not
after its start (test dia155_utt3) is kept as long as its clip decodes. Very long clips meet the recipe's
`media.max_seconds`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, emotion_rows, readers

NAME = "meld"
VERSION = "1"
TITLE = "MELD: emotions in dialogues of a sitcom"
LICENCE = "GPL-3.0 for the repository and its annotation; the clips are Friends (third-party copyright), no redistribution"
CITATION = (
    "Poria et al., MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations, ACL 2019"
)
LIMITS = (
    "One sitcom: the official split keeps dialogues apart but not episodes or speakers (2,609 of 2,610 test lines are of "
    "episodes that are also in training). Laughter of the audience is on the sound track. Use split: leave_season_out "
    "for a stricter protocol."
)
SIZE = "13,708 utterances of 1,432 dialogues"
DOWNLOAD = (
    "MELD.Raw.tar.gz through github.com/declare-lab/MELD, the three archives in it unpacked beside the CSV files; root: "
    "that folder"
)
EXPECTED = {"train": 9989, "val": 1109, "test": 2610}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {"official": "official", "leave_season_out": "folds"}
GROUP_KEY = "dialogue"
DEMONSTRATION = False

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "Season", "Episode")
_SPLITS = {"train": "train", "dev": "val", "test": "test"}
_TOPS = ("", "MELD.Raw/")
_CLIP_FOLDERS = {
    "train": ("train_splits",),
    "dev": ("dev_splits_complete", "dev_splits"),
    "test": ("output_repeated_splits_test", "test_splits"),
}


class Options(base.EmotionOptions):
    """`context_turns`: how many earlier lines of the dialogue go with a row.

    `split`: the official one, or `leave_season_out`, nine folds of one season each (Record.fold = season − 1).
    """

    context_turns: int = Field(5, ge=0, le=100)
    split: Literal["official", "leave_season_out"] = "official"


class _Line(NamedTuple):
    """A row of the table that can be told apart from the others."""

    row: readers.Row
    dialogue: int
    utterance: int
    season: int
    episode: int

    @property
    def turn(self) -> Turn:
        return Turn(self.row.cells["Speaker"].strip(), self.row.cells["Utterance"].strip())


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    tables = {
        part: readers.find(
            root,
            *(
                f"{top}{folder}{part}_sent_emo.csv"
                for top in _TOPS
                for folder in ("", f"{part}/", "data/MELD/", "data/MELD_Dyadic/")
            ),
        )
        for part in _SPLITS
    }
    for part, path in tables.items():
        yield from _part(root, path, part, options)


def clip_folder(root: str, part: str) -> str:
    """The folder with the clips of `train`, `dev` or `test`; the first possible name where none is there."""
    candidates = [
        f"{top}{folder}{name}" for top in _TOPS for folder in ("", f"{part}/") for name in _CLIP_FOLDERS[part]
    ]
    return next((folder for folder in candidates if readers.exists(root, folder)), candidates[0])


def _part(root: str, path: str, part: str, options: Options) -> Iterator[Record | Reject]:
    folder = clip_folder(root, part)
    rows = [_line(row) for row in readers.table(root, path, _COLUMNS)]
    turns: dict[int, list[tuple[int, Turn]]] = defaultdict(list)
    for line in rows:
        if isinstance(line, _Line):
            turns[line.dialogue].append((line.utterance, line.turn))
    for dialogue in turns.values():
        dialogue.sort(key=lambda numbered: numbered[0])
    for line in rows:
        if isinstance(line, _Line):
            earlier = [turn for number, turn in turns[line.dialogue] if number < line.utterance]
            context = tuple(earlier[max(0, len(earlier) - options.context_turns) :])
            yield from _items(path, _SPLITS[part], f"{folder}/", line, context, options)
        else:
            number, problem = line
            uid = f"{NAME}/{_SPLITS[part]}/row-{number}"
            detail = f"{path} row {number}: {problem}; fetch the file again"
            yield from emotion_rows.refused(uid, _SPLITS[part], options, "bad_row", detail)


def _line(row: readers.Row) -> _Line | tuple[int, str]:
    """The row with its numbers read, or its number and what is wrong with it."""
    if row.problem:
        return row.line, row.problem
    names = ("Dialogue_ID", "Utterance_ID", "Season", "Episode")
    numbers = [readers.whole(row.cells[name]) for name in names]
    for name, number in zip(names, numbers):
        if number is None or number < 0:
            return row.line, f"{name} is {row.cells[name][:80]!r}, expected a whole number"
    dialogue, utterance, season, episode = (int(number or 0) for number in numbers)
    if not 1 <= season <= 99:  # it becomes a fold
        return row.line, f"Season is {season}, expected 1 to 99"
    return _Line(row, dialogue, utterance, season, episode)


def _items(
    path: str, split: str, folder: str, line: _Line, context: Sequence[Turn], options: Options
) -> Iterator[Record | Reject]:
    clip = f"dia{line.dialogue}_utt{line.utterance}"
    uid = f"{NAME}/{split}/{clip}"
    native = line.row.cells["Emotion"]
    label = labels.emotion(native)
    if label not in labels.EKMAN_NEUTRAL:
        detail = (
            f"{path} row {line.row.line} ({clip}): Emotion {native[:80]!r} is not one of "
            f"{', '.join(labels.EKMAN_NEUTRAL)}"
        )
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    row = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(MediaRef("video", f"{folder}{clip}.mp4"),),
        label=label,
        native_label=native,
        licence_tag="meld-research",
        options=labels.EKMAN_NEUTRAL,
        text=line.turn.text,
        speaker=line.turn.speaker,
        context=tuple(context),
        fold=line.season - 1 if options.split == "leave_season_out" else None,
        group_keys={
            "dialogue": f"meld-{split}-{line.dialogue}",
            "season": f"friends/s{line.season:02d}",
            "episode": f"friends/s{line.season:02d}e{line.episode:02d}",
            "speaker": f"friends/{line.turn.speaker.lower()}",
            "show": "friends",
        },
    )
    yield from emotion_rows.asked(row, options)
