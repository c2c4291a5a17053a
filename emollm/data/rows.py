"""Rows of an EmoBench by number: read a row group at a time, the last few of which stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from emollm.config import LoaderConfig
from emollm.data.cache import FileCache
from emollm.data.collate import Encoded
from emollm.data.emobench import DataError, DataFile, data_files, parquet_file, read_group
from emollm.data.encoder import Encoder
from emollm.data.index import RowIndex

if TYPE_CHECKING:
    import pyarrow

_OPEN_FILES = 16


class RowReader:
    """Rows by file, row group and place. Keeps row groups of up to `memory_bytes`, and a few files open."""

    def __init__(self, cache: FileCache, memory_bytes: int) -> None:
        self.cache, self.memory_bytes = cache, memory_bytes
        self._groups: OrderedDict[tuple[str, int], pyarrow.Table] = OrderedDict()
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._used = 0

    def row(self, file: DataFile, group: int, place: int) -> dict[str, Any]:
        """One row as a plain dict, media included."""
        found: dict[str, Any] = self._group(file, group).slice(place, 1).to_pylist()[0]
        return found

    def _group(self, file: DataFile, group: int) -> pyarrow.Table:
        key = (file.path, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        table = read_group(self._parquet(file), file, group)
        self._groups[key] = table
        self._used += table.nbytes
        while self._used > self.memory_bytes and len(self._groups) > 1:
            self._used -= self._groups.popitem(last=False)[1].nbytes
        return table

    def _parquet(self, file: DataFile) -> Any:
        if file.path not in self._files:
            self._files[file.path] = parquet_file(self.cache.open(file), file)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close(force=True)
        self._files.move_to_end(file.path)
        return self._files[file.path]


class Rows:
    """The rows of an index, read and encoded. Can be sent to another process, which then reads for itself."""

    def __init__(self, data: str, index: RowIndex, encoder: Encoder, loader: LoaderConfig) -> None:
        self.encoder = encoder
        self._cache = FileCache(data, loader.cache_folder, int(loader.cache_gib * 2**30))
        self._memory_bytes = loader.memory_mib << 20
        self._files = data_files(data)
        numbers = {file.path: number for number, file in enumerate(self._files)}
        self._file = np.array([numbers[path] for path in index.column("file")], dtype=np.int32)
        self._group = np.array(index.column("group"), dtype=np.int32)
        self._place = np.array(index.column("place"), dtype=np.int32)
        self._uids = index.table.column("uid")
        self._reader: RowReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __len__(self) -> int:
        return len(self._file)

    def row(self, number: int) -> dict[str, Any]:
        """A row as a plain dict. Raises DataError where the file no longer holds it."""
        if self._reader is None:
            self._reader = RowReader(self._cache, self._memory_bytes)
        file = self._files[self._file[number]]
        found = self._reader.row(file, int(self._group[number]), int(self._place[number]))
        if found["uid"] != (uid := self._uids[number].as_py()):
            raise DataError(
                f"{file.path}: has row {found['uid']} where row {uid} was indexed: the data changed under the training"
            )
        return found

    def encoded(self, number: int, media: bool) -> Encoded:
        """A row with its text encoded, and its media decoded if `media`. Raises SampleError naming the uid."""
        row = self.row(number)
        return self.encoder.whole(row) if media else self.encoder.text(row)

    def in_reading_order(self, numbers: list[int]) -> list[int]:
        """The rows sorted by where they lie."""
        return sorted(numbers, key=lambda n: (self._file[n], self._group[n], self._place[n]))
