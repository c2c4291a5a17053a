"""Tables as rows: CSV and TSV with every line accounted for, whatever its quotes do. See `readers.table`."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dataset_build.errors import BuildError

# The longest line of a table or of JSON lines, and the longest cell that may run over lines.
MAX_LINE_CHARS = 128 << 20
# The largest cell of a table: longer ones are cut and `Row.problem` says so, so that the row can be rejected.
MAX_CELL_CHARS = 1 << 20
# What is kept of a cell that is too long: enough to find it.
_SHOWN_CHARS = 200
# A line of our own behind the last one: it comes back as a row of its own unless a quote is still open.
_END = "\x1eend of the table\x1e"
# A cell that runs over more lines than this is a quote that somebody forgot to close.
MAX_ROW_LINES = 1000
# Lines that may be read again because of such quotes, before the file is given up.
_MAX_LINES_AGAIN = 1_000_000


class Row(NamedTuple):
    """One row of a table: `line` is its number in the file (the first data row is 1), `cells` by column name."""

    line: int
    cells: dict[str, str]
    problem: str = ""  # not empty: the row is not a row of this table, and why


def lines(content: str, ends: str = "\r\n|\r|\n") -> Iterator[str]:
    """The lines with their ends, one at a time (`splitlines` holds all, and splits at characters inside a text)."""
    start = 0
    for match in re.finditer(ends, content):
        yield content[start : match.end()]
        start = match.end()
    if start < len(content):
        yield content[start:]


def rows(
    content: str,
    full: str,
    columns: Sequence[str],
    *,
    delimiter: str | None = None,
    quoting: bool = True,
    header: Sequence[str] | None = None,
) -> Iterator[Row]:
    """The rows of a table's text; `full` names it in errors. The rest is as `readers.table` says."""
    if delimiter is None:
        delimiter = "\t" if "\t" in content[: content.find("\n") + 1 or len(content)] else ","
    options: dict[str, Any] = {"delimiter": delimiter, "strict": False}
    if not quoting:
        options["quoting"] = csv.QUOTE_NONE
    csv.field_size_limit(MAX_LINE_CHARS)  # our own limit is in `_row`, with a message
    names = [name.strip() for name in header] if header is not None else None
    records = _Records(_ended(content, full), options, len(names) if names else 0)
    line = 0
    try:
        for cells, open_quote in records:
            if not any(cell.strip() for cell in cells):
                continue
            elif names is None:
                names = [cell.strip() for cell in cells]
                _check_header(full, names, columns)
                records.width = len(names)
            else:
                line += 1
                row = _row(line, names, cells)
                yield row._replace(problem="a quote is opened and not closed") if open_quote else row
    except csv.Error as error:
        raise BuildError(
            f"{full}: row {line + 1} cannot be read ({error}); fetch the source again"
        ) from error
    if names is None:
        raise BuildError(f"{full}: the file is empty; expected columns {', '.join(columns)}")


class _Records:
    """The rows of a table as (cells, whether a quote was left open).

    A quote that nobody closes swallows the rows behind it up to the next quote or the end of the file, and each of
    them is an item that must be accounted for. So where a row runs over several lines and does not end, or has not
    `width` cells while a line behind its first one has them by itself, only the first line is that (broken) row, and
    the others are read again.
    """

    def __init__(self, lines: Iterator[str], options: dict[str, Any], width: int) -> None:
        self.width = width  # 0 until the header is known
        self._lines, self._options = lines, options
        self._waiting: deque[str] = deque()
        self._taken: list[str] = []
        self._again = 0

    def __iter__(self) -> Iterator[tuple[list[str], bool]]:
        reader = csv.reader(self._feed(), **self._options)
        while True:
            self._taken.clear()
            cells = next(reader, None)
            if cells is None or cells == [_END] and len(self._taken) == 1:
                return
            first, behind = self._taken[0], [line for line in self._taken[1:] if line != _END]
            if not (self._is_open(cells) or (behind and self._holds_rows(cells, behind))):
                yield cells, False
                continue
            self._again += len(behind)
            if self._again > _MAX_LINES_AGAIN:
                raise csv.Error("too many quotes that are never closed")
            self._waiting.extendleft(reversed(behind))
            reader = csv.reader(self._feed(), **self._options)
            yield self._alone(first), True

    def _feed(self) -> Iterator[str]:
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._lines, _END)
            self._taken.append(line)
            if len(self._taken) > MAX_ROW_LINES and line != _END:
                self._taken.append(_END)
                self._waiting.appendleft(self._taken.pop(-2))
                line = _END
            yield line
            if line == _END:
                return

    def _is_open(self, cells: list[str]) -> bool:
        return bool(cells) and cells[-1].endswith(_END)

    def _holds_rows(self, cells: list[str], behind: Sequence[str]) -> bool:
        return (
            self.width > 1
            and len(cells) != self.width
            and any(len(self._alone(line)) == self.width for line in behind)
        )

    def _alone(self, line: str) -> list[str]:
        return next(csv.reader([line], **self._options), [])


def _ended(content: str, full: str) -> Iterator[str]:
    for line in lines(content):
        if len(line) > MAX_LINE_CHARS:
            raise BuildError(
                f"{full}: a line of {len(line)} characters; the limit is {MAX_LINE_CHARS}. Is it the right file?"
            )
        yield line


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
