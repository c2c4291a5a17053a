"""Inline SVG of the report: a score with its interval on a common scale, and how often answers of each probability are right."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

GRID = (0, 25, 50, 75, 100)


def percent(value: float | None, digits: int = 1) -> str:
    """`0.4312` → `43.1 %`; a missing value is a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign: `+16.1`, `−2.0`."""
    text = f"{100 * abs(value):.1f}"
    if text == "0.0":
        return "0.0"
    return ("+" if value > 0 else "−") + text


def interval(bounds: list[float] | None) -> str:
    """`[0.331, 0.527]` → `33.1 to 52.7 %`."""
    return "" if not bounds else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}\N{NO-BREAK SPACE}%"


def number(value: float | None) -> str:
    """`0.4312` → `43.1`, for tables whose caption names the unit."""
    return "–" if value is None else f"{100 * value:.1f}"


def range_svg(entry: dict[str, Any], kind: str, label: str) -> Markup:
    """One row: whisker from lower to upper bound, a dot (`kind` ours: filled; otherwise hollow) at the accuracy."""
    low, high = (100 * bound for bound in entry["ci95"])
    middle = 100 * entry["accuracy"]
    said = f"{label}: {percent(entry['accuracy'])}, 95 % interval {interval(entry['ci95'])}"
    lines = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="24"/>' for x in GRID)
    return Markup(
        f'<svg class="range {escape(kind)}" width="100%" height="24" role="img" aria-label="{escape(said)}">{lines}'
        f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="12" y2="12"/>'
        f'<line class="cap" x1="{low:.2f}%" x2="{low:.2f}%" y1="8" y2="16"/>'
        f'<line class="cap" x1="{high:.2f}%" x2="{high:.2f}%" y1="8" y2="16"/>'
        f'<circle cx="{middle:.2f}%" cy="12" r="5"/></svg>'
    )


def shade(count: int, row_total: int) -> str:
    """Opacity of a confusion cell: the share of its row, so that rare labels show as well as frequent ones."""
    return f"{count / row_total:.2f}" if row_total else "0"


def calibration_svg(bins: list[dict[str, Any]], label: str) -> Markup:
    """The reliability diagram: for each bin a bar up to the accuracy of its answers, and a dot at their mean probability.

    The dot's area is the bin's share of the answers; on the diagonal, answers are as often right as they were held probable.
    """
    total = sum(part["n"] for part in bins)
    marks = []
    for part in bins:
        if not part["n"]:
            continue
        left, width, top = 100 * part["low"], 100 * (part["high"] - part["low"]), 100 * part["accuracy"]
        radius = 1.2 + 5 * (part["n"] / total) ** 0.5
        said = f"{part['n']} answers held {percent(part['confidence'])} probable: {percent(part['accuracy'])} right"
        marks.append(
            f'<rect x="{left:.2f}" y="{100 - top:.2f}" width="{width:.2f}" height="{top:.2f}"/>'
            f'<circle cx="{100 * part["confidence"]:.2f}" cy="{100 - top:.2f}" r="{radius:.2f}"><title>{escape(said)}</title></circle>'
        )
    grid = "".join(
        f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100"/><line class="grid" x1="0" x2="100" y1="{x}" y2="{x}"/>'
        for x in GRID
    )
    return Markup(
        f'<svg class="calibration" viewBox="-4 -4 108 108" role="img" aria-label="{escape(label)}">{grid}'
        f'<line class="even" x1="0" y1="100" x2="100" y2="0"/>{"".join(marks)}</svg>'
    )
