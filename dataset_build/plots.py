"""The pictures of the dataset card. Drawn without a display; not part of any digest."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping

# A palette that stays apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_GREY = "#8a8a8a"


def stacked_bars(title: str, counts: Mapping[str, Mapping[str, int]], unit: str, log: bool = False) -> bytes:
    """One horizontal bar per key of `counts`, stacked by its inner keys; PNG bytes."""
    inner = list(dict.fromkeys(name for row in counts.values() for name in row))
    figure, axes = _figure(height=0.9 + 0.3 * len(counts))
    names = list(counts)
    left = [0] * len(names)
    for number, part in enumerate(inner):
        widths = [counts[name].get(part, 0) for name in names]
        axes.barh(names, widths, left=left, label=part, color=_COLOURS[number % len(_COLOURS)], height=0.7)
        left = [before + width for before, width in zip(left, widths)]
    for place, total in enumerate(left):
        axes.text(total, place, f" {total}", va="center", fontsize=8, color="#333333")
    longest = max(left, default=0) or 1
    if log:
        axes.set_xscale("log")
        axes.set_xlim(0.5, longest * 4)
    else:
        axes.set_xlim(0, longest * 1.12)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    if len(inner) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _png(figure)


def histogram(title: str, values: Mapping[str, Counter[int]], unit: str) -> bytes:
    """Distributions of whole numbers, one line of bars per key; PNG bytes."""
    figure, axes = _figure(height=3.2)
    everything = sorted({value for counts in values.values() for value in counts})
    if len(everything) <= 12:
        places = {value: place for place, value in enumerate(everything)}
        width = 0.8 / max(1, len(values))
        for number, (name, counts) in enumerate(values.items()):
            offset = (number - (len(values) - 1) / 2) * width
            heights = [counts.get(value, 0) for value in everything]
            axes.bar(
                [places[v] + offset for v in everything],
                heights,
                width,
                label=name,
                color=_COLOURS[number % 6],
            )
        axes.set_xticks(range(len(everything)), [str(value) for value in everything])
    else:
        data = [[value for value, n in counts.items() for _ in range(n)] for counts in values.values()]
        colours = [_COLOURS[number % 6] for number in range(len(values))]
        axes.hist(data, bins=30, stacked=True, label=list(values), color=colours)
    axes.set_xlabel(unit)
    axes.set_ylabel("media")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def _figure(height: float):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=_GREY)
    return figure, axes


def _png(figure) -> bytes:  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
