"""Where a source's media lie: a local folder, or `s3://` whose files are fetched one by one and deleted after use.

Both follow the same rules: an annotation's path is relative, has no `..`, and never leaves the root. On S3 that is a
matter of spelling, in a folder also of links (`media.Folder`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

from dataset_build import media, s3, storage
from dataset_build.schema import MediaRef, Record

if TYPE_CHECKING:
    from dataset_build.recipe import MediaSettings

# Fetched files that a later row of the shard will need again: more than this is deleted, and fetched once more.
KEPT_BYTES = 4 << 30
# So many files are on their way while the one before them is converted: each takes two requests to the store.
AHEAD = 4


@functools.cache
def _fetchers() -> futures.ThreadPoolExecutor:
    """Threads of this process, which share its connections to the store."""
    return futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="emobench-fetch")


class Fetched:
    """The media of a remote root as local files in a folder of its own. `opened` makes and removes it."""

    def __init__(
        self, root: str, folder: str, max_file_mb: int, uses: Counter[str], ahead: Iterable[str]
    ) -> None:
        """`uses`: how often each file may be asked for. `ahead`: those that will be, in their order."""
        self.root, self.folder, self.max_file_mb = root, folder, max_file_mb
        self._uses = uses
        self._next = iter(ahead)
        self._coming: dict[str, futures.Future[str]] = {}
        self._files: dict[str, str] = {}

    def file(self, path: str) -> str:
        """The local copy of the object at `path`. Raises MediaError as `media.resolve` does, and StorageError."""
        name = object_name(path)
        if name not in self._files:
            self._files[name] = self._come(name) or self._fetch(name, path)
        self._look_ahead()  # only now: four threads that find no client would make one each
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
                with contextlib.suppress(Exception):  # nobody asked for it
                    if not self._coming[name].cancel():
                        self._files[name] = self._coming[name].result()
                del self._coming[name]
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
def opened(root: str, records: Sequence[Record], settings: MediaSettings) -> Iterator[media.Place]:
    """The root as `media.resolve` takes it, for the conversion of `records`."""
    if not storage.is_remote(root):
        yield media.Folder(root)
        return
    with tempfile.TemporaryDirectory(prefix="emobench-") as folder:
        uses, ahead = Counter(_names(records)), dict.fromkeys(_names(records, settings.audio))
        fetched = Fetched(root, folder, settings.max_file_mb, uses, ahead)
        try:
            yield fetched
        finally:
            fetched.close()


def release(root: media.Place, record: Record) -> None:
    """See `Fetched.release`; nothing for a folder."""
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


def fingerprint(place: media.Folder | storage.Snapshot, ref: MediaRef) -> list[Any] | str:
    """What a medium's file is without reading it, or the reason why it cannot be used.

    Of a folder: size and modification time. Of S3: size and etag in the listing. Zeros where there is no file of its
    own behind it (`MediaRef.pixels`).
    """
    if ref.pixels is not None:
        return [0, 0]
    if isinstance(place, media.Folder):
        return media.fingerprint(place, ref.path)
    try:
        found = place.files.get(object_name(ref.path))
    except media.MediaError as error:
        return error.reason
    return "missing_media" if found is None else [found.size, found.etag]


def _names(records: Iterable[Record], audio: bool = True) -> Iterator[str]:
    for record in records:
        for ref in record.media:
            if ref.pixels is None and (audio or ref.kind != "audio"):
                with contextlib.suppress(media.MediaError):
                    yield object_name(ref.path)
