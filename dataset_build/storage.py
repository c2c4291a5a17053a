"""Files on a local disk or `s3://` alike, through fsspec. Every path of a recipe goes through here.

Writes are atomic: readers see the old file or the new one, never half of one. A write that was killed leaves
`.NAME.<hex>.partial` beside NAME; Arrow and Ray pass over names that start with a dot.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import uuid
from typing import IO, Any

_REMOTE = "://"
# With and without the dot, which earlier versions did not write.
_PARTIAL = re.compile(r"\.?.+\.[0-9a-f]{8}\.partial")


def is_remote(path: str) -> bool:
    return _REMOTE in str(path)


def join(root: str, *parts: str) -> str:
    return posixpath.join(str(root), *parts) if is_remote(root) else os.path.join(str(root), *parts)


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of `path`, and `path` as that file system spells it."""
    if not is_remote(path):
        import fsspec.implementations.local

        return fsspec.implementations.local.LocalFileSystem(), os.path.abspath(path)
    import fsspec

    return fsspec.core.url_to_fs(str(path))


def exists(path: str) -> bool:
    if not is_remote(path):
        return os.path.exists(path)
    fs, inner = filesystem(path)
    fs.invalidate_cache()
    return bool(fs.exists(inner))


def size(path: str) -> int:
    """Bytes in a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    fs, inner = filesystem(path)
    return int(fs.size(inner))


def read_bytes(path: str) -> bytes:
    with open_read(path) as stream:
        return stream.read()


def open_read(path: str) -> IO[bytes]:
    if not is_remote(path):
        return open(path, "rb")
    fs, inner = filesystem(path)
    return fs.open(inner, "rb")


def write_bytes(path: str, data: bytes) -> None:
    """Write `data` to `path`, atomically; missing folders are made."""
    if not is_remote(path):
        folder, name = os.path.split(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with open(partial, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
        return
    fs, inner = filesystem(path)
    fs.pipe_file(inner, data)  # an object store shows an object only once it is whole


def read_json(path: str) -> Any:
    """The JSON value in `path`. Raises ValueError naming the file where it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it or restore it from a copy") from error


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode())


def list_files(root: str) -> list[str]:
    """All files below `root`, as sorted paths relative to it with forward slashes; partial writes are left out."""
    return sorted(path for path in _walk(root) if not path.endswith(".partial"))


def remove_partials(root: str) -> int:
    """Remove what killed writes left below `root`, where nobody may be writing now. Returns how many there were."""
    stale = [path for path in _walk(root) if _PARTIAL.fullmatch(posixpath.basename(path))]
    for path in stale:
        remove(join(root, path))
    return len(stale)


def _walk(root: str) -> list[str]:
    if not is_remote(root):
        return [
            os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            for folder, _, names in os.walk(root)
            for name in names
        ]
    fs, inner = filesystem(root)
    fs.invalidate_cache()
    prefix = inner.rstrip("/") + "/"
    return [path[len(prefix) :] for path in fs.find(inner)] if fs.exists(inner) else []


def remove(path: str) -> None:
    """Remove a file; one that is not there is fine."""
    if exists(path):
        fs, inner = filesystem(path)
        fs.rm_file(inner)
