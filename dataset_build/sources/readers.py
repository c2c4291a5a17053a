"""Reading annotation files: one way per format, each safe for hostile bytes, local folders and `s3://` alike.

Everything takes the source's `root` and a path relative to it, which may not lead out of it: not by `..`, not as an
absolute path, not through a link. What cannot be read at all is a BuildError naming the file and the remedy; what is
wrong with one row is left to the adapter, which gives it a Reject. Archives are never unpacked here: a source's root
is what the user unpacked.

JSON: `NaN`, `Infinity` and numbers beyond a double come as floats, which `number` and `whole` refuse. A key that
stands twice in one object is an error, because one of the two values would be lost.
"""

from __future__ import annotations

import ast
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import tables
from dataset_build.sources.tables import MAX_CELL_CHARS, MAX_LINE_CHARS, Row

# An annotation file larger than this is not one of ours.
MAX_ANNOTATION_BYTES = 1 << 30
# JSON takes up to twenty times its size in memory (`[[],[],…`); the largest of the sources here has 70 MB.
MAX_JSON_BYTES = 256 << 20
# float() of a longer text is no number that anybody wrote down.
_MAX_NUMBER_CHARS = 400


def find(root: str, *candidates: str, what: str = "annotation file") -> str:
    """The first of `candidates` (paths relative to `root`) that exists. Raises BuildError naming all of them."""
    for candidate in candidates:
        if exists(root, candidate):
            return candidate
    linked = next((f". {path}: {why}" for path in candidates if (why := outside(root, path))), "")
    raise BuildError(
        f"{root}: its {what} is not there; looked for {', '.join(candidates)}. Set the source's root to the "
        f"folder that holds it{linked}"
    )


def exists(root: str, path: str) -> bool:
    """Whether a file or folder is there, inside the root."""
    return not outside(root, path) and storage.exists(storage.join(root, path))


def outside(root: str, path: str) -> str:
    """Why `path` is not a place inside `root`; empty where it is one (a file need not be there)."""
    parts = path.replace("\\", "/").split("/")
    if "\x00" in path or path != path.encode("utf-8", "ignore").decode():
        return "it is not the name of a file"
    if ".." in parts or os.path.isabs(path) or path.startswith(("/", "\\")) or storage.is_remote(path):
        return "it leads out of the source's root"
    if not storage.is_remote(root):
        real_root = os.path.realpath(root)
        full = os.path.realpath(os.path.join(real_root, path))
        if os.path.commonpath([real_root, full]) != real_root:
            return (
                "a link leads out of the source's root; copy the file there, or set the root to where it lies"
            )
    return ""


def folder(root: str, *candidates: str) -> str:
    """The first of `candidates` that is there, else the first: media folders that releases name differently."""
    return next((candidate for candidate in candidates if exists(root, candidate)), candidates[0])


def listing(root: str, folder: str = ".") -> list[str]:
    """All files below `folder`, sorted, relative to `root` with forward slashes; dot files and __MACOSX are left out.

    For sources without an annotation file, whose folders are the labels. Raises BuildError where it is not there.
    """
    why = outside(root, folder)
    if why:
        raise BuildError(f"{storage.join(root, folder)!r}: {why}")
    top = root if folder in (".", "") else storage.join(root, folder)
    if not storage.is_remote(top) and not os.path.isdir(top):
        raise BuildError(f"{top}: the folder is not there; set the source's root to the folder that holds it")
    prefix = "" if folder in (".", "") else f"{folder.rstrip('/')}/"
    return [
        prefix + path
        for path in storage.list_files(top)
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    ]


