"""Checks that turn a record into a Reject before any media is opened."""

from __future__ import annotations

import functools

from dataset_build import schema
from dataset_build.instructions.chat_markers import plain
from dataset_build.schema import Record, Reject

MAX_TEXT_CHARS = 20_000


def escaped(text: str) -> str:
    """The text with half surrogate pairs (from JSON's escapes, or undecodable file names) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def reject(record: Record, reason: str, detail: str) -> Reject:
    """A Reject of the record; a split that is none of ours does not go with it."""
    split = record.split if record.split in schema.SPLITS else None
    return Reject(record.uid, record.source, split, record.sub_task, reason, escaped(detail))


@functools.lru_cache(maxsize=1024)
def _unsayable(option: str) -> bool:
    """Whether an option is nothing, or something that `plain` would change in a text: it must be shown exactly."""
    return not option or plain(option) != option


def check(record: Record) -> Reject | None:
    """The first thing that is wrong with a record, or None."""
    if record.sub_task not in schema.SUB_TASKS:
        return reject(
            record, "bad_row", f"sub_task {record.sub_task!r} is not one of {', '.join(schema.SUB_TASKS)}"
        )
    if record.split is not None and record.split not in schema.SPLITS:
        return reject(record, "bad_row", f"split {record.split!r} is not one of {', '.join(schema.SPLITS)}")
    closed = record.sub_task in schema.CLOSED_SUB_TASKS
    if closed and not record.options:
        return reject(record, "bad_row", f"{record.sub_task} is closed, but the record has no options")
    if closed and (len(set(record.options)) < len(record.options) or any(map(_unsayable, record.options))):
        shown = ", ".join(map(repr, record.options))
        return reject(record, "bad_row", f"options must be different plain words, found {shown[:300]}")
    wrong = [
        label for label in (record.label, *record.other_labels) if closed and label not in record.options
    ]
    if wrong or not record.label.strip():
        shown = ", ".join(map(repr, wrong)) or repr(record.label)
        return reject(
            record, "unknown_label", f"label {shown} is not among {', '.join(record.options) or 'any words'}"
        )
    if not record.media and not record.text.strip():
        return reject(record, "bad_row", "neither media nor text")
    length = len(record.text) + len(record.speaker) + len(record.ocr_text)
    length += sum(len(turn.speaker) + len(turn.text) for turn in record.context)
    if length > MAX_TEXT_CHARS:
        return reject(record, "too_large", f"{length} characters of text; the limit is {MAX_TEXT_CHARS}")
    for ref in record.media:
        if ref.kind not in schema.PLACEHOLDERS:
            return reject(record, "bad_row", f"{ref.path}: kind {ref.kind!r} is not image, video or audio")
        start, end = ref.start_s, ref.end_s
        if (start is not None and start < 0) or (end is not None and end <= (start or 0.0)):
            return reject(record, "bad_time_range", f"{ref.path}: start {start}, end {end}")
    return None
