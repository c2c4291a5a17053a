"""Two evaluations of the same samples: paired differences per sub-task and overall, and the exact McNemar test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dataset_build.labels import SUB_TASK_NAMES
from emollm.evaluate import statistics
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.run_folder import Run, by_uid


class Difference(NamedTuple):
    """Accuracies of both runs on the same `n` samples in `clusters` groups; `diff` is second minus first."""

    n: int
    clusters: int
    demonstration: bool
    first: float
    second: float
    diff: float
    ci95: statistics.Interval
    test: statistics.McNemar


class Overall(NamedTuple):
    """The mean over `sub_tasks`, those that are no demonstration. There is no McNemar test of a mean of sub-tasks."""

    sub_tasks: tuple[str, ...]
    first: float
    second: float
    diff: float
    ci95: statistics.Interval


class Comparison(NamedTuple):
    sub_tasks: dict[str, Difference]
    overall: Overall | None


class _Answers(NamedTuple):
    """Columns of one sub-task's counted samples, sorted by uid."""

    uids: list[str]
    groups: list[str]
    correct: list[bool]
    demonstration: bool


def compare_runs(first: Run, second: Run, sub_tasks: Sequence[str] | None = None) -> Comparison:
    """How much better `second` is than `first`, on exactly the same samples.

    `sub_tasks` restricts both runs. Draws and seed are those of the first run's recipe. Raises EvaluationError where the runs
    were not scored on the same data, split, samples, or by the same synonym table.
    """
    names = [name for name in SUB_TASK_NAMES if sub_tasks is None or name in sub_tasks]
    check_comparable(first, second, names)
    bootstrap = first.results["recipe"]["bootstrap"]
    draws, seed = bootstrap["samples"], bootstrap["seed"]
    pairs = {name: (_answers(first, name), _answers(second, name)) for name in names}
    pairs = {name: pair for name, pair in pairs.items() if pair[0].uids}
    if not pairs:
        raise EvaluationError(f"{first.folder}: no sample of {', '.join(names)}; name other sub-tasks")
    found = {name: _difference(*pair, draws, seed) for name, pair in pairs.items()}
    real = {name: pair for name, pair in pairs.items() if not pair[0].demonstration}
    return Comparison(found, _overall(real, found, draws, seed) if real else None)


def check_comparable(first: Run, second: Run, sub_tasks: Sequence[str]) -> None:
    """Raise EvaluationError saying what differs, and what to do about it."""
    ours, theirs = first.results, second.results
    if ours["data_digest"] != theirs["data_digest"]:
        raise EvaluationError(
            f"{first.folder} was scored on the EmoBench with digest {ours['data_digest'][:16]}, {second.folder} on "
            f"{theirs['data_digest'][:16]}: scores of different data say nothing about the models. Evaluate both on one EmoBench"
        )
    if ours["split"] != theirs["split"]:
        raise EvaluationError(
            f"{first.folder} was scored on split {ours['split']}, {second.folder} on {theirs['split']}; evaluate both on one split"
        )
    for name in sub_tasks:
        asked = [set(_rows(run, name)["uid"].to_pylist()) for run in (first, second)]
        if asked[0] != asked[1]:
            raise EvaluationError(_other_samples(name, first, second, *asked))
        if name == "emo_o" and asked[0] and ours["synonyms_version"] != theirs["synonyms_version"]:
            raise EvaluationError(
                f"emo_o: {first.folder} was scored by synonym table {ours['synonyms_version']}, {second.folder} by "
                f"{theirs['synonyms_version']}; run `emollm evaluate` on the older one again: its answers are kept, only the "
                "scores are made anew"
            )


def _other_samples(name: str, first: Run, second: Run, ours: set[str], theirs: set[str]) -> str:
    parts = [
        f"{len(only)} only in {run.folder} (first: {min(only)})"
        for run, only in ((first, ours - theirs), (second, theirs - ours))
        if only
    ]
    return (
        f"{name}: the runs answered different samples: {' and '.join(parts)}; evaluate both with the same --limit and --sub-task, "
        "or compare with --sub-task what both have"
    )


def _rows(run: Run, sub_task: str) -> Any:
    import pyarrow.compute as pc

    return run.samples.filter(pc.equal(run.samples["sub_task"], sub_task))


