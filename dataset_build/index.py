"""The hash columns of a whole build, as compact arrays: what duplicates, leakage and splits are decided on.

A row of a build is its number here. Texts that repeat are held once and named by a code; those of the media and of
the utterances are digests (`dataset_build.hash_columns`) of which only "same" and "not the same" matters, so a code is
all that is kept. About 150 bytes a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import schema
from dataset_build.sources.base import Pictures, SplitMode

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


class SourceFacts(NamedTuple):
    """What the decisions need to know of a source: `mode` as its options set it, and the adapter's constants."""

    mode: SplitMode
    group_key: str
    pictures: Pictures


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


class Builder:
    """An index in the making, one shard's table at a time, so that the texts of all shards are never held at once."""

    def __init__(self, facts: Mapping[str, SourceFacts]) -> None:
        self._facts = facts
        self._parts: dict[str, list[Any]] = defaultdict(list)
        self._vocabularies: dict[str, dict[str, int]] = defaultdict(dict)

    def add(self, table: pyarrow.Table, source: str) -> None:
        """Add rows of one source, with the columns of `hash_columns.arrow_schema()`."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(table):
            return
        table = table.combine_chunks()
        parts, lists = self._parts, _array(table["media"])
        parts["uids"].append(_array(table["uid"]))
        key = self._facts[source].group_key
        parts["group"].append(pc.binary_join_element_wise(pa.scalar(key), _array(table["group"]), "\x1f"))
        parts["source"].append(np.full(len(table), self._code("source", source), np.int16))
        parts["sub_task"].append(self._codes("sub_task", table["sub_task"].to_pylist(), np.int8))
        labels = pc.binary_join_element_wise(table["sub_task"], table["label"], "/").to_pylist()
        parts["label"].append(self._codes("label", labels, np.int32))
        parts["show"].append(self._codes("show", table["show"].to_pylist(), np.int32))
        split = pc.index_in(table["split"], pa.array(schema.SPLITS))
        for name, column, dtype in (
            ("split", split, np.int8),
            ("fold", table["fold"], np.int16),
            ("text_words", table["text_words"], np.int32),
            ("ocr_words", table["ocr_words"], np.int32),
            ("n_bytes", table["n_bytes"], np.int64),
        ):
            parts[name].append(pc.fill_null(column, -1).to_numpy().astype(dtype))
        for name, values in (
            ("content", table["content"]),
            ("text", table["text"]),
            ("ocr", table["ocr"]),
            ("phash", table["phash"]),
            ("media", lists.flatten()),
        ):
            digests = [int(value[:16] or "0", 16) for value in values.to_pylist()]
            parts[name].append(np.array(digests, np.uint64))
        parts["hashed"].append(pc.not_equal(_array(table["phash"]), "").to_numpy(zero_copy_only=False))
        parts["n_media"].append(pc.list_value_length(lists).to_numpy().astype(np.int32))

    def finish(self) -> Index:
        """The index of all rows added."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        uids = pa.concat_arrays([pa.array([], pa.string()), *self._parts.pop("uids", [])])
        rank = np.empty(len(uids), np.int32)
        rank[pc.sort_indices(uids).to_numpy()] = np.arange(len(uids), dtype=np.int32)
        groups = pa.concat_arrays(
            [pa.array([], pa.string()), *self._parts.pop("group", [])]
        ).dictionary_encode()
        keyed = pc.split_pattern(groups.dictionary, "\x1f", max_splits=1)
        names = list(self._vocabularies["source"])
        n_media = self._joined("n_media", np.int32)
        return Index(
            uids=uids,
            uid_rank=rank,
            source=self._joined("source", np.int16),
            source_names=names,
            facts={name: self._facts[name] for name in names},
            sub_task=self._joined("sub_task", np.int8),
            sub_tasks=list(self._vocabularies["sub_task"]),
            label=self._joined("label", np.int32),
            labels=list(self._vocabularies["label"]),
            group=groups.indices.to_numpy().astype(np.int32),
            group_names=pc.list_element(keyed, 1) if len(keyed) else groups.dictionary,
            group_keys=_interned(pc.list_element(keyed, 0)) if len(keyed) else [],
            split=self._joined("split", np.int8),
            fold=self._joined("fold", np.int16),
            content=self._digests("content"),
            media=self._digests("media"),
            media_from=np.concatenate(([0], np.cumsum(n_media, dtype=np.int64))),
            hashed=self._joined("hashed", bool),
            phash=self._joined("phash", np.uint64),
            text=self._digests("text"),
            text_words=self._joined("text_words", np.int32),
            ocr=self._digests("ocr"),
            ocr_words=self._joined("ocr_words", np.int32),
            show=self._joined("show", np.int32),
            show_names=list(self._vocabularies["show"]),
            n_bytes=self._joined("n_bytes", np.int64),
        )

    def _code(self, vocabulary: str, value: str) -> int:
        words = self._vocabularies[vocabulary]
        return words.setdefault(value, len(words))

    def _codes(self, vocabulary: str, values: Sequence[str], dtype: Any) -> np.ndarray:
        import numpy as np

        return np.array([self._code(vocabulary, value) if value else -1 for value in values], dtype)

    def _joined(self, name: str, dtype: Any) -> np.ndarray:
        import numpy as np

        return np.concatenate([np.empty(0, dtype), *self._parts.pop(name, [])]).astype(dtype, copy=False)

    def _digests(self, name: str) -> np.ndarray:
        """Codes for the first 64 bits of digests, −1 for no digest.

        Two of a million different digests have the same first 64 bits with a probability of 3 in 100 million.
        """
        import numpy as np

        values, codes = np.unique(self._joined(name, np.uint64), return_inverse=True)
        return codes.astype(np.int32) - (1 if len(values) and values[0] == 0 else 0)


def _interned(values: pyarrow.Array) -> list[str]:
    """The values as a list that holds each text once."""
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    return [texts[code] for code in encoded.indices.to_numpy().tolist()]


def _array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    import pyarrow as pa

    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
