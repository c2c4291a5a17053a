"""Objects of `s3://bucket/key` through s3fs: exact keys, retries with back-off, and errors that name the path.

Credentials, region and endpoint come from the environment alone (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, AWS_ENDPOINT_URL, ...), which on a cluster is the environment that Ray's nodes were started with. Neither
they nor the endpoint appear in an error's text.

Two layers retry, each with back-off: botocore (AWS_RETRY_MODE, AWS_MAX_ATTEMPTS; here `standard` and 5 unless the
environment says otherwise) and around it s3fs (five times, also when a body breaks off; see `_worth_another_try`).
Every read and connection has a timeout. Other settings of s3fs can be given as FSSPEC_S3, a JSON object.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from dataset_build.errors import StorageError, UsageError

SCHEME = "s3://"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
_MAX_ATTEMPTS = 5
_READ_AHEAD_BYTES = 8 << 20
_DELETE_AT_ONCE = 1000
# Files from twice this size on are written in parts, so that a failed try repeats a part and not the file.
_PART_BYTES = 16 << 20
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_URL = re.compile(r"https?://\S+")
_REMEDY = {
    "credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL for a server of your own) where "
    "this command and where Ray's nodes are started",
    "refused": "check the key's rights and the path",
    "later": "start the same command again when the store answers; what was finished is kept",
}


class Stat(NamedTuple):
    """What a listing says of an object. `etag` changes when its bytes do."""

    size: int
    etag: str


def split(path: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. Raises UsageError where the path is none."""
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    if not path.startswith(SCHEME) or not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{_URL.sub('…', path) if '@' not in path else 'a path with a password in it'}: expected a local folder or "
            "s3://BUCKET/PREFIX; credentials come from the environment only"
        )
    if "?versionId=" in key:
        raise UsageError(f"{path}: objects are read in their newest version; ?versionId= is not understood")
    return bucket, key.strip("/")


def filesystem() -> Any:
    """The s3fs file system of this process and thread."""
    import fsspec.config
    import s3fs

    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _MAX_ATTEMPTS
    settings = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "retries": retries}
    s3fs.core.set_custom_error_handler(_worth_another_try)
    settings |= fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # What a listing said is out of date as soon as another worker writes.
    return s3fs.S3FileSystem(config_kwargs=settings, use_listings_cache=False)


def _worth_another_try(error: BaseException) -> bool:
    """What s3fs should retry besides what it knows: it looks for the word SlowDown, but the answer to a HEAD request
    has no text, only its number; and it takes a refused connection for final, though a server may be restarting."""
    import botocore.exceptions as boto

    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status == 429 or status >= 500
    return isinstance(error, boto.ConnectionError)


def stat(path: str) -> Stat:
    """Size and etag of an object, by one request. Raises FileNotFoundError, StorageError."""
    bucket, key = split(path)
    with _explained(path, "say what it is"):
        head = filesystem().call_s3("head_object", Bucket=bucket, Key=key)
    return Stat(int(head["ContentLength"]), _etag(head))


def exists(path: str) -> bool:
    """Whether there is an object of this name, or one below it."""
    bucket, key = split(path)
    if key:
        with contextlib.suppress(FileNotFoundError):
            stat(path)
            return True
    return next(iter(_pages(path, bucket, f"{key}/" if key else "", at_most=1)), None) is not None


def files(path: str) -> Iterator[tuple[str, Stat]]:
    """Every object below a prefix, in the order of the store: (path relative to it, size and etag).

    A thousand come with each request, and no more than those are held.
    """
    bucket, key = split(path)
    prefix = f"{key}/" if key else ""
    for entry in _pages(path, bucket, prefix):
        name = entry["Key"][len(prefix) :]
        if name and not name.endswith("/"):  # a name that ends so stands for an empty folder
            yield name, Stat(int(entry["Size"]), _etag(entry))


def _pages(path: str, bucket: str, prefix: str, at_most: int | None = None) -> Iterator[dict[str, Any]]:
    arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    if at_most:
        arguments["MaxKeys"] = at_most
    while True:
        with _explained(path, "list its files", missing_is_an_error=True):
            page = filesystem().call_s3("list_objects_v2", **arguments)
        yield from page.get("Contents", [])
        if at_most or not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def read(path: str) -> bytes:
    """All bytes of an object. Raises FileNotFoundError, StorageError."""
    bucket, key = split(path)
    with _explained(path, "give it"):
        # One request: with more at once, s3fs asks for the size first and does not retry a body that broke off.
        return filesystem().cat_file(f"{bucket}/{key}", max_concurrency=1)


