"""Parquet files with the same bytes for the same rows: fixed row groups and compression, no times, no folders."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import provenance, schema, storage

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP_ROWS = 128
MAX_FILE_BYTES = 128 << 20


class RowRef(NamedTuple):
    """A converted row: its shard's samples file, its number there, and where it goes."""

    shard: str
    row: int
    n_bytes: int
    split: str
    fold: int | None


def parquet_bytes(
    batches: Iterator[pyarrow.Table] | Sequence[pyarrow.Table], arrow_schema: pyarrow.Schema
) -> bytes:
    """The tables as one Parquet file with row groups of `ROW_GROUP_ROWS`, however the rows came in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    waiting = arrow_schema.empty_table()
    with pq.ParquetWriter(
        buffer, arrow_schema, compression="zstd", use_dictionary=False, version="2.6"
    ) as writer:
        for batch in batches:
            waiting = pa.concat_tables([waiting, batch])
            while len(waiting) >= ROW_GROUP_ROWS:
                writer.write_table(waiting.slice(0, ROW_GROUP_ROWS).combine_chunks())
                waiting = waiting.slice(ROW_GROUP_ROWS)
        if len(waiting):
            writer.write_table(waiting.combine_chunks())
    return buffer.getvalue()


def write_rows(path: str, rows: Sequence[dict[str, Any]], arrow_schema: pyarrow.Schema) -> dict[str, Any]:
    """Write plain rows; returns the manifest's entry {sha256, rows, bytes}."""
    import pyarrow as pa

    data = parquet_bytes([pa.Table.from_pylist(list(rows), schema=arrow_schema)], arrow_schema)
    storage.write_bytes(path, data)
    return entry(data, len(rows))


def write_samples(path: str, refs: Sequence[RowRef]) -> dict[str, Any]:
    """Gather converted rows (of ascending shards) into one sample file; one shard is in memory at a time."""
    data = parquet_bytes(_gather(refs), schema.sample_schema())
    storage.write_bytes(path, data)
    return entry(data, len(refs))


def entry(data: bytes, rows: int) -> dict[str, Any]:
    return {"sha256": provenance.sha256_of_bytes(data), "rows": rows, "bytes": len(data)}


def _gather(refs: Sequence[RowRef]) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = schema.sample_schema().names
    for shard in dict.fromkeys(ref.shard for ref in refs):
        chosen = [ref for ref in refs if ref.shard == shard]
        with storage.open_read(shard) as stream:
            table = pq.read_table(stream)
        table = table.take(pa.array([ref.row for ref in chosen], pa.int64()))
        table = table.append_column("split", pa.array([ref.split for ref in chosen], pa.string()))
        table = table.append_column("fold", pa.array([ref.fold for ref in chosen], pa.int32()))
        yield table.select(names).cast(schema.sample_schema())


def cut_files(refs: Sequence[RowRef], rows_per_file: int) -> list[list[RowRef]]:
    """Rows in files of at most `rows_per_file` rows and about `MAX_FILE_BYTES` of media."""
    files: list[list[RowRef]] = []
    size = 0
    for ref in refs:
        if not files or len(files[-1]) == rows_per_file or size + ref.n_bytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(ref)
        size += ref.n_bytes
    return files
