"""Copies of remote files in a folder of this node, shared by its workers and their decode processes.

Each file is copied once, whole, from beginning to end, by whoever needs it first; the others wait for it. Copies are
named by the digest that the manifest gives, so another build's file is never taken for this one. What was used longest
ago goes when the folder is full. A file that goes while somebody has it open stays readable for them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dataset_build import storage
from emollm.data.emobench import DataError, DataFile

_BLOCK = 8 << 20


def default_folder() -> str:
    return os.path.join(tempfile.gettempdir(), f"emollm-cache-{os.getuid()}")


class FileCache:
    """Local copies of an EmoBench's files; local files are opened where they are."""

    def __init__(self, data: str, folder: str, limit_bytes: int) -> None:
        self.data, self.folder, self.limit_bytes = data, folder or default_folder(), limit_bytes

    def open(self, file: DataFile) -> IO[bytes]:
        """The file's bytes as a local stream. Raises DataError where it is gone or damaged, StorageError."""
        if not storage.is_remote(self.data):
            try:
                return open(storage.join(self.data, file.path), "rb")
            except FileNotFoundError:
                raise DataError(
                    f"{storage.join(self.data, file.path)}: is in the manifest, but not there; build EmoBench again"
                ) from None
        copy = self._folder() / f"{file.sha256[:32]}.parquet"
        for _ in range(3):  # another process may need the room between the two lines
            self.fetch(file)
            with contextlib.suppress(FileNotFoundError):
                return copy.open("rb")
        raise DataError(
            f"{self.folder}: copies go as soon as they come; give the folder more room with loader.cache_gib"
        )

    def fetch(self, file: DataFile) -> None:
        """Make sure that the copy is there, and note that it is used."""
        copy = self._folder() / f"{file.sha256[:32]}.parquet"
        with contextlib.suppress(FileNotFoundError):
            os.utime(copy)
            return
        with _locked(copy.with_suffix(".lock")):
            if copy.exists():  # somebody else was first
                return
            self._make_room(file.bytes)
            self._copy(file, copy)

    def _copy(self, file: DataFile, copy: Path) -> None:
        partial = copy.with_suffix(".partial")  # one that is there was left by a process that was killed
        whole = storage.join(self.data, file.path)
        digest = hashlib.sha256()
        try:
            with storage.open_read(whole) as source, partial.open("wb") as target:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
            if digest.hexdigest() != file.sha256:
                raise DataError(
                    f"{whole}: its bytes are not those of the manifest (digest {digest.hexdigest()[:12]} instead of "
                    f"{file.sha256[:12]}); build EmoBench again"
                )
            os.replace(partial, copy)
        except FileNotFoundError:
            raise DataError(f"{whole}: is in the manifest, but not there; build EmoBench again") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise DataError(
                f"{self.folder}: no room for a copy of {whole} ({file.bytes} bytes; {error.strerror}); make room, name "
                "another folder with loader.cache_folder, or keep less there with loader.cache_gib"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the copies used longest ago until `size` more bytes fit."""
        with _locked(self._folder() / "room.lock"):
            copies = []
            for path in self._folder().glob("*.parquet"):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    copies.append((found.st_mtime_ns, found.st_size, path))
            used = sum(one[1] for one in copies)
            for _, taken, path in sorted(copies):
                if used + size <= self.limit_bytes:
                    return
                path.unlink(missing_ok=True)
                used -= taken

    def _folder(self) -> Path:
        """The folder, made if need be; nobody else may write to it."""
        path = Path(self.folder)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise DataError(f"{path}: belongs to somebody else; name another folder with loader.cache_folder")
        return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this node at a time. A lock goes with the process that holds it."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