def write(path: str, data: bytes) -> None:
    """Put an object; it is seen whole or not at all (large ones in parts, which count only once completed)."""
    bucket, key = split(path)
    with _explained(path, "take it", missing_is_an_error=True):
        filesystem().pipe_file(f"{bucket}/{key}", data, chunksize=_PART_BYTES)


def upload(path: str, source: str) -> None:
    """Put a local file, in parts where it is large, without holding it in memory; seen whole or not at all."""
    bucket, key = split(path)
    with _explained(path, "take it", missing_is_an_error=True):
        filesystem().put_file(source, f"{bucket}/{key}", chunksize=_PART_BYTES)


def download(path: str, target: str, expected: int) -> None:
    """Write an object's bytes to a local file, going on where the connection broke. Raises as `read` does."""
    bucket, key = split(path)
    with _explained(path, "give it"):
        filesystem().get_file(f"{bucket}/{key}", target, max_concurrency=1)
    if (found := os.path.getsize(target)) != expected:
        raise StorageError(
            f"{path}: {found} bytes came, {expected} were announced: it changed meanwhile; start again"
        )


def open_read(path: str) -> IO[bytes]:
    """An object as a stream that can be read anywhere, in pieces."""
    bucket, key = split(path)
    with _explained(path, "open it"):
        stream = filesystem().open(
            f"{bucket}/{key}", "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead"
        )
    return io.BufferedReader(_Explained(stream, path))


def remove(paths: Sequence[str]) -> None:
    """Remove objects of one bucket; those that are not there are fine."""
    for start in range(0, len(paths), _DELETE_AT_ONCE):
        some = paths[start : start + _DELETE_AT_ONCE]
        bucket = split(some[0])[0]
        request = {"Objects": [{"Key": split(path)[1]} for path in some], "Quiet": True}
        with _explained(some[0], "remove it", missing_is_an_error=True):
            answer = filesystem().call_s3("delete_objects", Bucket=bucket, Delete=request)
        for left in answer.get("Errors", []):
            raise StorageError(
                f"{SCHEME}{bucket}/{left.get('Key')}: S3 did not remove it: {left.get('Code')}; {_REMEDY['refused']}"
            )


class _Explained(io.RawIOBase):
    """A stream of s3fs whose errors name the path."""

    def __init__(self, stream: Any, path: str) -> None:
        self._stream, self._path = stream, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _explained(self._path, "give it"):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _etag(entry: dict[str, Any]) -> str:
    return str(entry.get("ETag", "")).strip('"')


@contextlib.contextmanager
def _explained(path: str, verb: str, missing_is_an_error: bool = False) -> Iterator[None]:
    """What S3 answers as a StorageError, or as a FileNotFoundError where there is no such object.

    The cause is left out of the error on purpose: its text holds the endpoint.
    """
    import aiohttp
    import botocore.exceptions as boto

    try:
        yield
    except FileNotFoundError as error:
        if not missing_is_an_error:
            raise FileNotFoundError(2, "there is no such object", path) from None
        raise StorageError(f"{path}: S3 did not {verb}: {_shown(error)}; {_REMEDY['refused']}") from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError):
        raise StorageError(f"{path}: there are no credentials for S3; {_REMEDY['credentials']}") from None
    except PermissionError as error:
        raise StorageError(f"{path}: S3 refused to {verb}: {_shown(error)}; {_REMEDY['refused']}") from None
    except (TimeoutError, OSError, aiohttp.ClientError, boto.BotoCoreError, boto.ClientError) as error:
        raise StorageError(f"{path}: S3 did not {verb}: {_shown(error)}; {_REMEDY['later']}") from None


def _shown(error: BaseException) -> str:
    """The error in one line, without the endpoint."""
    text = _URL.sub("the endpoint", str(error)).strip().splitlines()
    return f"{text[0]} ({type(error).__name__})"[:300] if text else type(error).__name__
