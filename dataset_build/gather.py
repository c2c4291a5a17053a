"""What the conversion left in the work folder, read back: hash columns and rejects of all shards, as compact tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_build import index, ledger, storage
from dataset_build.index import Index, SourceFacts
from dataset_build.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


@dataclass(frozen=True, eq=False)
class Gathered:
    """`shard_paths[s]` is the samples file of shard s, whose rows are `shard_from[s]` … of the index, in their order."""

    index: Index
    shard_paths: list[str]
    shard_from: np.ndarray
    rejects: pyarrow.Table


def gather(made: Plan, work: str, facts: Mapping[str, SourceFacts]) -> Gathered:
    """The hash columns of all converted rows in the order of the plan, and all rejects in the order of their uids."""
    import numpy as np
    import pyarrow as pa

    builder, rejects = index.Builder(facts), [made.rejects.table()]
    sizes = []
    for shard in made.shards:
        table = _read(shard.path(work, "index.parquet"))
        sizes.append(len(table))
        builder.add(table, shard.source)
        rejected = _read(shard.path(work, "rejects.parquet"))
        if len(rejected):
            rejects.append(rejected)
    found = Gathered(
        index=builder.finish(),
        shard_paths=[shard.path(work, "samples.parquet") for shard in made.shards],
        shard_from=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))),
        rejects=_with_known_splits(pa.concat_tables(rejects)).sort_by("uid"),
    )
    pa.default_memory_pool().release_unused()  # Arrow would keep what the texts of all shards took
    return found


def _read(path: str) -> pyarrow.Table:
    """A small Parquet file in one thread: `read_table` takes 50 MiB of threads and data set machinery."""
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        return pq.ParquetFile(stream).read(use_threads=False)


def count(table: pyarrow.Table, *columns: str) -> Counter[Any]:
    """How many rows have each combination of values in these columns."""
    found = table.select(list(columns)).group_by(list(columns)).aggregate([([], "count_all")])
    return Counter(
        {
            tuple(row[name] for name in columns) if len(columns) > 1 else row[columns[0]]: row["count_all"]
            for row in found.to_pylist()
        }
    )


def _with_known_splits(rejects: pyarrow.Table) -> pyarrow.Table:
    """The rejects with the split under which the ledger counts each."""
    import pyarrow as pa

    split = rejects.column("split").combine_chunks().dictionary_encode()
    if isinstance(split, pa.ChunkedArray):
        split = split.chunk(0) if split.num_chunks else pa.array([], pa.string()).dictionary_encode()
    known = pa.array([ledger.split_of_reject(value) for value in split.dictionary.to_pylist()], pa.string())
    named = known.take(split.indices).fill_null(ledger.split_of_reject(None))
    return rejects.set_column(rejects.schema.get_field_index("split"), "split", named)
