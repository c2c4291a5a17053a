"""Files on a local disk or `s3://` alike, through fsspec. Every path of a recipe goes through here.

Writes are atomic: readers see the old file or the new one, never half of one. A write that was killed leaves
`.NAME.<hex>.partial` beside NAME; Arrow and Ray pass over names that start with a dot.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

from dataset_build import s3
from dataset_build.errors import UsageError

_REMOTE = "://"
# With and without the dot, which earlier versions did not write.
_PARTIAL = re.compile(r"\.?.+\.[0-9a-f]{8}\.partial")


def is_remote(path: str) -> bool:
    return _REMOTE in str(path)


def join(root: str, *parts: str) -> str:
    if is_remote(root):
        # `os.path.join` would let a part with a leading slash replace the root, even by a local path. A store has no
        # folders: `.` would be part of the name there, as `..` is, which therefore leads nowhere.
        steps = [step for part in parts for step in part.split("/") if step not in ("", ".")]
        return "/".join([str(root).rstrip("/"), *steps])
    return os.path.join(str(root), *parts)


def check_place(path: str, what: str) -> None:
    """Raises UsageError, without showing the path, where `path` is neither a local one nor `s3://BUCKET/...`."""
    if is_remote(path):
        try:
            s3.split(str(path))
        except UsageError:
            raise UsageError(
                f"{what}: expected a local folder or s3://BUCKET/PREFIX; credentials and the endpoint come from the "
                "environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) only"
            ) from None


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of `path`, and `path` as that file system spells it. Raises UsageError."""
    if not is_remote(path):
        import fsspec.implementations.local

        return fsspec.implementations.local.LocalFileSystem(), os.path.abspath(path)
    return s3.filesystem(), "/".join(s3.split(str(path)))


class Snapshot:
    """The files below a remote root as one listing saw them.

    While it is open (`snapshot`), `exists`, `size` and `list_files` below the root are answered from it, without a
    request for each file.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.files: dict[str, s3.Stat] = dict(s3.files(root))
        self.folders = {""}
        for name in self.files:
            folder = posixpath.dirname(name)
            while folder not in self.folders:
                self.folders.add(folder)
                folder = posixpath.dirname(folder)

    def relative(self, path: str) -> str | None:
        """`path` relative to the root; None where it lies elsewhere."""
        whole = str(path).rstrip("/")
        if whole == self.root:
            return ""
        return posixpath.normpath(whole[len(self.root) + 1 :]) if whole.startswith(f"{self.root}/") else None


_open_snapshots: list[Snapshot] = []


@contextlib.contextmanager
def snapshot(root: str) -> Iterator[Snapshot | None]:
    """List a remote root once, and answer from that listing inside the block. A local root needs none: None."""
    if not is_remote(root):
        yield None
        return
    taken = Snapshot(root)
    _open_snapshots.append(taken)
    try:
        yield taken
    finally:
        _open_snapshots.remove(taken)


def _seen(path: str) -> tuple[Snapshot, str] | None:
    for taken in _open_snapshots:
        relative = taken.relative(path)
        if relative is not None:
            return taken, "" if relative == "." else relative
    return None


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    seen = _seen(path)
    if seen:
        return seen[1] in seen[0].files or seen[1] in seen[0].folders and bool(seen[0].files)
    return s3.exists(path)


def size(path: str) -> int:
    """Bytes in a file. Raises FileNotFoundError."""
    if not is_remote(path):
        return os.path.getsize(path)
    seen = _seen(path)
    if not seen:
        return s3.stat(path).size
    if seen[1] not in seen[0].files:
        raise FileNotFoundError(2, "there is no such object", path)
    return seen[0].files[seen[1]].size


def read_bytes(path: str) -> bytes:
    if is_remote(path):
        return s3.read(path)
    with open(path, "rb") as stream:
        return stream.read()


def open_read(path: str) -> IO[bytes]:
    return s3.open_read(path) if is_remote(path) else open(path, "rb")


def write_bytes(path: str, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path`, atomically; missing folders are made. What a lost file would only cost the time to write it
    again need not be `durable`: it is then not forced to the disk, which takes 0.1 s on a busy one.
    """
    if not is_remote(path):
        folder, name = os.path.split(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with open(partial, "wb") as stream:
                stream.write(data)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
        return
    s3.write(path, data)


def read_json(path: str) -> Any:
    """The JSON value in `path`. Raises ValueError naming the file where it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it or restore it from a copy") from error


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode())


def list_files(root: str) -> list[str]:
    """All files below `root`, as sorted paths relative to it with forward slashes; partial writes are left out.

    Links to folders are not followed: what they hold is not below `root`.
    """
    return sorted(path for path in _walk(root) if not path.endswith(".partial"))


def sizes(root: str) -> dict[str, int]:
    """The bytes of every file below `root`, by path relative to it; of a remote root from one listing."""
    if is_remote(root):
        return {path: found.size for path, found in s3.files(root)}
    found = {}
    for path in list_files(root):
        with contextlib.suppress(FileNotFoundError):  # a dangling link, or somebody removed it meanwhile
            found[path] = os.path.getsize(os.path.join(root, path))
    return found


def remove_partials(root: str) -> int:
    """Remove what killed writes left below `root`, where nobody may be writing now. Returns how many there were."""
    if is_remote(root):
        return 0  # S3 shows no object before it is whole
    stale = [path for path in _walk(root) if _PARTIAL.fullmatch(posixpath.basename(path))]
    for path in stale:
        remove(join(root, path))
    return len(stale)


def _walk(root: str) -> Iterator[str]:
    if is_remote(root):
        seen = _seen(root)
        if seen:
            prefix = f"{seen[1]}/" if seen[1] else ""
            yield from (path[len(prefix) :] for path in seen[0].files if path.startswith(prefix))
        else:
            yield from (path for path, _ in s3.files(root))
        return
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def remove(path: str) -> None:
    """Remove a file; one that is not there is fine."""
    remove_all([path])


def remove_all(paths: Sequence[str]) -> None:
    """Remove files of one folder or bucket; those that are not there are fine."""
    remote = [path for path in paths if is_remote(path)]
    if remote:
        s3.remove(remote)
    for path in paths:
        if not is_remote(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
