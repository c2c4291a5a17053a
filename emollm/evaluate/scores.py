"""The scores of `results.json`: per sub-task with intervals and breakdowns, against baselines, and the overall mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dataset_build.schema import SUB_TASKS
from emollm.config import EvaluateRecipe
from emollm.evaluate import metrics, open_set, statistics
from emollm.evaluate.records import BASELINES, DEMONSTRATION, Record
from emollm.evaluate.score import option_probabilities

NO_SAMPLES = {"hate": "no openly licensed sample"}
OTHER = "(other)"
# Why an answer is invalid; all of them count as wrong and stay in the denominator.
INVALID = (open_set.EMPTY, open_set.UNPARSED, open_set.REFUSED, "too_long", "endpoint_error")
MAX_UNKNOWN_WORDS = 50


def score_all(records: Sequence[Record], recipe: EvaluateRecipe) -> dict[str, Any]:
    """`{sub_tasks: {...}, overall: {...}}` of results.json. Sub-tasks without a sample are listed with n = 0."""
    sub_tasks: dict[str, Any] = {}
    in_overall: dict[str, list[Record]] = {}
    for name in SUB_TASKS:
        if name not in recipe.sub_tasks:
            continue
        mine = [record for record in records if record.row.sub_task == name]
        if not mine:
            note = NO_SAMPLES.get(name, "no sample in this data")
            empty = dict.fromkeys(("accuracy", "ci95", "macro_f1", "uar"))
            sub_tasks[name] = {"n": 0, **empty, "note": note}
            continue
        # Where a sub-task has real rows, demonstration rows are recorded, but do not count.
        counted = [record for record in mine if not record.row.demonstration] or mine
        demonstration = counted[0].row.demonstration
        sub_tasks[name] = _score_task(counted, demonstration, recipe)
        if not demonstration:
            in_overall[name] = counted
    return metrics.rounded({"sub_tasks": sub_tasks, "overall": _overall(in_overall, recipe)})


def _score_task(records: Sequence[Record], demonstration: bool, recipe: EvaluateRecipe) -> dict[str, Any]:
    clusters_N = statistics.cluster_ids([record.group for record in records])
    n_clusters = int(clusters_N.max()) + 1
    correct = [record.verdict.correct for record in records]
    gold, counted_as = gold_and_answers(records)
    labels = sorted(set(gold))
    statuses = Counter(record.verdict.status for record in records)
    calibrated = [record for record in records if record.probability is not None]
    confidences = [record.probability for record in calibrated if record.probability is not None]
    bins = metrics.calibration([record.verdict.correct for record in calibrated], confidences)

    means: dict[str, Sequence[float]] = {"accuracy": correct}
    others = {name: [record.baselines[name].correct for record in records] for name in records[0].baselines}
    for name, theirs in others.items():
        means[f"their {name}"] = theirs
        means[f"gain {name}"] = [float(a) - float(b) for a, b in zip(correct, theirs, strict=True)]
    is_open = not records[0].row.options
    if is_open:
        means["exact_accuracy"] = [record.verdict.exact for record in records]
        means["wheel_accuracy"] = [record.verdict.same_wheel for record in records]
    drawn: dict[str, statistics.Statistic] = {
        name: statistics.mean_of(values, clusters_N, n_clusters) for name, values in means.items()
    }
    drawn |= statistics.label_statistics(gold, counted_as, clusters_N, n_clusters)
    of_yes = _probabilities_of_yes(records)
    if of_yes is not None:
        is_yes = [record.row.answer == "Yes" for record in records]
        drawn["auroc"] = statistics.auroc_of(is_yes, of_yes, clusters_N)
    if len(calibrated) == len(records):
        places = [metrics.calibration_bin(confidence) for confidence in confidences]
        drawn["ece"] = statistics.calibration_error_of(correct, places, confidences, clusters_N, n_clusters)
    draws = statistics.distributions(drawn, n_clusters, recipe.bootstrap.samples, recipe.bootstrap.seed)
    intervals = {name: statistics.percentile_interval(draw) for name, draw in draws.items()}

    def bounds(name: str) -> list[float] | None:
        interval = intervals.get(name)
        return None if interval is None else list(interval)

    entry: dict[str, Any] = {
        "n": len(records),
        "clusters": n_clusters,
        "demonstration": demonstration,
        "accuracy": metrics.accuracy(correct),
        "ci95": bounds("accuracy"),
        "macro_f1": metrics.macro_f1(gold, counted_as),
        "uar": metrics.unweighted_average_recall(gold, counted_as),
        "war": metrics.accuracy(correct),
        "ece": metrics.expected_calibration_error(bins) if calibrated else None,
        "calibration": [part._asdict() for part in bins],
        "invalid": {status: statuses.get(status, 0) for status in INVALID},
        "several_gold": sum(len(record.row.gold) > 1 for record in records),
        "baselines": {},
        "references": {},
        "by_source": _by_source(records, recipe),
        "by_label": _by_label(records, gold, counted_as, recipe),
        "confusion": {
            "gold": labels,
            "answers": [*labels, OTHER],
            "counts": metrics.confusion(gold, counted_as, labels, OTHER),
        },
    }
    if demonstration:
        entry["note"] = DEMONSTRATION
    for name, theirs in others.items():
        low = (bounds(f"gain {name}") or [0.0])[0]
        entry["baselines" if name in BASELINES else "references"][name] = {
            "accuracy": metrics.accuracy(theirs),
            "ci95": bounds(f"their {name}"),
            "diff": metrics.accuracy(correct) - metrics.accuracy(theirs),
            "diff_ci95": bounds(f"gain {name}"),
            "beaten": low > 0
            and n_clusters > 1,  # of one cluster, the interval has no width and shows nothing
        }
    if of_yes is not None:
        entry["auroc"] = metrics.auroc(is_yes, of_yes)
    if is_open:
        entry |= _open_scores(records, bounds)
    entry["intervals"] = {name: bounds(name) for name in ("macro_f1", "uar", "auroc", "ece") if name in drawn}
    return entry


def gold_and_answers(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Gold and answered label per record, on the vocabulary that confusion, F1 and UAR use.

    Closed: the options. Open: synonym groups; an answer that is a kind of a gold label of these records counts as that label.
    Where several labels are gold, the one that was answered, else the first. An invalid answer is `OTHER`.
    """
    table = open_set.load_table()
    names_of = [
        record.row.gold if record.row.options else tuple(open_set.gold_groups(record.row.gold, table))
        for record in records
    ]
    vocabulary = frozenset(name for names in names_of for name in names)
    gold, answers = [], []
    for record, names in zip(records, names_of, strict=True):
        label = record.verdict.label
        if label is not None and not record.row.options:
            label = table.counted_as(label, names if record.verdict.correct else vocabulary)
        gold.append(label if label is not None and label in names else names[0])
        answers.append(OTHER if label is None else label)
    return gold, answers


