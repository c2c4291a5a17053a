"""What each flow run leaves on its Prefect page: progress, tables of counts and scores, links.

Artifacts are a service to the reader: a Prefect server that does not take one is logged, never an error of the flow.
Keys are stable (`counts-quickstart`), so that the page of a key shows how it went from run to run.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

from flows.job_logs import progress_of
from flows.redact import redactor

Row = dict[str, Any]
_EVERY_S = 4.0


def key_of(kind: str, name: str) -> str:
    """An artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")


class ProgressArtifact:
    """The progress bar of a flow run, fed with the log lines of its job. It appears with the first progress line."""

    def __init__(self, name: str) -> None:
        self._key = key_of("progress", name)
        self._id: Any = None
        self._last = 0.0

    def see(self, line: str) -> None:
        progress = progress_of(line)
        if progress is None or time.monotonic() - self._last < _EVERY_S:
            return
        self._last = time.monotonic()
        self._put(progress.percent, redactor()(progress.line))

    def done(self) -> None:
        if self._id is not None:
            self._put(100.0, "done")

    def _put(self, percent: float, description: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        def put() -> None:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=self._key, description=description)
            else:
                update_progress_artifact(self._id, percent, description=description)

        _kindly(put)


def record_build(
    recipe: str, manifest: dict[str, Any], rejects: list[Row], leakage: Any, links: list[Row]
) -> None:
    """Counts ledger, rejects by reason and leakage of an EmoBench."""
    digest = f"EmoBench digest `{manifest['digest']}`"
    _table(
        key_of("counts", recipe), counts_ledger(manifest), f"records = kept + rejected + duplicates. {digest}"
    )
    _table(
        key_of("rejects", recipe), rejects or [{"source": "none", "reason": "", "rows": 0}], "Rejected rows"
    )
    _table(
        key_of("leakage", recipe), leakage_rows(leakage), "Rows removed because a twin is in another split"
    )
    record_links(recipe, "build", links)


def record_training(recipe: str, training: dict[str, Any], links: list[Row]) -> None:
    """One row per fold: steps, samples, loss, how far each perspective has opened, time."""
    rows = [{name: _plain(value) for name, value in fold.items()} for fold in training.get("folds", [])]
    _table(key_of("training", recipe), rows, f"Model digest `{training.get('model_digest', '')}`")
    record_links(recipe, "train", links)


def record_curves(recipe: str, curves: dict[str, list[Row]]) -> None:
    """Training curves: `curves` holds per fold the lines of its metrics file (step, loss and more)."""
    rows = curve_rows(curves)
    if rows:
        shapes = "; ".join(
            f"{fold} {sparkline([line['loss'] for line in lines])}" for fold, lines in curves.items()
        )
        _table(
            key_of("training-curves", recipe),
            rows,
            f"Loss per supervised token, first to last step: {shapes}",
        )


def record_scores(recipe: str, results: dict[str, Any], links: list[Row]) -> None:
    """Scores with 95 % intervals against the baselines."""
    note = "Accuracy with 95 % bootstrap interval; demonstration sub-tasks are separable by style and stay out of the overall mean"
    _table(key_of("scores", recipe), score_rows(results), note)
    record_links(recipe, "evaluate", links)


def record_decision(recipe: str, decision: dict[str, Any], links: list[Row]) -> None:
    rows = [{"what": name, "value": _plain(value)} for name, value in decision.items()]
    _table(key_of("decision", recipe), rows, f"{decision['decision']}: {decision['reason']}")
    record_links(recipe, "retrain", links)


def record_links(recipe: str, step: str, links: list[Row]) -> None:
    """Where to look further; `links` are rows of `what` and `where` (a URL or a path)."""
    from prefect.artifacts import create_markdown_artifact

    redact = redactor()

    def shown(where: str) -> str:
        return f"[{where}]({where})" if where.startswith("http") else f"`{where}`"

    lines = [f"* {link['what']}: {shown(redact(str(link['where'])))}" for link in links if link.get("where")]
    _kindly(
        lambda: create_markdown_artifact("\n".join(lines) or "nothing", key=key_of(f"links-{step}", recipe))
    )


