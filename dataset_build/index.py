"""The hash columns of a whole build, as compact arrays: what duplicates, leakage and splits are decided on.

A row of a build is its number here. Texts that repeat are held once and named by a code; those of the media and of
the utterances are digests (`dataset_build.hash_columns`) of which only "same" and "not the same" matters, so a code is
all that is kept. About 150 bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import hash_columns, schema
from dataset_build.sources.base import Pictures, SplitMode

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


class SourceFacts(NamedTuple):
    """What the decisions need to know of a source: `mode` as its options set it, and the adapter's constants."""

    mode: SplitMode
    group_key: str
    pictures: Pictures


class Row(NamedTuple):
    """One row in plain values, for callers with few of them. Texts stand for their digests here."""

    uid: str
    source: str = "s"
    sub_task: str = "emo_c"
    label: str = "a"
    group: str = ""
    split: str | None = None
    fold: int | None = None
    content: str = ""
    media: tuple[str, ...] = ()
    phash: str = ""
    text: str = ""
    text_words: int = 0
    ocr: str = ""
    ocr_words: int = 0
    show: str = ""
    n_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Index:
    """Columns of equal length, one place per converted row, in the order of the plan.

    Codes count from 0 within `source_names`, `sub_tasks`, `labels` ("sub_task/label") and `group_names`; groups of
    different group keys are different. −1 is "none" in `split`, `fold`, `text`, `ocr` and `show`. The media of row i are
    `media[media_from[i]:media_from[i + 1]]`. `uid_rank` is the place of each uid among the sorted ones: what decides
    between equals, so that the order of the rows never does.
    """

    uids: pyarrow.Array
    uid_rank: np.ndarray
    source: np.ndarray
    source_names: list[str]
    facts: dict[str, SourceFacts]
    sub_task: np.ndarray
    sub_tasks: list[str]
    label: np.ndarray
    labels: list[str]
    group: np.ndarray
    group_names: pyarrow.Array
    group_keys: list[str]  # the group key of each group
    split: np.ndarray  # of schema.SPLITS: the official one
    fold: np.ndarray  # the official one
    content: np.ndarray
    media: np.ndarray
    media_from: np.ndarray
    hashed: np.ndarray
    phash: np.ndarray
    text: np.ndarray
    text_words: np.ndarray
    ocr: np.ndarray
    ocr_words: np.ndarray
    show: np.ndarray
    show_names: list[str]
    n_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def uid(self, row: int) -> str:
        return str(self.uids[int(row)].as_py())

    def source_of(self, row: int) -> str:
        return self.source_names[self.source[row]]

    def sub_task_of(self, row: int) -> str:
        return self.sub_tasks[self.sub_task[row]]

    def group_of(self, row: int) -> str:
        return str(self.group_names[int(self.group[row])].as_py())

    def media_of(self, row: int) -> np.ndarray:
        """The codes of a row's media."""
        return self.media[self.media_from[row] : self.media_from[row + 1]]

    def rows_of(self, sources: Iterable[str]) -> np.ndarray:
        """The numbers of the rows of these sources, ascending."""
        import numpy as np

        codes = [code for code, name in enumerate(self.source_names) if name in set(sources)]
        return np.flatnonzero(np.isin(self.source, codes))

    def by_source(self, values: Mapping[str, Any], dtype: str) -> np.ndarray:
        """A value per row from a value per source."""
        import numpy as np

        return np.array([values[name] for name in self.source_names], dtype)[self.source]


def from_table(table: pyarrow.Table, facts: Mapping[str, SourceFacts]) -> Index:
    """The index of rows with the columns of `hash_columns.arrow_schema()` and `source`. `facts` covers all sources."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.combine_chunks()
    uids = _array(table["uid"])
    rank = np.empty(len(uids), np.int32)
    rank[pc.sort_indices(uids).to_numpy()] = np.arange(len(uids), dtype=np.int32)
    source, source_names = _codes(table["source"])
    sub_task, sub_tasks = _codes(table["sub_task"])
    label, labels = _codes(pc.binary_join_element_wise(table["sub_task"], table["label"], "/"))
    keys = pa.array([facts[name].group_key for name in source_names], pa.string())
    group, group_names = _encode(
        pc.binary_join_element_wise(keys.take(pa.array(source)), table["group"], "\x1f")
    )
    parts = pc.split_pattern(group_names, "\x1f", max_splits=1)
    split = pc.index_in(table["split"], pa.array(schema.SPLITS))
    show, show_names = _codes(table["show"])
    lists = _array(table["media"])
    hashed = pc.not_equal(table["phash"], "")
    return Index(
        uids=uids,
        uid_rank=rank,
        source=source,
        source_names=source_names,
        facts={name: facts[name] for name in source_names},
        sub_task=sub_task,
        sub_tasks=sub_tasks,
        label=label,
        labels=labels,
        group=group,
        group_names=pc.list_element(parts, 1),
        group_keys=_interned(pc.list_element(parts, 0)),
        split=_numbers(split, np.int8),
        fold=_numbers(table["fold"], np.int16),
        content=_encode(table["content"])[0],
        media=_encode(lists.flatten())[0],
        media_from=lists.offsets.to_numpy() - lists.offsets[0].as_py(),
        hashed=hashed.combine_chunks().to_numpy(zero_copy_only=False),
        phash=np.array([int(value or "0", 16) for value in table["phash"].to_pylist()], np.uint64),
        text=_none_for_empty(*_encode(table["text"])),
        text_words=_numbers(table["text_words"], np.int32),
        ocr=_none_for_empty(*_encode(table["ocr"])),
        ocr_words=_numbers(table["ocr_words"], np.int32),
        show=_none_for_empty(show, pa.array(show_names, pa.string())),
        show_names=show_names,
        n_bytes=_numbers(table["n_bytes"], np.int64),
    )


def from_rows(rows: Sequence[Row], facts: Mapping[str, SourceFacts]) -> Index:
    """The index of a few rows in plain values; a row without content or group gets one of its own."""
    import pyarrow as pa

    values = [
        {
            **row._asdict(),
            "media": list(row.media),
            "group": row.group or row.uid,
            "content": row.content or "|".join(row.media) or row.uid,
        }
        for row in rows
    ]
    arrow_schema = hash_columns.arrow_schema().append(pa.field("source", pa.string()))
    return from_table(pa.Table.from_pylist(values, schema=arrow_schema), facts)


def _interned(values: pyarrow.Array) -> list[str]:
    """The values as a list that holds each text once."""
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    return [texts[code] for code in encoded.indices.to_numpy().tolist()]


def _array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    import pyarrow as pa

    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _encode(column: Any) -> tuple[np.ndarray, pyarrow.Array]:
    """Codes from 0, and the value of each code."""
    import numpy as np
    import pyarrow as pa

    array = _array(column) if isinstance(column, pa.ChunkedArray) else column
    encoded = array.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    codes, values = _encode(column)
    return codes, values.to_pylist()


def _none_for_empty(codes: np.ndarray, values: pyarrow.Array) -> np.ndarray:
    """The codes with −1 for that of the empty text."""
    import numpy as np
    import pyarrow.compute as pc

    empty = pc.index(values, "").as_py()
    return codes if empty < 0 else np.where(codes == empty, np.int32(-1), codes)


def _numbers(column: Any, dtype: Any) -> np.ndarray:
    """A nullable column as numbers, −1 for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = _array(column) if isinstance(column, pa.ChunkedArray) else column
    return pc.fill_null(array, -1).to_numpy(zero_copy_only=False).astype(dtype)
