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
import csv
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError

# An annotation file larger than this is not one of ours.
MAX_ANNOTATION_BYTES = 1 << 30
# JSON takes up to twenty times its size in memory (`[[],[],…`); the largest of the sources here has 70 MB.
MAX_JSON_BYTES = 256 << 20
# The longest line of a table or of JSON lines, and the longest cell that may run over lines.
MAX_LINE_CHARS = 128 << 20
# The largest cell of a table: longer ones are cut and `Row.problem` says so, so that the row can be rejected.
MAX_CELL_CHARS = 1 << 20
# What is kept of a cell that is too long: enough to find it.
_SHOWN_CHARS = 200
# float() of a longer text is no number that anybody wrote down.
_MAX_NUMBER_CHARS = 400


class Row(NamedTuple):
    """One row of a table: `line` is its number in the file (the first data row is 1), `cells` by column name."""

    line: int
    cells: dict[str, str]
    problem: str = ""  # not empty: the row is not a row of this table, and why


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
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        decoded = "\n".join(map(_decode_line, lines))
    return mend_c1(decoded)


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
    for number, line in enumerate(_lines(text(root, path), "\n"), 1):
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


def _lines(content: str, ends: str = "\r\n|\r|\n") -> Iterator[str]:
    """The lines with their ends, one at a time (`splitlines` holds all, and splits at characters inside a text)."""
    start = 0
    for match in re.finditer(ends, content):
        yield content[start : match.end()]
        start = match.end()
    if start < len(content):
        yield content[start:]


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
    NUL character or with a cell longer than `MAX_CELL_CHARS`, comes with `problem` set.
    Raises BuildError where a column is missing or stands twice, where a quote is never closed (it would swallow the
    rows after it) and where the file cannot be split into rows.
    """
    full = storage.join(root, path)
    content = text(root, path)
    if delimiter is None:
        delimiter = "\t" if "\t" in content.split("\n", 1)[0] else ","
    options: dict[str, Any] = {"delimiter": delimiter, "strict": False}
    if not quoting:
        options["quoting"] = csv.QUOTE_NONE
    csv.field_size_limit(MAX_LINE_CHARS)  # our own limit is below, with a message
    rows = csv.reader(_ended(content, full), **options)
    names = [name.strip() for name in header] if header is not None else None
    line, ended = 0, False
    try:
        for cells in rows:
            if cells and cells[-1].endswith(_END):
                ended = cells == [_END]
            elif not any(cell.strip() for cell in cells):
                continue
            elif names is None:
                names = [cell.strip() for cell in cells]
                _check_header(full, names, columns)
            else:
                line += 1
                yield _row(line, names, cells)
    except csv.Error as error:
        raise BuildError(
            f"{full}: row {line + 1} cannot be read ({error}); fetch the source again"
        ) from error
    if not ended:
        raise BuildError(
            f"{full}: row {line + 1} opens a quote that is never closed, so the rows after it cannot be told apart; "
            "close it, or fetch the source again"
        )
    if names is None:
        raise BuildError(f"{full}: the file is empty; expected columns {', '.join(columns)}")


# A line of our own behind the last one: it comes back as a row of its own unless a quote is still open.
_END = "\x1eend of the table\x1e"


def _ended(content: str, full: str) -> Iterator[str]:
    for line in _lines(content):
        if len(line) > MAX_LINE_CHARS:
            raise BuildError(
                f"{full}: a line of {len(line)} characters; the limit is {MAX_LINE_CHARS}. Is it the right file?"
            )
        yield line
    yield _END


def _check_header(full: str, names: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        hint = (
            " (NUL characters: is it UTF-16 without a BOM?)" if any("\x00" in name for name in names) else ""
        )
        raise BuildError(
            f"{full}: column {', '.join(missing)} missing; found {', '.join(names)[:300]!r}{hint}"
        )
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise BuildError(f"{full}: column {', '.join(twice)} stands twice in the header; rename one")


def _row(line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    by_name = dict(zip(names, cells))
    problem = ""
    if len(cells) != len(names):
        problem = f"{len(cells)} cells, the header has {len(names)}"
    for name, cell in by_name.items():
        if len(cell) > MAX_CELL_CHARS:
            by_name[name] = cell[:_SHOWN_CHARS]
            problem = problem or f"column {name} holds {len(cell)} characters; the limit is {MAX_CELL_CHARS}"
        elif "\x00" in cell:
            problem = problem or f"column {name} holds a NUL character"
    return Row(line, by_name, problem)


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