def _by_source(records: Sequence[Record], recipe: EvaluateRecipe) -> dict[str, Any]:
    scores = {}
    for source in sorted({record.row.source for record in records}):
        mine = [record for record in records if record.row.source == source]
        correct = [record.verdict.correct for record in mine]
        scores[source] = {
            "n": len(mine),
            "accuracy": metrics.accuracy(correct),
            "ci95": _interval(mine, correct, recipe),
            "macro_f1": metrics.macro_f1(*gold_and_answers(mine)),
        }
    return scores


def _by_label(
    records: Sequence[Record], gold: Sequence[str], answers: Sequence[str], recipe: EvaluateRecipe
) -> dict[str, Any]:
    scores = {}
    for label, score in metrics.by_label(gold, answers).items():
        mine = [
            (record, answer == label)
            for record, right, answer in zip(records, gold, answers)
            if right == label
        ]
        interval = _interval([record for record, _ in mine], [hit for _, hit in mine], recipe)
        scores[label] = {**score._asdict(), "recall_ci95": interval}
    return scores


def _interval(records: Sequence[Record], correct: Sequence[bool], recipe: EvaluateRecipe) -> list[float]:
    clusters_N = statistics.cluster_ids([record.group for record in records])
    return list(
        statistics.bootstrap_interval(correct, clusters_N, recipe.bootstrap.samples, recipe.bootstrap.seed)
    )


def _probabilities_of_yes(records: Sequence[Record]) -> list[float] | None:
    """The probability of Yes, where every row's options are Yes and No and all were scored; None otherwise."""
    if any(set(record.row.options) != {"Yes", "No"} or len(record.scores) != 2 for record in records):
        return None
    return [option_probabilities(record.scores)[record.row.options.index("Yes")] for record in records]


def _open_scores(records: Sequence[Record], bounds: Any) -> dict[str, Any]:
    unknown = Counter(word for record in records for word in record.verdict.unknown)
    most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:MAX_UNKNOWN_WORDS]
    return {
        "exact_accuracy": metrics.accuracy([record.verdict.exact for record in records]),
        "exact_ci95": bounds("exact_accuracy"),
        "wheel_accuracy": metrics.accuracy([record.verdict.same_wheel for record in records]),
        "wheel_ci95": bounds("wheel_accuracy"),
        "unknown_words": dict(most),
        "distinct_unknown_words": len(unknown),
        "synonyms_version": open_set.load_table().version,
    }


def _overall(in_overall: dict[str, list[Record]], recipe: EvaluateRecipe) -> dict[str, Any]:
    """The mean over sub-tasks that are no demonstration, and the same for each baseline that all of them have."""
    if not in_overall:
        return {"accuracy": None, "ci95": None, "sub_tasks": [], "baselines": {}}
    draws, seed = recipe.bootstrap.samples, recipe.bootstrap.seed

    def mean(values: dict[str, list[float]]) -> tuple[float, statistics.Interval]:
        tasks = {
            name: statistics.TaskScores(values[name], [record.group for record in records])
            for name, records in in_overall.items()
        }
        return statistics.mean_over_tasks(tasks, draws, seed)

    ours = {
        name: [float(record.verdict.correct) for record in records] for name, records in in_overall.items()
    }
    accuracy, interval = mean(ours)
    several = all(len({record.group for record in records}) > 1 for records in in_overall.values())
    baselines = {}
    for baseline in BASELINES:
        if not all(baseline in record.baselines for records in in_overall.values() for record in records):
            continue
        theirs = {
            name: [float(record.baselines[baseline].correct) for record in records]
            for name, records in in_overall.items()
        }
        gain = {name: [a - b for a, b in zip(ours[name], theirs[name], strict=True)] for name in ours}
        (their_accuracy, their_interval), (diff, diff_interval) = mean(theirs), mean(gain)
        baselines[baseline] = {
            "accuracy": their_accuracy, "ci95": list(their_interval), "diff": diff, "diff_ci95": list(diff_interval),
            "beaten": diff_interval.low > 0 and several,
        }  # fmt: skip
    return {
        "accuracy": accuracy,
        "ci95": list(interval),
        "sub_tasks": list(in_overall),
        "baselines": baselines,
    }