def counts_ledger(manifest: dict[str, Any]) -> list[Row]:
    """One row per source and split, and the total, which must balance."""
    rows = []
    columns = ("records", "kept", "rejected", "duplicates")
    for source, splits in manifest["sources"].items():
        for split, counts in splits.items():
            rows.append({"source": source, "split": split, **{name: counts[name] for name in columns}})
    total = {name: sum(row[name] for row in rows) for name in columns}
    return [*rows, {"source": "total", "split": "", **total}]


_CURVE_POINTS = 40
_BARS = "▁▂▃▄▅▆▇█"


def curve_rows(curves: dict[str, list[Row]]) -> list[Row]:
    """One row per shown step, evenly spaced, the first and the last among them; one column per fold."""
    steps = sorted({line["step"] for lines in curves.values() for line in lines})
    shown = _spread(steps, _CURVE_POINTS)
    losses = {fold: {line["step"]: line["loss"] for line in lines} for fold, lines in curves.items()}
    return [
        {
            "step": step,
            **{fold: _plain(found[step]) if step in found else "" for fold, found in losses.items()},
        }
        for step in shown
    ]


def sparkline(values: list[float]) -> str:
    """The shape of a curve in one line of text."""
    finite = [value for value in _spread(values, _CURVE_POINTS) if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in finite)


def _spread(values: list[Any], most: int) -> list[Any]:
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def leakage_rows(leakage: Any) -> list[Row]:
    """leakage.json as table rows: a list of objects as it is, an object as name and value."""
    if isinstance(leakage, dict):
        rows = [{"what": name, "value": _plain(value)} for name, value in leakage.items()]
    else:
        rows = [{name: _plain(value) for name, value in row.items()} for row in leakage or []]
    return rows or [{"what": "none", "value": 0}]


def score_rows(results: dict[str, Any]) -> list[Row]:
    """One row per sub-task and the overall mean, as people read them."""
    rows = []
    for name, task in results["sub_tasks"].items():
        row: Row = {"sub_task": name, "n": task["n"], "accuracy": _with_interval(task)}
        for baseline, theirs in (task.get("baselines") or {}).items():
            row[baseline] = _with_interval(theirs)
            row[f"gain over {baseline}"] = _interval(theirs.get("diff_ci95"))
        row["note"] = task.get("note") or ("demonstration" if task.get("demonstration") else "")
        rows.append(row)
    overall = results["overall"]
    rows.append(
        {"sub_task": "overall", "n": "", "accuracy": _with_interval(overall), "note": "mean of sub-tasks"}
    )
    for baseline, theirs in (overall.get("baselines") or {}).items():
        rows[-1][baseline] = _with_interval(theirs)
        rows[-1][f"gain over {baseline}"] = _interval(theirs.get("diff_ci95"))
    columns = list(dict.fromkeys(column for row in rows for column in row if column != "note"))
    return [{column: row.get(column, "") for column in [*columns, "note"]} for row in rows]


def _with_interval(score: dict[str, Any]) -> str:
    if score.get("accuracy") is None:
        return "–"
    return f"{score['accuracy']:.3f} {_interval(score.get('ci95'))}".strip()


def _interval(ci95: list[float] | None) -> str:
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else ""


def _plain(value: Any) -> str | int | float:
    """A table cell: numbers as they are, anything nested as short text."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())[:500]
    return ", ".join(str(_plain(inner)) for inner in value)[:500] or "none"


def _table(key: str, rows: list[Row], description: str) -> None:
    from prefect.artifacts import create_table_artifact

    redact = redactor()
    safe = [
        {name: redact(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows
    ]
    _kindly(lambda: create_table_artifact(safe, key=key, description=redact(description)))


def _kindly(put: Callable[[], Any]) -> None:
    try:
        put()
    except Exception as error:  # the server is away or refuses: the flow's work is not worth less for it
        from prefect import get_run_logger

        get_run_logger().warning("an artifact could not be stored: %s", redactor()(str(error)))
