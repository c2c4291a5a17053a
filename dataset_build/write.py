"""Parquet files with the same bytes for the same rows: fixed row groups and compression, no times, no folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import provenance, schema, storage

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP_ROWS = 128
MAX_FILE_BYTES = 128 << 20


class Part(NamedTuple):
    """Converted rows of one shard: its samples file, the numbers of the rows in it, and the fold of each (−1: none)."""

    shard: str
    rows: list[int]
    folds: list[int]


def parquet_bytes(
    batches: Iterator[pyarrow.Table] | Sequence[pyarrow.Table], arrow_schema: pyarrow.Schema
) -> bytes:
    """The tables as one Parquet file with row groups of `ROW_GROUP_ROWS`, however the rows came in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()  # into io.BytesIO every page would go through Python
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
    return buffer.getvalue().to_pybytes()


def bytes_of_rows(rows: Sequence[dict[str, Any]], arrow_schema: pyarrow.Schema) -> bytes:
    """Plain rows as a Parquet file."""
    import pyarrow as pa

    return parquet_bytes([pa.Table.from_pylist(list(rows), schema=arrow_schema)], arrow_schema)


def write_rows(path: str, rows: Sequence[dict[str, Any]], arrow_schema: pyarrow.Schema) -> dict[str, Any]:
    """Write plain rows; returns the manifest's entry {sha256, rows, bytes}."""
    data = bytes_of_rows(rows, arrow_schema)
    storage.write_bytes(path, data)
    return entry(data, len(rows))


def write_table(path: str, table: pyarrow.Table, arrow_schema: pyarrow.Schema) -> dict[str, Any]:
    """Write a table; returns the manifest's entry {sha256, rows, bytes}."""
    data = parquet_bytes([table.cast(arrow_schema)], arrow_schema)
    storage.write_bytes(path, data)
    return entry(data, len(table))


def write_samples(path: str, split: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Gather converted rows (of ascending shards) into one sample file; one shard is in memory at a time."""
    data = parquet_bytes(_gather(split, parts), schema.sample_schema())
    storage.write_bytes(path, data)
    return entry(data, sum(len(part.rows) for part in parts))


def entry(data: bytes, rows: int) -> dict[str, Any]:
    return {"sha256": provenance.sha256_of_bytes(data), "rows": rows, "bytes": len(data)}


def _gather(split: str, parts: Sequence[Part]) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = schema.sample_schema().names
    for part in parts:
        with storage.open_read(part.shard) as stream:
            table = pq.ParquetFile(stream).read(use_threads=False)
        table = table.take(pa.array(part.rows, pa.int64()))
        folds = [None if fold < 0 else fold for fold in part.folds]
        table = table.append_column("split", pa.array([split] * len(table), pa.string()))
        table = table.append_column("fold", pa.array(folds, pa.int32()))
        yield table.select(names).cast(schema.sample_schema())


def cut_files(sizes: Sequence[int], rows_per_file: int) -> list[slice]:
    """Rows of these media sizes in files of at most `rows_per_file` rows and about `MAX_FILE_BYTES` of media."""
    files: list[slice] = []
    start = size = 0
    for number, n_bytes in enumerate(sizes):
        if number > start and (number - start == rows_per_file or size + n_bytes > MAX_FILE_BYTES):
            files.append(slice(start, number))
            start, size = number, 0
        size += n_bytes
    return [*files, slice(start, len(sizes))] if sizes else files
