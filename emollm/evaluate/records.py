"""From answers to `samples.parquet` (one record per asked row) and `results.json` (scores with intervals)."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.schema import SUB_TASKS
from emollm.config import EvaluateRecipe
from emollm.evaluate import metrics, open_set
from emollm.evaluate.protocol import EvaluationError, Row, cluster_keys
from emollm.evaluate.score import Answer, option_probabilities

if TYPE_CHECKING:
    import pyarrow

RESULTS_VERSION = "1.0"
BASELINES = ("majority", "text_only", "untrained")
DEMONSTRATION = "demonstration, separable by style"
NO_SAMPLES = {"hate": "no openly licensed sample"}
OTHER = "(other)"


@dataclass(frozen=True)
class Verdict:
    """One answer against its gold. `answer` is what was said; `label` what it counts as (None: as no label)."""

    answer: str
    label: str | None
    status: str
    correct: bool
    exact: bool
    same_wheel: bool
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One asked row, what the model said, and what each baseline said."""

    row: Row
    group: str
    verdict: Verdict
    scores: list[float]
    probability: float
    gap: float
    baselines: dict[str, Verdict] = field(default_factory=dict)


def judge(row: Row, said: str) -> Verdict:
    """Compare an answer with the row's gold labels: by name for closed sub-tasks, by the synonym table for open ones."""
    if row.options:
        right = said in row.gold
        return Verdict(said, said, open_set.OK, right, right, right)
    score = open_set.compare(said, row.gold)
    return Verdict(
        said, score.group, score.status, score.same_group, score.exact, score.same_wheel, score.unknown
    )


def text_of(row: Row, answer: Answer) -> str:
    """What a model said, as text: the chosen option, or the decoded answer."""
    if row.options:
        assert answer.choice is not None, row.uid
        return row.options[answer.choice]
    return answer.text or ""


def make_records(
    asked: Sequence[Row],
    model: Sequence[Answer],
    baselines: Mapping[str, Sequence[str | None]],
    manifest: dict[str, Any],
) -> list[Record]:
    """One record per asked row, in order; `baselines` maps a name to one answer text per row (None: it was not asked).

    Raises EvaluationError unless every asked row has exactly one answer of the model and of each baseline.
    """
    for name, answers in [("model", model), *baselines.items()]:
        if len(answers) != len(asked):
            raise EvaluationError(
                f"{len(answers)} answers of {name} for {len(asked)} asked rows; start the evaluation again"
            )
    if len({row.uid for row in asked}) != len(asked):
        raise EvaluationError("a row is asked twice; start the evaluation again")
    groups = metrics.linked_groups([cluster_keys(row, manifest) for row in asked], [row.uid for row in asked])
    records = []
    for number, (row, group, answer) in enumerate(zip(asked, groups, model, strict=True)):
        if row.options:
            assert answer.choice is not None, row.uid
            probability = option_probabilities(answer.log_probs)[answer.choice]
        else:
            probability = math.exp(sum(answer.log_probs))
        said = {name: answers[number] for name, answers in baselines.items()}
        verdicts = {
            name: judge(row, answer_text) for name, answer_text in said.items() if answer_text is not None
        }
        records.append(
            Record(
                row,
                group,
                judge(row, text_of(row, answer)),
                list(answer.log_probs),
                probability,
                answer.gap,
                verdicts,
            )
        )
    return records


def records_schema() -> pyarrow.Schema:
    """The Arrow schema of samples.parquet.

    `gold_answers` holds every answer that counts as right, the main one first. `scores` are the log-probabilities of the
    options in their order (closed) or of each decoded token (open). `counts_as` is the label or synonym group of `answer`.
    `<baseline>_answer` and `<baseline>_correct` are null where the baseline was not run.
    """
    import pyarrow as pa

    text, flag, number = pa.string(), pa.bool_(), pa.float64()
    columns = [
        ("uid", text), ("source", text), ("sub_task", text), ("split", text), ("fold", pa.int32()), ("group", text),
        ("demonstration", flag), ("prompt", text), ("options", pa.list_(text)), ("gold", text), ("gold_answers", pa.list_(text)),
        ("answer", text), ("counts_as", text), ("status", text), ("correct", flag), ("exact", flag), ("same_wheel", flag),
        ("scores", pa.list_(number)), ("probability", number), ("gap", number), ("media_sha256", pa.list_(text)),
    ]  # fmt: skip
    for name in (*BASELINES, "linear_probe"):
        columns += [(f"{name}_answer", text), (f"{name}_correct", flag)]
    return pa.schema(columns)


