"""What every export format shares: safe file names, files written in a stream with their digest, rows of a build."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from dataset_build import media, s3, schema, storage
from dataset_build.errors import BuildError

if TYPE_CHECKING:
    import pyarrow

# Rows that are read, and whose media are written, at once.
BATCH_ROWS = 32
# Requests to an object store that are under way at once; a local disk gains from a few too.
_THREADS = 8
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}


class Part(NamedTuple):
    """The file of one part of a medium: where it goes, relative to the export, and its bytes."""

    path: str
    data: bytes


def safe_name(text: str) -> str:
    """A file name for a uid: its readable part, then 24 digits of its hash, so that no two uids share a name.

    Letters, digits, `_` and `-` only, at most 65 of them, without a dot, on every file system, whatever the text holds.
    """
    readable = _UNSAFE.sub("_", text).strip("_")[-40:].strip("_")
    return f"{readable or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def suffix(kind: str, data: bytes) -> str:
    """The suffix of the format that the first bytes announce; `bin` where they announce none known here."""
    if kind == "audio":
        return "wav" if data[:4] == b"RIFF" else "flac" if data[:4] == b"fLaC" else "bin"
    return _SUFFIXES.get(media.picture_format(data[:16]) or "", "bin")


def tables(out: str, path: str) -> Iterator[pyarrow.RecordBatch]:
    """The rows of one sample file, `BATCH_ROWS` at a time. Raises BuildError where the columns are not ours."""
    import pyarrow.parquet as pq

    with storage.open_read(storage.join(out, path)) as stream:
        file = pq.ParquetFile(stream)
        if not file.schema_arrow.equals(schema.sample_schema()):
            raise BuildError(
                f"{out}/{path}: its columns are not those of schema version {schema.SCHEMA_VERSION}; build again"
            )
        yield from file.iter_batches(batch_size=BATCH_ROWS)


class Written:
    """The files of an export that its marker lists, and counts of the media that are files of their own."""

    def __init__(self, dest: str) -> None:
        self.dest = dest
        self.files: dict[str, dict[str, Any]] = {}
        self.media_files = self.media_bytes = 0

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write to in a stream, seen under its name only once it is whole.

        It is written on a local disk first, also where it goes to `s3://`: at most one such file at a time is there.
        """
        full = storage.join(self.dest, path)
        remote = storage.is_remote(full)
        folder = tempfile.gettempdir() if remote else os.path.dirname(os.path.abspath(full))
        os.makedirs(folder, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".", suffix=".0123abcd.partial", dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                hashing = _Hashing(stream)
                yield hashing  # type: ignore[misc]
                stream.flush()
                os.fsync(stream.fileno())
            if remote:
                s3.upload(full, partial)
            else:
                os.chmod(partial, 0o644)
                os.replace(partial, full)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
        self.files[path] = {"sha256": hashing.digest.hexdigest(), "bytes": hashing.size}

    def write(self, path: str, data: bytes) -> None:
        with self.open(path) as stream:
            stream.write(data)

    def copy(self, root: str, path: str, to: str) -> None:
        """Copy a file of `root`, in a stream."""
        with storage.open_read(storage.join(root, path)) as source, self.open(to) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)

    def media(self, parts: list[Part]) -> None:
        """Write media files. They count only once the marker is there, so each needs no care of its own."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._medium, parts):
                pass
        self.media_files += len(parts)
        self.media_bytes += sum(len(part.data) for part in parts)

    def _medium(self, part: Part) -> None:
        full = storage.join(self.dest, part.path)
        if storage.is_remote(full):
            storage.write_bytes(full, part.data)
            return
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as stream:
            stream.write(part.data)


class _Hashing:
    """A stream that only takes bytes in order, and digests them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.digest, self.size, self.closed = stream, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        self._stream.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """The file behind it is closed by whoever opened it."""
