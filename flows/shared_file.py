"""Small files that several processes change: read with a version, written only where that is still the version.

On S3 this is a conditional PUT (If-Match, If-None-Match), which Amazon's S3, MinIO, Ceph and moto understand; a store that
ignores the condition gives last-writer-wins. On a disk it is a lock on `.NAME.lock` beside the file, which POSIX file
systems and NFS from version 4 on honour.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataset_build import storage
from dataset_build.errors import StorageError

_TRIES = 30
_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class Conflict(RuntimeError):
    """Somebody else has written the file since it was read."""


class Read(NamedTuple):
    """`data` and `version` are None where there is no such file."""

    data: bytes | None
    version: str | None


def read(path: str) -> Read:
    """The file and its version, which belong together."""
    if not storage.is_remote(path):
        try:
            data = storage.read_bytes(path)
        except FileNotFoundError:
            return Read(None, None)
        return Read(data, hashlib.sha256(data).hexdigest())
    from dataset_build import s3

    for _ in range(_TRIES):
        try:
            before = s3.stat(path).etag
            data = s3.read(path)
            if s3.stat(path).etag == before:
                return Read(data, before)
        except FileNotFoundError:
            return Read(None, None)
    raise StorageError(f"{path}: it kept changing while it was read; try again")


def write(path: str, data: bytes, expected: str | None) -> None:
    """Put `data` where the file's version is still `expected` (None: where there is none). Raises Conflict.

    `data` should be unlike any other content (an id, a time): that is how a write is known that reached the store although
    its answer was lost, so that the next try was refused.
    """
    if storage.is_remote(path):
        _write_remote(path, data, expected)
        return
    with _locked(path):
        if read(path).version != expected:
            raise Conflict(f"{path} was changed by somebody else")
        storage.write_bytes(path, data)


def read_json(path: str) -> tuple[Any, str | None]:
    """The JSON value in the file (None where there is none) and its version. Raises ValueError naming the file."""
    found = read(path)
    if found.data is None:
        return None, None
    try:
        return json.loads(found.data), found.version
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it or restore it from a copy") from error


def write_json(path: str, value: Any, expected: str | None) -> None:
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), expected)


def append_line(path: str, line: str) -> None:
    """Add a line; lines that others add at the same time are all kept."""
    for attempt in range(_TRIES):
        found = read(path)
        try:
            write(path, (found.data or b"") + f"{line}\n".encode(), found.version)
            return
        except Conflict:
            time.sleep(random.uniform(0, 0.02 * (attempt + 1)))
    raise Conflict(f"{path}: others kept writing it; try again")


def _write_remote(path: str, data: bytes, expected: str | None) -> None:
    import botocore.exceptions as boto

    from dataset_build import s3

    bucket, key = s3.split(path)
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": f'"{expected}"'}
    try:
        s3.filesystem().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except Exception as error:
        cause = error if isinstance(error, boto.ClientError) else error.__cause__
        code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, boto.ClientError) else ""
        gone = expected is not None and isinstance(error, FileNotFoundError)
        if code in _REFUSED or gone:
            if read(path).data == data:
                return
            raise Conflict(f"{path} was changed by somebody else") from None
        # The cause is left out on purpose: its text may hold the endpoint.
        raise StorageError(f"{path}: S3 did not take it ({type(error).__name__}); start again") from None


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    import fcntl

    lock = Path(path).absolute().with_name(f".{os.path.basename(path)}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
