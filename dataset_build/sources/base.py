"""What every source module offers, and how its rows become records and rejects.

An adapter is a module, not a class: constants that describe the set, an `Options` model, and `read`. It drives from
the annotation file (`sources.readers`), never from a directory listing unless the folders are the labels, opens no
media, and yields every row that describes an item: as a `Record` (one per sub-task it serves) or as a `Reject` that
says why not. A row that serves k sub-tasks is k items, its rejects too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from dataset_build.schema import Record, Reject

# How pictures of a source look, which decides what a perceptual hash can say about them (`dataset_build.dedup`).
# memes: the same picture with other words is another item. clips: neighbouring utterances show the same scene.
# takes: clips of actors who say the same few sentences before the same wall.
Pictures = Literal["photographs", "drawings", "cards", "memes", "clips", "takes"]

# official: records carry their split (val is carved from train where the source has none);
# folds: k-fold by group; shares: test and val shares by group.
SplitMode = Literal["official", "folds", "shares"]

# What a label is about, in the optional constant `ASKS` of an adapter, which decides how it is asked
# (`dataset_build.instructions`): expressed (the default): by somebody who is seen or heard; evoked: in those who look
# at the picture; posted: why somebody posted it.
Asks = Literal["expressed", "evoked", "posted"]


class Options(BaseModel):
    """The options of an adapter; a source without any uses this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Adapter(Protocol):
    """A source module."""

    NAME: str
    VERSION: str  # raise it when `read` gives other records for the same files
    TITLE: str
    LICENCE: str
    CITATION: str
    LIMITS: str  # what these data cannot show; printed in the dataset card
    SIZE: str  # what the published set holds, e.g. "118,102 images"
    DOWNLOAD: str  # what to ask for or fetch, from whom, and which files the root must hold
    # Published rows per split ("all" where there is none): a difference is a warning.
    EXPECTED: dict[str, int]
    SUB_TASKS: tuple[str, ...]
    PICTURES: Pictures
    SPLIT: SplitMode  # the default one; see `split_mode`
    GROUP_KEY: str  # the key of Record.group_keys whose groups never straddle two splits
    DEMONSTRATION: bool
    Options: type[BaseModel]

    def read(self, root: str, options: Any) -> Iterator[Record | Reject]:
        """All items of the source, lazily and in the annotation's order. Raises BuildError without an annotation."""
        ...


def split_mode(adapter: Adapter, options: Any) -> SplitMode:
    """How the source is split: its `SPLIT`, unless its options have a field `split` that its `SPLIT_MODES` maps."""
    modes: dict[str, SplitMode] = getattr(adapter, "SPLIT_MODES", {})
    return modes.get(getattr(options, "split", ""), adapter.SPLIT)


def rejects(
    uid: str, source: str, split: str | None, sub_tasks: Sequence[str], reason: str, detail: str
) -> Iterator[Reject]:
    """One Reject per sub-task that the row would have served, with the uids its records would have had."""
    for sub_task in sub_tasks:
        yield Reject(uid_for(uid, sub_task, sub_tasks), source, split, sub_task, reason, detail)


def uid_for(uid: str, sub_task: str, sub_tasks: Sequence[str]) -> str:
    """The uid of one sub-task's record of a row: the row's own where it serves one, else `:<sub_task>` appended."""
    return uid if len(sub_tasks) == 1 else f"{uid}:{sub_task}"


class EmotionOptions(Options):
    """How emotion rows are asked: `closed` (emo_c), `open` (emo_o), `both` (two records a row), or `mixed`.

    `mixed` asks a share `open_share` of the rows openly and the others closed, drawn from a hash of the uid, so that
    each row is used once.
    """

    ask: Literal["closed", "open", "both", "mixed"] = "closed"
    open_share: float = Field(0.2, ge=0, le=1)

    def sub_tasks(self, uid: str) -> tuple[str, ...]:
        """The sub-tasks of the row with this uid (the one without a sub-task suffix)."""
        if self.ask == "both":
            return ("emo_c", "emo_o")
        if self.ask == "mixed":
            draw = int.from_bytes(hashlib.sha256(f"open\x1f{uid}".encode()).digest()[:8], "big") / 2**64
            return ("emo_o",) if draw < self.open_share else ("emo_c",)
        return ("emo_o",) if self.ask == "open" else ("emo_c",)
