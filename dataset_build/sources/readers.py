"""Reading annotation files: one way per format, each safe for hostile bytes, local folders and `s3://` alike.

Everything takes the source's `root` and a path relative to it. What cannot be read at all is a BuildError naming the
file and the remedy; what is wrong with one row is left to the adapter, which gives it a Reject.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError

# An annotation file larger than this is not one of ours.
MAX_ANNOTATION_BYTES = 1 << 30
# The largest cell of a table: longer ones are cut with `Row.too_long` set, so that the row can be rejected.
MAX_CELL_CHARS = 1 << 20


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
    raise BuildError(
        f"{root}: its {what} is not there; looked for {', '.join(candidates)}. Set the source's root to the "
        "folder that holds it"
    )


def exists(root: str, path: str) -> bool:
    """Whether a file or folder is there."""
    return storage.exists(storage.join(root, path))


def folder(root: str, *candidates: str) -> str:
    """The first of `candidates` that is there, else the first: media folders that releases name differently."""
    return next((candidate for candidate in candidates if exists(root, candidate)), candidates[0])


def listing(root: str, folder: str = ".") -> list[str]:
    """All files below `folder`, sorted, relative to `root` with forward slashes; dot files and __MACOSX are left out.

    For sources without an annotation file, whose folders are the labels. Raises BuildError where it is not there.
    """
    top = root if folder in (".", "") else storage.join(root, folder)
    if not storage.is_remote(top) and not os.path.isdir(top):
        raise BuildError(f"{top}: the folder is not there; set the source's root to the folder that holds it")
    prefix = "" if folder in (".", "") else f"{folder.rstrip('/')}/"
    return [
        prefix + path
        for path in storage.list_files(top)
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    ]


def read(root: str, path: str) -> bytes:
    """The bytes of an annotation file. Raises BuildError naming it where it is missing or absurdly large."""
    full = storage.join(root, path)
    try:
        size = storage.size(full)
        if size > MAX_ANNOTATION_BYTES:
            raise BuildError(
                f"{full}: {size} bytes is too large for an annotation file; is it the right file?"
            )
        data = storage.read_bytes(full)
    except OSError as error:
        raise BuildError(
            f"{full}: the annotation file cannot be read ({error.strerror or error}); fetch the source"
        ) from error
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise BuildError(f"{full}: a git-lfs pointer, not the file; run `git lfs pull` in the source")
    return data


def text(root: str, path: str) -> str:
    """An annotation file as text: UTF-8 with or without BOM, else Windows-1252; C1 controls are mended."""
    return decode(read(root, path))


def decode(data: bytes) -> str:
    """Bytes as text: UTF-8 (BOM or not), else Windows-1252; then C1 control characters as Windows-1252 means them."""
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        decoded = data.decode("cp1252", "replace")
    return mend_c1(decoded)


_C1 = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}


def mend_c1(value: str) -> str:
    """U+0080–U+009F replaced by the character that Windows-1252 has at that byte, where it has one."""
    return value.translate(_C1)


def json_value(
    root: str, path: str, kind: type, hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The JSON value of an annotation file, which must be a `kind` (list or dict). Raises BuildError.

    `hook` makes an object of its (key, value) pairs; without it, objects are dicts and the last of repeated keys counts.
    """
    full = storage.join(root, path)
    try:
        value = json.loads(text(root, path), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BuildError):
            raise
        raise BuildError(f"{full}: not JSON ({error}); fetch the source again") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise BuildError(f"{full}: expected a JSON {kind.__name__}, found a {found}")
    return value


class _Object(dict[str, Any]):
    """A JSON object that remembers repeated keys."""

    pairs: list[tuple[str, Any]]


def _with_pairs(pairs: list[tuple[str, Any]]) -> _Object:
    value = _Object(pairs)
    value.pairs = pairs
    return value


def json_items(root: str, path: str) -> list[tuple[str, Any]]:
    """The (key, value) pairs of a file that is one JSON object, in its order, repeated keys too. Raises BuildError."""
    value: _Object = json_value(root, path, dict, _with_pairs)
    return value.pairs


def json_lines(root: str, path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number from 1, object) for every non-empty line; a line that is no JSON object comes as an explanation."""
    for number, line in enumerate(text(root, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
        else:
            yield (
                number,
                value if isinstance(value, dict) else f"a {type(value).__name__}, expected an object",
            )


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
    Blank rows (nothing but white space and delimiters) are passed over. A row of another width than the header, or
    with a cell longer than `MAX_CELL_CHARS`, comes with `problem` set.
    Raises BuildError where a column is missing or the file cannot be split into rows.
    """
    full = storage.join(root, path)
    content = text(root, path)
    if delimiter is None:
        delimiter = "\t" if "\t" in content.split("\n", 1)[0] else ","
    options: dict[str, Any] = {"delimiter": delimiter, "strict": False}
    if not quoting:
        options["quoting"] = csv.QUOTE_NONE
    csv.field_size_limit(MAX_ANNOTATION_BYTES)  # our own limit is below, with a message
    rows = csv.reader(io.StringIO(content, newline=""), **options)
    names = [name.strip() for name in header] if header is not None else None
    line = 0
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                missing = [column for column in columns if column not in names]
                if missing:
                    raise BuildError(
                        f"{full}: column {', '.join(missing)} missing; found {', '.join(names)[:300]}"
                    )
                continue
            line += 1
            yield _row(line, names, cells)
    except csv.Error as error:
        raise BuildError(
            f"{full}: row {line + 1} cannot be read ({error}); fetch the source again"
        ) from error
    if names is None:
        raise BuildError(f"{full}: the file is empty; expected columns {', '.join(columns)}")


def _row(line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    by_name = dict(zip(names, cells))
    if len(cells) != len(names):
        return Row(line, by_name, f"{len(cells)} cells, the header has {len(names)}")
    longest = max(names, key=lambda name: len(by_name[name]))
    if len(by_name[longest]) > MAX_CELL_CHARS:
        size = len(by_name[longest])
        by_name[longest] = by_name[longest][:200]
        return Row(line, by_name, f"column {longest} holds {size} characters; the limit is {MAX_CELL_CHARS}")
    return Row(line, by_name)


def literal(value: str) -> Any:
    """A Python literal (never code), as some sources write lists. Raises ValueError where it is none."""
    if len(value) > MAX_CELL_CHARS:
        raise ValueError(f"{len(value)} characters is too long for a list")
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"not a Python literal: {value[:80]!r}") from error


def whole(value: object) -> int | None:
    """A whole number written as 3, "3", 3.0 or "3.0"; None for anything else (True, 3.5, "", nan)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0").removeprefix("+")
        bare = digits.removeprefix("-")
        return int(digits) if bare.isascii() and bare.isdigit() and len(bare) <= 30 else None
    return None


def number(value: object) -> float | None:
    """A finite number, also written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) != float("inf") and found == found else None


def seconds(value: str) -> float | None:
    """Seconds of `h:mm:ss`, `mm:ss` or `ss`, the fraction behind a comma or a point; None for anything else."""
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
    return round(total, 6)


def same_name(root: str, path: str) -> str:
    """`path`, or its spelling in the other Unicode normal form where only that one is on disk (é as one or two)."""
    if exists(root, path):
        return path
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, path)  # type: ignore[arg-type]
        if other != path and exists(root, other):
            return other
    return path
