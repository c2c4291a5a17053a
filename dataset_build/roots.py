"""Where a source's media lie: a local folder, or `s3://` whose files are fetched one by one and deleted after use.

Both follow the same rules: an annotation's path is relative, has no `..`, and never leaves the root. On S3 that is a
matter of spelling, in a folder also of links (`media.resolve`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dataset_build import media, s3, storage
from dataset_build.schema import MediaRef, Record

# Fetched files that a later row of the shard will need again: more than this is deleted, and fetched once more.
KEPT_BYTES = 4 << 30


class Fetched:
    """The media of a remote root as local files in a folder of its own. `opened` makes and removes it."""

    def __init__(self, root: str, folder: str, max_file_mb: int, uses: Counter[str]) -> None:
        self.root, self.folder, self.max_file_mb = root, folder, max_file_mb
        self._uses = uses  # how many more times each path will be asked for
        self._files: dict[str, str] = {}

    def file(self, path: str) -> str:
        """The local copy of the object at `path`. Raises MediaError as `media.resolve` does, and StorageError."""
        name = object_name(path)
        if name in self._files:
            return self._files[name]
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
        self._files[name] = local
        return local

    def release(self, record: Record) -> None:
        """The record is done: delete what no later one of the shard needs."""
        for name in _names([record]):
            self._uses[name] -= 1
            local = self._files.get(name)
            if local and (self._uses[name] <= 0 or self._held() > KEPT_BYTES):
                os.unlink(local)
                del self._files[name]

    def _held(self) -> int:
        return sum(os.path.getsize(local) for local in self._files.values())


@contextlib.contextmanager
def opened(root: str, records: Iterable[Record], max_file_mb: int) -> Iterator[str | Fetched]:
    """The root as `media.resolve` takes it, for the conversion of `records`."""
    if not storage.is_remote(root):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="emobench-") as folder:
        yield Fetched(root, folder, max_file_mb, Counter(_names(records)))


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