def read(root: str, path: str, max_bytes: int = MAX_ANNOTATION_BYTES) -> bytes:
    """The bytes of an annotation file. Raises BuildError naming it where it is missing, outside or absurdly large."""
    full = storage.join(root, path)
    why = outside(root, path)
    if why:
        raise BuildError(f"{full!r}: {why}")
    if not storage.is_remote(full) and os.path.exists(full) and not os.path.isfile(full):
        raise BuildError(f"{full}: not a regular file; fetch the source")
    try:
        size = storage.size(full)
        if size > max_bytes:
            raise BuildError(
                f"{full}: {size} bytes is too large for an annotation file (limit {max_bytes}); is it the right file?"
            )
        data = storage.read_bytes(full)
    except OSError as error:
        raise BuildError(
            f"{full}: the annotation file cannot be read ({error.strerror or error}); fetch the source"
        ) from error
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise BuildError(f"{full}: a git-lfs pointer, not the file; run `git lfs pull` in the source")
    return data


def text(root: str, path: str, max_bytes: int = MAX_ANNOTATION_BYTES) -> str:
    """An annotation file as text; see `decode`."""
    return decode(read(root, path, max_bytes))


def decode(data: bytes) -> str:
    """Bytes as text: UTF-8 with or without BOM, UTF-16 with one; a line that is no UTF-8 is read as Windows-1252.

    By the line, because files that were put together from several sources mix the two. Then C1 control characters are
    read as Windows-1252 means them. Never raises: what no encoding knows becomes U+FFFD.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return mend_c1(data.decode("utf-16", "replace"))
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        decoded = "".join(_decode_blocks(data.removeprefix(b"\xef\xbb\xbf")))
    return mend_c1(decoded)


def _decode_blocks(data: bytes) -> Iterator[str]:
    """About a MiB of whole lines at a time: a list of all lines can take thirty times the file."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + (1 << 20)) + 1 or len(data)
        block = data[start:end]
        try:
            yield block.decode("utf-8")
        except UnicodeDecodeError:
            yield "\n".join(map(_decode_line, block.split(b"\n")))
        start = end


def _decode_line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


_C1 = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
_ANY_C1 = re.compile("[\x80-\x9f]")


def mend_c1(value: str) -> str:
    """U+0080–U+009F replaced by the character that Windows-1252 has at that byte, where it has one."""
    return value.translate(_C1) if _ANY_C1.search(value) else value


def json_value(root: str, path: str, kind: type) -> Any:
    """The JSON value of an annotation file, which must be a `kind` (list or dict). Raises BuildError."""
    full = storage.join(root, path)
    content = text(root, path, MAX_JSON_BYTES)
    try:
        value = _json(content)
    except ValueError as error:
        raise BuildError(f"{full}: not JSON ({error}); fetch the source again") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise BuildError(f"{full}: expected a JSON {kind.__name__}, found a {found}")
    return value


