"""Whether a new model may replace the champion: a paired bootstrap on the same test rows, and guard rails per sub-task.

Data may grow between two trainings, so the same rows are asked for, not the same data digest: with equal digests all
rows are the same, with different ones a row counts as the same where uid, prompt, options, right answers and media are.
Every sub-task of either overall mean must have at least half of its rows in common (of the larger of the two
evaluations), otherwise the champion stays.

A better mean can hide that one sub-task broke, so no sub-task's accuracy may fall by more than the guard rail on the
rows that both models were asked. That compares the measured values, not their intervals: a small sub-task is allowed no
more than a large one. What was compared and left out is in the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

from dataset_build import storage

LEAST_COMMON_SHARE = 0.5
GUARD_RAIL = 0.03
_ROUNDING = 1e-9
_QUESTION = ("uid", "prompt", "options", "gold_answers", "media_sha256")


class Shared(NamedTuple):
    """Rows of one sub-task: put to both models, to the challenger, to the champion."""

    both: int
    challenger: int
    champion: int

    @property
    def enough(self) -> bool:
        return self.both > 0 and self.both >= LEAST_COMMON_SHARE * max(self.challenger, self.champion)


class Accuracies(NamedTuple):
    """Accuracy of both models on the rows of one sub-task that both were asked."""

    champion: float
    challenger: float


class Comparison(NamedTuple):
    """Challenger minus champion: the mean over sub-tasks of accuracy differences on the `n` rows both were asked.

    `sub_tasks` holds the difference of each compared sub-task, `rows` how many rows each sub-task of either evaluation
    has. `left_out` counts the challenger's rows that the champion was not asked in the same words, with the same picture.
    """

    diff: float
    ci95: tuple[float, float]
    n: int
    left_out: int
    sub_tasks: dict[str, float]
    rows: dict[str, Shared]
    accuracies: dict[str, Accuracies]

    @property
    def too_little(self) -> list[str]:
        """The sub-tasks of which too few rows were put to both models."""
        return [task for task, shared in self.rows.items() if not shared.enough]

    def fallen(self, guard_rail: float) -> list[str]:
        """The sub-tasks whose accuracy fell by more than `guard_rail`, worst first."""
        worst_first = sorted(self.sub_tasks, key=lambda task: self.sub_tasks[task])
        return [task for task in worst_first if self.sub_tasks[task] < -guard_rail - _ROUNDING]

    def describe_fall(self, task: str) -> str:
        """For example `hate fell by 0.1200 (0.7000 → 0.5800 on 50 rows)`."""
        before, after = self.accuracies[task]
        return f"{task} fell by {-self.sub_tasks[task]:.4f} ({before:.4f} → {after:.4f} on {self.rows[task].both} rows)"

    def describe_rows(self) -> str:
        """For example `on 30 rows (emo_c 30 of 40; 10 rows were put to one model only)`."""
        tasks = [
            f"{task} {shared.both} of {max(shared.challenger, shared.champion)}"
            for task, shared in self.rows.items()
        ]
        alone = sum(shared.challenger + shared.champion - 2 * shared.both for shared in self.rows.values())
        notes = [", ".join(tasks)] if tasks else []
        if alone:
            notes.append(f"{alone} row{'s were' if alone > 1 else ' was'} put to one model only and left out")
        return f"on {self.n} rows" + (f" ({'; '.join(notes)})" if notes else "")


def compare(challenger: str, champion: str, draws: int, seed: int) -> Comparison:
    """Paired, clustered bootstrap over two evaluation folders, on the rows that put the same question to both.

    Each model answered its rows when they were held out from it; a champion is never asked rows of newer data, which it
    may have been trained on. Demonstration rows stay out, as they do of the overall mean.
    """
    from emollm.evaluate.statistics import TaskScores, mean_over_tasks

    ours, theirs = _correctness(challenger), _correctness(champion)
    common = sorted(ours.keys() & theirs.keys())
    counts = [Counter(rows[question][0] for question in rows) for rows in (ours, theirs)]
    both = Counter(ours[question][0] for question in common)
    shared = {
        task: Shared(both[task], counts[0][task], counts[1][task])
        for task in sorted(counts[0].keys() | counts[1].keys())
    }
    if not common:
        return Comparison(0.0, (0.0, 0.0), 0, len(ours), {}, shared, {})
    gains: dict[str, tuple[list[float], list[str]]] = {}
    right: dict[str, list[int]] = {}
    for question in common:
        task, group, correct = ours[question]
        values, groups = gains.setdefault(task, ([], []))
        values.append(float(correct) - float(theirs[question][2]))
        groups.append(group)
        hits = right.setdefault(task, [0, 0])
        hits[0] += theirs[question][2]
        hits[1] += correct
    tasks = {task: TaskScores(values, groups) for task, (values, groups) in gains.items()}
    diff, interval = mean_over_tasks(tasks, draws, seed)
    per_task = {task: sum(values) / len(values) for task, (values, _) in gains.items()}
    accuracies = {
        task: Accuracies(before / both[task], after / both[task]) for task, (before, after) in right.items()
    }
    left_out = len(ours) - len(common)
    ci95 = (interval.low, interval.high)
    return Comparison(diff, ci95, len(common), left_out, per_task, shared, accuracies)


def _correctness(evaluation: str) -> dict[str, tuple[str, str, bool]]:
    """Question → (sub-task, cluster, correct) of the rows that count."""
    import pyarrow.parquet as pq

    columns = [*_QUESTION, "sub_task", "group", "correct", "demonstration"]
    with storage.open_read(storage.join(evaluation, "samples.parquet")) as stream:
        rows = pq.read_table(stream, columns=columns).to_pylist()
    return {
        json.dumps([row[name] for name in _QUESTION]): (row["sub_task"], row["group"], row["correct"])
        for row in rows
        if not row["demonstration"]
    }


def decide(
    champion: dict[str, Any] | None,
    model_digest: str,
    comparison: Comparison | None,
    *,
    guard_rail: float = GUARD_RAIL,
    barred: str | None = None,
) -> tuple[str, str]:
    """("promoted", "kept" or "unchanged", the reason with its numbers). `barred`: why this model may never be promoted."""
    if champion is None:
        return "promoted", "there was no champion yet"
    if champion["model_digest"] == model_digest:
        return "unchanged", "this very model is the champion already"
    if barred:
        return "kept", barred
    assert comparison is not None, "a comparison is needed where the champion is another model"
    low, high = comparison.ci95
    numbers = f"difference {comparison.diff:+.4f} [{low:+.4f}, {high:+.4f}] {comparison.describe_rows()}"
    if not comparison.n or comparison.too_little:
        return "kept", (
            f"the data changed too much to compare {', '.join(comparison.too_little) or 'anything'}: at least "
            f"{LEAST_COMMON_SHARE:.0%} of a sub-task's rows must have been put to both models; {numbers}; "
            "delete champion.json to start anew"
        )
    if fallen := comparison.fallen(guard_rail):
        falls = ", ".join(comparison.describe_fall(task) for task in fallen)
        return "kept", f"stopped by the guard rail of {guard_rail:.4f} per sub-task: {falls}; {numbers}"
    if low > 0:
        return "promoted", f"better than the champion: {numbers}"
    return "kept", f"not shown to be better than the champion: {numbers}"
