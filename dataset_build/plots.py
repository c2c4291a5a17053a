"""The pictures of the dataset card, readable with dozens of sources and labels. Drawn without a display; not part of any
digest."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence

# A palette that stays apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_GREY, _INK = "#8a8a8a", "#333333"
_BAR_IN, _PANEL_IN = 0.19, 0.6  # inches: one bar with its label; title and axis of a panel
_NAME_CHARS = 36
# Bars of one panel; the labels with the fewest rows are summed up beyond.
MAX_BARS = 28

Counts = Mapping[str, Mapping[str, int]]  # bar → part → how many


def folded(counts: Counts, most: int = MAX_BARS) -> dict[str, dict[str, int]]:
    """At most `most` bars, the longest first; the rest as one bar."""
    ordered = sorted(counts, key=lambda name: (-sum(counts[name].values()), name))
    if len(ordered) <= most:
        return {name: dict(counts[name]) for name in ordered}
    kept = {name: dict(counts[name]) for name in ordered[: most - 1]}
    rest: Counter[str] = Counter()
    for name in ordered[most - 1 :]:
        rest.update(counts[name])
    return {**kept, f"{len(ordered) - most + 1} others": dict(rest)}


def panels(title: str, by_panel: Mapping[str, Counts], parts: Sequence[str], unit: str) -> bytes:
    """A panel of horizontal bars per key of `by_panel`, stacked by `parts`, in two columns; PNG bytes."""
    figure = _figure()
    columns: list[list[str]] = [[], []]
    heights = [0.0, 0.0]
    shown = {name: folded(counts) for name, counts in by_panel.items()}
    for name, counts in shown.items():
        shorter = 0 if heights[0] <= heights[1] else 1
        columns[shorter].append(name)
        heights[shorter] += _PANEL_IN + _BAR_IN * len(counts)
    n_columns = 2 if columns[1] else 1
    figure.set_size_inches(10.4 if n_columns == 2 else 7.6, max(2.0, *heights) + 0.7)
    grid = figure.add_gridspec(1, n_columns, wspace=0.02)
    for place, names in enumerate(columns[:n_columns] if shown else []):
        ratios = [_PANEL_IN + _BAR_IN * len(shown[name]) for name in names]
        filler = [max(heights) - heights[place]] if max(heights) - heights[place] > 0.05 else []
        inner = grid[place].subgridspec(len(names) + len(filler), 1, height_ratios=[*ratios, *filler])
        for row, name in enumerate(names):
            _stacked(figure.add_subplot(inner[row]), name, shown[name], parts)
    figure.suptitle(f"{title} ({unit})", x=0.01, ha="left", fontsize=11)
    handles = [_patch(_COLOURS[number % len(_COLOURS)], part) for number, part in enumerate(parts)]
    if len(parts) > 1:
        figure.legend(handles=handles, loc="upper right", ncols=len(parts), frameon=False, fontsize=8)
    return _png(figure)


def dots(title: str, counts: Counts, parts: Sequence[str], unit: str) -> bytes:
    """One row per key of `counts`, a dot per part on a logarithmic axis: for counts of very different size."""
    figure = _figure()
    figure.set_size_inches(7.6, 1.2 + 0.24 * len(counts))
    axes = _axes(figure.subplots())
    for number, part in enumerate(parts):
        places = [place for place, row in enumerate(counts.values()) if row.get(part)]
        values = [row[part] for row in counts.values() if row.get(part)]
        axes.scatter(
            values, places, s=34, color=_COLOURS[number % len(_COLOURS)], label=part, zorder=3, alpha=0.9
        )
    for place, row in enumerate(counts.values()):
        present = [n for n in row.values() if n]
        if present:
            axes.plot([min(present), max(present)], [place, place], color="#c8c8c8", linewidth=1, zorder=2)
    _names(axes, list(counts))
    axes.set_xscale("log")
    axes.set_xlim(left=0.8)
    axes.set_xlabel(f"{unit} (log scale)", fontsize=8)
    axes.set_title(title, loc="left", fontsize=11)
    if len(parts) > 1 and counts:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def ranges(title: str, values: Mapping[str, Counter[int]], unit: str) -> bytes:
    """One row per key: a line from the smallest to the largest value, a bar over the middle half, a dot at the median."""
    figure = _figure()
    figure.set_size_inches(7.6, 1.2 + 0.24 * len(values))
    axes = _axes(figure.subplots())
    for place, counts in enumerate(values.values()):
        low, first, middle, third, high = (_quantile(counts, q) for q in (0, 0.25, 0.5, 0.75, 1))
        axes.plot([low, high], [place, place], color=_GREY, linewidth=1)
        axes.plot([first, third], [place, place], color=_COLOURS[5], linewidth=6, solid_capstyle="butt")
        axes.scatter([middle], [place], s=26, color=_COLOURS[0], zorder=3)
    _names(axes, list(values))
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit}: range, middle half, median", fontsize=8)
    axes.set_title(title, loc="left", fontsize=11)
    return _png(figure)


def matrix(title: str, counts: Counts, columns: Sequence[str], note: str) -> bytes:
    """Counts in a grid, rows × columns, darker for more (log scale); PNG bytes."""
    figure = _figure()
    figure.set_size_inches(1.9 + 0.62 * max(3, len(columns)), 1.7 + 0.24 * max(1, len(counts)))
    axes = figure.subplots()
    most = max((n for row in counts.values() for n in row.values()), default=1)
    shades = [
        [math.log1p(row.get(name, 0)) / math.log1p(most) for name in columns] for row in counts.values()
    ]
    if counts and columns:
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
        for place, row in enumerate(counts.values()):
            for column, name in enumerate(columns):
                if row.get(name):
                    dark = shades[place][column] > 0.75
                    axes.text(
                        column, place, _short(row[name]), ha="center", va="center", fontsize=7,
                        color="white" if dark else _INK,
                    )  # fmt: skip
    else:
        axes.text(0.5, 0.5, "none", ha="center", va="center", color=_GREY)
    axes.set_xticks(
        range(len(columns)), [name.replace("_", " ") for name in columns], rotation=40, ha="right"
    )
    axes.set_yticks(range(len(counts)), [_cut(name) for name in counts])
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(note, fontsize=8)
    return _png(figure)


def _stacked(axes, title: str, counts: Counts, parts: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    _axes(axes)
    left = [0] * len(counts)
    for number, part in enumerate(parts):
        widths = [row.get(part, 0) for row in counts.values()]
        axes.barh(range(len(counts)), widths, left=left, color=_COLOURS[number % len(_COLOURS)], height=0.72)
        left = [before + width for before, width in zip(left, widths)]
    for place, total in enumerate(left):
        axes.text(total, place, f" {_short(total)}", va="center", fontsize=7, color=_INK)
    axes.set_xlim(0, (max(left, default=0) or 1) * 1.14)
    _names(axes, list(counts))
    axes.xaxis.set_major_locator(_few_ticks())
    axes.set_title(title, loc="left", fontsize=9, color=_INK)


def _names(axes, names: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    axes.set_yticks(range(len(names)), [_cut(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"


def _short(count: int) -> str:
    """`123456` → `123k`."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that at least this share of all values do not exceed."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return 0


def _few_ticks():  # type: ignore[no-untyped-def]
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True)


def _patch(colour: str, label: str):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _axes(axes):  # type: ignore[no-untyped-def]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=_GREY)
    return axes


def load():  # type: ignore[no-untyped-def]
    """matplotlib's Figure. Importing it takes a third of a second, which can pass while others work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure


def _figure():  # type: ignore[no-untyped-def]
    return load()(dpi=110, layout="constrained")


def _png(figure) -> bytes:  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
