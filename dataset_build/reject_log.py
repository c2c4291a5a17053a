"""The rejects of a plan, held compactly: a source whose own rule leaves out 100,000 rows must not cost 100 MB of objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dataset_build import schema
from dataset_build.schema import Reject

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 1024


class RejectLog:
    """Rejects in the order they were added. Reads like a list; older ones lie in Arrow batches."""

    def __init__(self) -> None:
        self._batches: list[pyarrow.RecordBatch] = []
        self._fresh: list[Reject] = []

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._batches) + len(self._fresh)

    def __iter__(self) -> Iterator[Reject]:
        for batch in self._batches:
            yield from (Reject(**row) for row in batch.to_pylist())
        yield from self._fresh

    def append(self, reject: Reject) -> None:
        """Add one; all its texts must be Unicode (`dataset_build.plan` sees to that)."""
        self._fresh.append(reject)
        if len(self._fresh) == _BATCH_ROWS:
            self._pack()

    def table(self) -> pyarrow.Table:
        """All of them, with the columns of `schema.reject_schema()`."""
        import pyarrow as pa

        self._pack()
        return pa.Table.from_batches(self._batches, schema=schema.reject_schema())

    def _pack(self) -> None:
        import pyarrow as pa

        if self._fresh:
            rows = [vars(reject) for reject in self._fresh]
            self._batches.append(pa.RecordBatch.from_pylist(rows, schema=schema.reject_schema()))
            self._fresh.clear()
