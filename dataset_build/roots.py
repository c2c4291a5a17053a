"""Where a source's media lie: a local folder, or `s3://` whose files are fetched one by one and deleted after use.

Both follow the same rules: an annotation's path is relative, has no `..`, and never leaves the root. On S3 that is a
matter of spelling, in a folder also of links (`media.resolve`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

from dataset_build import media, s3, storage
from dataset_build.errors import StorageError
from dataset_build.schema import MediaRef, Record

# Fetched files that a later row of the shard will need again: more than this is deleted, and fetched once more.
KEPT_BYTES = 4 << 30
# So many files are on their way while the one before them is converted: each takes two requests to the store.
AHEAD = 4


@functools.cache
def _fetchers() -> futures.ThreadPoolExecutor:
    """Threads of this process. They outlive a shard: each has a client of its own, which takes 0.1 s to set up."""
    return futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="emobench-fetch")


class Fetched:
    """The media of a remote root as local files in a folder of its own. `opened` makes and removes it."""

    def __init__(self, root: str, folder: str, max_file_mb: int, names: Iterable[str]) -> None:
        """`names`: every file that will be asked for, as often and in the order as it will."""
        self.root, self.folder, self.max_file_mb = root, folder, max_file_mb
        self._uses = Counter(names)  # how many more times each will be asked for
        self._next = iter(tuple(self._uses))
        self._coming: dict[str, futures.Future[str]] = {}
        self._files: dict[str, str] = {}

    def file(self, path: str) -> str:
        """The local copy of the object at `path`. Raises MediaError as `media.resolve` does, and StorageError."""
        name = object_name(path)
        self._look_ahead()
        if name not in self._files:
            self._files[name] = self._come(name) or self._fetch(name, path)
        return self._files[name]

    def _look_ahead(self) -> None:
        while len(self._coming) < AHEAD and (name := next(self._next, None)) is not None:
            if name not in self._files and self._uses[name] > 0:
                self._coming[name] = _fetchers().submit(self._fetch, name, name)

    def _come(self, name: str) -> str | None:
        """The file where it was fetched ahead. None also where it cannot be had: why is said with the row's own path."""
        coming = self._coming.pop(name, None)
        try:
            return coming.result() if coming else None
        except media.MediaError:
            return None

    def _fetch(self, name: str, path: str) -> str:
        whole = storage.join(self.root, name)
        try:
            found = s3.stat(whole)
        except FileNotFoundError:
            if s3.exists(whole):
                raise media.MediaError("not_media", f"{path}: not a regular file") from None
            raise media.MediaError("missing_media", media.missing(path)) from None
        media.check_size(found.size, path, self.max_file_mb)
        local = os.path.join(self.folder, hashlib.sha256(name.encode()).hexdigest()[:32])
        try:
            s3.download(whole, local, found.size)
        except FileNotFoundError:  # removed between the two requests
            raise media.MediaError("missing_media", media.missing(path)) from None
        return local

    def release(self, record: Record) -> None:
        """The record is done: delete what no later one of the shard needs."""
        for name in _names([record]):
            self._uses[name] -= 1
            if self._uses[name] <= 0 and name in self._coming:  # its row was refused before it was looked at
                with contextlib.suppress(StorageError):
                    if fetched := self._come(name):
                        self._files[name] = fetched
            local = self._files.get(name)
            if local and (self._uses[name] <= 0 or self._held() > KEPT_BYTES):
                os.unlink(local)
                del self._files[name]

    def close(self) -> None:
        """Wait for what still comes: its folder is about to be removed."""
        for coming in self._coming.values():
            coming.cancel()
        futures.wait(self._coming.values())

    def _held(self) -> int:
        return sum(os.path.getsize(local) for local in self._files.values())


@contextlib.contextmanager
def opened(root: str, records: Iterable[Record], max_file_mb: int) -> Iterator[str | Fetched]:
    """The root as `media.resolve` takes it, for the conversion of `records`."""
    if not storage.is_remote(root):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="emobench-") as folder:
        fetched = Fetched(root, folder, max_file_mb, _names(records))
        try:
            yield fetched
        finally:
            fetched.close()


def release(root: str | Fetched, record: Record) -> None:
    """See `Fetched.release`; nothing for a local root."""
    if isinstance(root, Fetched):
        root.release(record)


def object_name(path: str) -> str:
    """An annotation's path as the name of an object below the root, as a folder would understand it. Raises MediaError."""
    media.check_path(path)
    if "?versionId=" in path:
        raise media.MediaError(
            "bad_row", f"{path}: objects are read in their newest version, without ?versionId="
        )
    name = posixpath.normpath(path)
    return "" if name == "." else name


def fingerprint(root: str, taken: storage.Snapshot | None, ref: MediaRef) -> list[Any] | str:
    """What a medium's file is without reading it, or the reason why it cannot be used.

    Of a folder: size and modification time. Of S3: size and etag in the listing `taken`. Zeros where there is no file
    of its own behind it (`MediaRef.pixels`).
    """
    if ref.pixels is not None:
        return [0, 0]
    if taken is None:
        return media.fingerprint(root, ref.path)
    try:
        found = taken.files.get(object_name(ref.path))
    except media.MediaError as error:
        return error.reason
    return "missing_media" if found is None else [found.size, found.etag]


def _names(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        for ref in record.media:
            if ref.pixels is None:
                with contextlib.suppress(media.MediaError):
                    yield object_name(ref.path)
