"""Rows of emotion sources: one item for each way in which a row is asked (`base.EmotionOptions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dataset_build.schema import Record, Reject
from dataset_build.sources import base


def asked(row: Record, options: base.EmotionOptions) -> Iterator[Record]:
    """The records of a row. `row` has the row's own uid and the whole vocabulary as its options; its sub-task is any."""
    sub_tasks = options.sub_tasks(row.uid)
    for sub_task in sub_tasks:
        yield dataclasses.replace(
            row,
            uid=base.uid_for(row.uid, sub_task, sub_tasks),
            sub_task=sub_task,
            options=row.options if sub_task == "emo_c" else (),
        )


def refused(
    uid: str, split: str | None, options: base.EmotionOptions, reason: str, detail: str
) -> Iterator[Reject]:
    """The rejects of a row that `asked` would have made records of; the source's name is the uid's first part."""
    yield from base.rejects(uid, uid.split("/", 1)[0], split, options.sub_tasks(uid), reason, detail)