def write_samples(path: str, records: Sequence[Record]) -> dict[str, Any]:
    """Write samples.parquet; returns its `{sha256, rows, bytes}`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset_build.provenance import sha256_of_bytes

    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([_as_columns(record) for record in records], records_schema()), buffer
    )
    data = buffer.getvalue()
    storage.write_bytes(path, data)
    return {"sha256": sha256_of_bytes(data), "rows": len(records), "bytes": len(data)}


def _as_columns(record: Record) -> dict[str, Any]:
    row, verdict = record.row, record.verdict
    values = {
        "uid": row.uid, "source": row.source, "sub_task": row.sub_task, "split": row.split, "fold": row.fold,
        "group": record.group, "demonstration": row.demonstration, "prompt": row.prompt, "options": list(row.options),
        "gold": row.answer, "gold_answers": list(row.gold), "answer": verdict.answer, "counts_as": verdict.label,
        "status": verdict.status, "correct": verdict.correct, "exact": verdict.exact, "same_wheel": verdict.same_wheel,
        "scores": record.scores, "probability": record.probability, "gap": record.gap, "media_sha256": list(row.media_sha256),
    }  # fmt: skip
    for name, other in record.baselines.items():
        values |= {f"{name}_answer": other.answer, f"{name}_correct": other.correct}
    return values


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
            sub_tasks[name] = {
                "n": 0,
                "accuracy": None,
                "ci95": None,
                "macro_f1": None,
                "uar": None,
                "note": note,
            }
            continue
        # Where a sub-task has real rows, demonstration rows are recorded, but do not count.
        counted = [record for record in mine if not record.row.demonstration] or mine
        demonstration = counted[0].row.demonstration
        sub_tasks[name] = _score_task(counted, demonstration, recipe)
        if not demonstration:
            in_overall[name] = counted
    return {"sub_tasks": metrics.rounded(sub_tasks), "overall": metrics.rounded(_overall(in_overall, recipe))}


def _score_task(records: list[Record], demonstration: bool, recipe: EvaluateRecipe) -> dict[str, Any]:
    draws, seed = recipe.bootstrap.samples, recipe.bootstrap.seed
    clusters_N = metrics.cluster_ids([record.group for record in records])
    correct = [record.verdict.correct for record in records]
    gold, counted_as = _gold_and_answers(records)
    statuses = Counter(record.verdict.status for record in records)
    labels = sorted(set(gold))
    entry: dict[str, Any] = {
        "n": len(records),
        "clusters": int(clusters_N.max()) + 1,
        "demonstration": demonstration,
        "accuracy": metrics.accuracy(correct),
        "ci95": list(metrics.bootstrap_interval(correct, clusters_N, draws, seed)),
        "macro_f1": metrics.macro_f1(gold, counted_as),
        "uar": metrics.unweighted_average_recall(gold, counted_as),
        "invalid": {status: statuses.get(status, 0) for status in open_set.STATUSES if status != open_set.OK},
        "baselines": {},
        "references": {},
        "by_source": _by_source(records, draws, seed),
        "confusion": {
            "gold": labels,
            "answers": [*labels, OTHER],
            "counts": metrics.confusion(gold, counted_as, labels, OTHER),
        },
    }
    if demonstration:
        entry["note"] = DEMONSTRATION
    for name in records[0].baselines:
        theirs = [record.baselines[name].correct for record in records]
        diff, diff_ci95 = metrics.paired_difference(correct, theirs, clusters_N, draws, seed)
        kind = "baselines" if name in BASELINES else "references"
        entry[kind][name] = {
            "accuracy": metrics.accuracy(theirs),
            "ci95": list(metrics.bootstrap_interval(theirs, clusters_N, draws, seed)),
            "diff": diff,
            "diff_ci95": list(diff_ci95),
            "beaten": diff_ci95.low > 0,
        }
    if records[0].row.options:
        entry |= _yes_no_scores(records)
    else:
        entry |= _open_scores(records)
    return entry


def _gold_and_answers(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Gold and answered label per record, on the vocabulary that confusion and F1 use (groups for open answers)."""
    table = open_set.load_table()
    gold, answers = [], []
    for record in records:
        row, label = record.row, record.verdict.label
        names = (
            row.gold if row.options else tuple(table.group_of[open_set.normalise(name)] for name in row.gold)
        )
        gold.append(label if label in names and label is not None else names[0])
        answers.append(label if label is not None else OTHER)
    return gold, answers


def _by_source(records: Sequence[Record], draws: int, seed: int) -> dict[str, Any]:
    scores = {}
    for source in sorted({record.row.source for record in records}):
        mine = [record for record in records if record.row.source == source]
        correct = [record.verdict.correct for record in mine]
        clusters_N = metrics.cluster_ids([record.group for record in mine])
        scores[source] = {
            "n": len(mine),
            "accuracy": metrics.accuracy(correct),
            "ci95": list(metrics.bootstrap_interval(correct, clusters_N, draws, seed)),
        }
    return scores


def _yes_no_scores(records: Sequence[Record]) -> dict[str, Any]:
    """AUROC of the probability of Yes, where the options are Yes and No."""
    if any(set(record.row.options) != {"Yes", "No"} for record in records):
        return {}
    of_yes = [option_probabilities(record.scores)[record.row.options.index("Yes")] for record in records]
    return {"auroc": metrics.auroc([record.row.answer == "Yes" for record in records], of_yes)}


def _open_scores(records: Sequence[Record]) -> dict[str, Any]:
    unknown = Counter(word for record in records for word in record.verdict.unknown)
    return {
        "exact_accuracy": metrics.accuracy([record.verdict.exact for record in records]),
        "wheel_accuracy": metrics.accuracy([record.verdict.same_wheel for record in records]),
        "unknown_words": dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:50]),
        "synonyms_version": open_set.load_table().version,
    }


def _overall(in_overall: dict[str, list[Record]], recipe: EvaluateRecipe) -> dict[str, Any]:
    """The mean over sub-tasks that are no demonstration, and the same for each baseline that all of them have."""
    if not in_overall:
        return {"accuracy": None, "ci95": None, "sub_tasks": [], "baselines": {}}
    draws, seed = recipe.bootstrap.samples, recipe.bootstrap.seed

    def mean(values: dict[str, list[float]]) -> tuple[float, metrics.Interval]:
        tasks = {
            name: metrics.TaskScores(values[name], [record.group for record in records])
            for name, records in in_overall.items()
        }
        return metrics.mean_over_tasks(tasks, draws, seed)

    ours = {
        name: [float(record.verdict.correct) for record in records] for name, records in in_overall.items()
    }
    accuracy, interval = mean(ours)
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
            "beaten": diff_interval.low > 0,
        }  # fmt: skip
    return {
        "accuracy": accuracy,
        "ci95": list(interval),
        "sub_tasks": list(in_overall),
        "baselines": baselines,
    }