def json_items(root: str, path: str) -> list[tuple[str, Any]]:
    """The (key, value) pairs of a file that is one JSON object, in its order, repeated keys too. Raises BuildError."""
    full = storage.join(root, path)
    content = text(root, path, MAX_JSON_BYTES)
    calls: list[tuple[list[tuple[str, Any]], str]] = [([], "")]

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Called for the inner objects first and for the whole last: only that one may repeat a key."""
        if calls[0][1]:
            raise ValueError(calls[0][1])
        calls[0] = (pairs, _repeated(pairs))
        return dict(pairs)

    try:
        value = _json(content, keep)
    except ValueError as error:
        raise BuildError(f"{full}: not JSON ({error}); fetch the source again") from error
    if not isinstance(value, dict):
        raise BuildError(f"{full}: expected a JSON dict, found a {type(value).__name__}")
    return calls[0][0]


def json_lines(root: str, path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number from 1, object) for every non-empty line; a line that is no JSON object comes as an explanation."""
    for number, line in enumerate(tables.lines(text(root, path), "\n"), 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_CHARS:
            yield number, f"a line of {len(line)} characters; the limit is {MAX_LINE_CHARS}"
            continue
        try:
            value = _json(line)
        except ValueError as error:
            yield number, f"not JSON: {error}"
        else:
            yield (
                number,
                value if isinstance(value, dict) else f"a {type(value).__name__}, expected an object",
            )


def _json(content: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON value in a text. Raises ValueError, also for a key that stands twice and for too many levels."""
    try:
        return json.loads(content, object_pairs_hook=hook or _object)
    except RecursionError as error:
        raise ValueError("too many levels of brackets") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    problem = _repeated(pairs)
    if problem:
        raise ValueError(problem)
    return dict(pairs)


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    """What is wrong with an object that has a key twice; empty where each stands once."""
    counts = Counter(key for key, _ in pairs) if len({key for key, _ in pairs}) < len(pairs) else {}
    twice = [key for key, count in counts.items() if count > 1]
    return f"the key {twice[0][:80]!r} stands twice in one object; remove or rename one" if twice else ""


def table(
    root: str,
    path: str,
    columns: Sequence[str],
    *,
    delimiter: str | None = None,
    quoting: bool = True,
    header: Sequence[str] | None = None,
) -> Iterator[Row]:
    """The rows of a CSV or TSV file. `columns` must all be there; a file without a header row gives `header`.

    `delimiter` None: tab where the first line holds one, else comma. `quoting` False: quotes are plain characters.
    Blank rows (nothing but white space and delimiters) are passed over. A row of another width than the header, with a
    NUL character or with a cell longer than `MAX_CELL_CHARS`, comes with `problem` set. So does a line whose quote is
    not closed in it where it would swallow rows: the lines behind it are rows of their own then (see `_Records`).
    Raises BuildError where a column is missing or stands twice and where the file cannot be split into rows.
    """
    content = text(root, path)
    yield from tables.rows(
        content, storage.join(root, path), columns, delimiter=delimiter, quoting=quoting, header=header
    )


def literal(value: str) -> Any:
    """A Python literal (never code), as some sources write lists. Raises ValueError where it is none."""
    if not isinstance(value, str):
        raise ValueError(f"expected the text of a Python literal, found a {type(value).__name__}")
    if len(value) > MAX_CELL_CHARS:
        raise ValueError(f"{len(value)} characters is too long for a list")
    try:
        found = ast.literal_eval(value.strip())
        repr(found)  # a whole number written in hexadecimal can be too long to print
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"not a Python literal: {value[:80]!r}") from error
    return found


def whole(value: object) -> int | None:
    """A whole number written as 3, "3", 3.0 or "3.0"; None for anything else (True, 3.5, "", nan)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        found = re.fullmatch(r"([+-]?[0-9]{1,30})(\.0)?", value.strip())
        return int(found[1]) if found else None
    return None


def digits(value: object, most: int = 30) -> str:
    """The at most `most` digits of an id that is written as a whole number or as text; empty for anything else, a float too
    (it has lost the last digits)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**most:
        return str(value)
    plain = value if isinstance(value, str) and value.isascii() and value.isdigit() else ""
    return plain if len(plain) <= most else ""


def number(value: object) -> float | None:
    """A finite number, also written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and (len(value) > _MAX_NUMBER_CHARS or "_" in value or not value.isascii()):
        return None  # float() reads 1_000 and the digits of every script
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) != float("inf") and found == found else None


def seconds(value: object) -> float | None:
    """Seconds of `h:mm:ss`, `mm:ss` or `ss`, the fraction behind a comma or a point; None for anything else."""
    if not isinstance(value, str) or len(value) > _MAX_NUMBER_CHARS:
        return None
    parts = value.strip().replace(",", ".").split(":")
    if not 1 <= len(parts) <= 3:
        return None
    total = 0.0
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        bare = part.replace(".", "", 1) if last else part
        if not (bare.isascii() and bare.isdigit()):
            return None
        total = total * 60 + float(part)
    return round(total, 6) if total < float("inf") else None


def same_name(root: str, path: str) -> str:
    """`path`, or its spelling in the other Unicode normal form where only that one is on disk (é as one or two)."""
    if exists(root, path):
        return path
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, path)  # type: ignore[arg-type]
        if other != path and exists(root, other):
            return other
    return path
