"""Inline SVG of the report: a score with its interval on a common scale. Widths are in percent, so they fit any screen."""

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
