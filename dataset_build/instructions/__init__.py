"""What is asked: a bank of paraphrases per sub-task, chosen by a hash of the uid, so stable and order-independent."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataset_build.schema import CLOSED_SUB_TASKS, PLACEHOLDERS, Record

_FOLDER = Path(__file__).resolve().parent
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Asked(NamedTuple):
    """The user's turn, the options in the order shown, and which paraphrase it was."""

    content: str
    options: tuple[str, ...]
    template_id: str


@functools.cache
def bank(sub_task: str) -> tuple[str, ...]:
    """The paraphrases of a sub-task, in the order of its file."""
    import yaml

    path = _FOLDER / f"{sub_task}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    texts = content["instructions"]
    if content["sub_task"] != sub_task or len(texts) < 20 or len(set(texts)) < len(texts):
        raise ValueError(f"{path}: expected at least 20 different instructions for {sub_task}")
    return tuple(texts)


def ask(record: Record, kinds: Sequence[str]) -> Asked:
    """The question for a record with media of these kinds: text first, the media last.

    Options come in an order drawn from the uid, so that no position is right more often than another.
    """
    texts = bank(record.sub_task)
    number = _draw(record.uid, "instruction", len(texts))
    lines = [texts[number]]
    options: tuple[str, ...] = ()
    if record.sub_task in CLOSED_SUB_TASKS:
        options = tuple(sorted(record.options, key=lambda option: _hash(record.uid, option)))
        lettered = " ".join(f"({_letter(place)}) {option}" for place, option in enumerate(options))
        lines.append(f"Options: {lettered}")
    if record.media and record.text:
        lines.append(f'Text: "{record.text}"')
    lines.append("".join(PLACEHOLDERS[kind] for kind in kinds))
    return Asked("\n".join(lines), options, f"{record.sub_task}-{number:02d}")


def _letter(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else f"A{_LETTERS[place - len(_LETTERS)]}"


def _hash(uid: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1f{uid}".encode()).digest()


def _draw(uid: str, salt: str, size: int) -> int:
    return int.from_bytes(_hash(uid, salt)[:8], "big") % size
