"""Pieces of Markdown for the dataset card: tables, folded parts, numbers for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# What a stranger's text may take in the card.
MAX_CHARS = 160


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *(line(row) for row in rows)])


def folded_table(head: Sequence[Any], rows: Sequence[Sequence[Any]], shown: int, what: str) -> str:
    """The first rows; the others, if they are more than a few, in `<details>`."""
    if len(rows) <= shown + 3:
        return table(head, rows)
    rest = details(f"{len(rows) - shown} further {what}", table(head, rows[shown:]))
    return f"{table(head, rows[:shown])}\n\n{rest}"


def details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def literal(detail: str) -> str:
    """A detail as code, so that nothing in a stranger's text is taken for Markdown or HTML."""
    return f"`` {cut(detail).replace('`', 'ˋ')} ``"


def cut(detail: str) -> str:
    flat = " ".join(detail.split())
    return flat if len(flat) <= MAX_CHARS else f"{flat[: MAX_CHARS - 1]}…"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def length(seconds: float) -> str:
    if not seconds:
        return ""
    return (
        f" ({seconds / 3600:,.1f} h)"
        if seconds >= 3600
        else f" ({seconds / 60:.0f} min)"
        if seconds >= 60
        else f" ({seconds:.0f} s)"
    )