def _answers(run: Run, sub_task: str) -> _Answers:
    """What counts of a sub-task: real rows where there are any, else its demonstration rows (as in `scores`)."""
    import pyarrow.compute as pc

    rows = by_uid(_rows(run, sub_task))
    real = rows.filter(pc.invert(rows["demonstration"]))
    counted = real if real.num_rows else rows
    uids, groups, correct = (counted[name].to_pylist() for name in ("uid", "group", "correct"))
    return _Answers(uids, groups, correct, demonstration=not real.num_rows)


def _difference(first: _Answers, second: _Answers, draws: int, seed: int) -> Difference:
    clusters_N = statistics.cluster_ids(first.groups)
    diff, interval = statistics.paired_difference(second.correct, first.correct, clusters_N, draws, seed)
    n = len(first.uids)
    return Difference(
        n, int(clusters_N.max()) + 1, first.demonstration, sum(first.correct) / n, sum(second.correct) / n, diff,
        interval, statistics.mcnemar(first.correct, second.correct),
    )  # fmt: skip


def _overall(
    pairs: dict[str, tuple[_Answers, _Answers]], found: dict[str, Difference], draws: int, seed: int
) -> Overall:
    gains = {
        name: statistics.TaskScores(
            [float(b) - float(a) for a, b in zip(first.correct, second.correct, strict=True)], first.groups
        )
        for name, (first, second) in pairs.items()
    }
    diff, interval = statistics.mean_over_tasks(gains, draws, seed)
    means = [sum(getattr(found[name], side) for name in pairs) / len(pairs) for side in ("first", "second")]
    return Overall(tuple(pairs), means[0], means[1], diff, interval)


def p_value(p: float) -> str:
    """`0.0312` → `0.031`; what is smaller than 0.001 says so."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def run_names(runs: Sequence[Run]) -> list[str]:
    """The runs' names, with the letter of the run where two share one: `smolvlm`, or `smolvlm (A)`."""
    names = [str(run.results["name"]) for run in runs]
    return [
        f"{name} ({letter_of(place)})" if names.count(name) > 1 else name for place, name in enumerate(names)
    ]


def letter_of(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def print_comparison(first: Run, second: Run, comparison: Comparison) -> None:
    """The comparison as a table on the terminal."""
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from emollm.evaluate.charts import percent, points

    names = run_names([first, second])
    print(f"A: {names[0]} ({first.folder})\nB: {names[1]} ({second.folder})")
    table = Table(title="B against A on the same samples", title_justify="left")
    table.add_column("sub-task")
    for heading in (
        "n",
        "groups",
        "A",
        "B",
        "B − A, points",
        "95 % interval",
        "only A right",
        "only B right",
        "McNemar p",
    ):
        table.add_column(heading, justify="right")
    for name, it in comparison.sub_tasks.items():
        title = SUB_TASK_NAMES[name].partition(" (")[0] + (" (demonstration)" if it.demonstration else "")
        table.add_row(
            escape(title), str(it.n), str(it.clusters), percent(it.first), percent(it.second), points(it.diff),
            "one group" if it.clusters == 1 else f"{points(it.ci95.low)} to {points(it.ci95.high)}", str(it.test.only_first), str(it.test.only_second),
            p_value(it.test.p),
        )  # fmt: skip
    overall = comparison.overall
    if overall is not None:
        table.add_section()
        table.add_row(
            f"mean of {len(overall.sub_tasks)}", "", "", percent(overall.first), percent(overall.second),
            points(overall.diff), f"{points(overall.ci95.low)} to {points(overall.ci95.high)}", "", "", "",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    print(
        "intervals: paired bootstrap over groups of related samples; McNemar's exact test takes samples as independent, so where "
        "there are fewer groups than samples the interval is the one to read"
    )


def as_json(first: Run, second: Run, comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON: what `emollm compare --json FILE` writes."""
    overall = comparison.overall
    return {
        "first": first.folder,
        "second": second.folder,
        "data_digest": first.results["data_digest"],
        "sub_tasks": {
            name: {**it._asdict(), "ci95": list(it.ci95), "test": it.test._asdict()}
            for name, it in comparison.sub_tasks.items()
        },
        "overall": None if overall is None else {**overall._asdict(), "ci95": list(overall.ci95)},
    }
