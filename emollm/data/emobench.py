"""A finished EmoBench folder as training sees it: its manifest, its files, and the light columns of its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from dataset_build.schema import SPLITS

if TYPE_CHECKING:
    import pyarrow


class DataError(ValueError):
    """An EmoBench folder that cannot be trained on; the message names file and remedy."""


class DataFile(NamedTuple):
    """One Parquet file of samples; `path` is relative to the EmoBench folder. `bytes` is 0 where it is not stated."""

    path: str
    rows: int
    sha256: str
    bytes: int


def read_manifest(data: str) -> dict[str, Any]:
    """The manifest of a finished EmoBench. Raises DataError where there is none."""
    path = storage.join(data, "manifest.json")
    if not storage.exists(path):
        raise DataError(f"{path}: not there, so {data} is no finished EmoBench; build it first")
    found: dict[str, Any] = storage.read_json(path)
    return found


def read_digest(data: str) -> str:
    """The digest of a finished EmoBench. Raises DataError where there is none."""
    digest = read_manifest(data).get("digest")
    if not isinstance(digest, str):
        raise DataError(f"{storage.join(data, 'manifest.json')}: has no digest; build EmoBench again")
    return digest


def data_files(data: str) -> list[DataFile]:
    """The sample files that the manifest names, in the order of their paths. Raises DataError where there are none."""
    files = read_manifest(data).get("files", {})
    found = [
        DataFile(path, int(entry["rows"]), str(entry["sha256"]), int(entry.get("bytes", 0)))
        for path, entry in sorted(files.items())
        if path.split("/")[0] in SPLITS and path.endswith(".parquet")
    ]
    if not found:
        raise DataError(
            f"{data}: its manifest names no Parquet files in {', '.join(SPLITS)}; build EmoBench first"
        )
    return found


def read_columns(data: str, file: DataFile, columns: list[str]) -> pyarrow.Table:
    """Columns of one sample file, with `group` and `place`: the row group of a row, and its place in it."""
    import numpy as np
    import pyarrow as pa

    with open_file(data, file) as stream:
        parquet = parquet_file(stream, file)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        with _damage(file):
            table = parquet.read(columns=columns)
    group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    place = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [group])
    return table.append_column("group", pa.array(group)).append_column("place", pa.array(place))


def open_file(data: str, file: DataFile) -> Any:
    """A sample file as a stream. Raises DataError where it is not there."""
    whole = storage.join(data, file.path)
    try:
        return storage.open_read(whole)
    except FileNotFoundError:
        raise DataError(f"{whole}: is in the manifest, but not there; build EmoBench again") from None


def check_bytes(data: str, file: DataFile) -> None:
    """Raises DataError where a local file's bytes are not those of the manifest: pixels can be damaged in a file that
    Arrow reads without a word. Remote files are compared when they are copied to this node (`emollm.data.cache`)."""
    whole = storage.join(data, file.path)
    if storage.is_remote(data):
        return
    try:
        found = sha256_of_file(whole)
    except FileNotFoundError:
        raise DataError(f"{whole}: is in the manifest, but not there; build EmoBench again") from None
    if found != file.sha256:
        raise DataError(
            f"{whole}: its bytes are not those of the manifest (digest {found[:12]} instead of {file.sha256[:12]}); "
            "build EmoBench again"
        )


def parquet_file(stream: Any, file: DataFile) -> Any:
    """Raises DataError where the stream is no Parquet file, or has another number of rows than the manifest says."""
    import pyarrow.parquet as pq

    with _damage(file):
        found = pq.ParquetFile(stream)
    if (rows := found.metadata.num_rows) != file.rows:
        raise DataError(f"{file.path}: {rows} rows, the manifest says {file.rows}; build EmoBench again")
    return found


def read_group(parquet: Any, file: DataFile, group: int) -> pyarrow.Table:
    """One row group of a `parquet_file`. Raises DataError where it is damaged."""
    with _damage(file):
        return parquet.read_row_group(group, use_threads=False)


@contextlib.contextmanager
def _damage(file: DataFile) -> Iterator[None]:
    """Name the file in what Arrow says of bytes that it cannot read: an OSError that does not."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{file.path}: cannot be read ({' '.join(str(error).split())}); if the file is damaged, build EmoBench again"
        ) from error
