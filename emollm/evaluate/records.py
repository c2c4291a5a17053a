"""From answers to `samples.parquet`: one record per asked row. The scores of `results.json` are in `scores`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from emollm.evaluate import open_set
from emollm.evaluate.protocol import EvaluationError, Row, cluster_keys
from emollm.evaluate.score import Answer, option_probabilities
from emollm.evaluate.statistics import linked_groups

if TYPE_CHECKING:
    import pyarrow

BASELINES = ("majority", "text_only", "untrained")
REFERENCES = ("linear_probe",)
DEMONSTRATION = "demonstration, separable by style"


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
    probability: float | None
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
    # Rows about one medium (an emoji asked closed and openly, utterances cut from one file) are no independent ones either.
    keys = [
        cluster_keys(row, manifest) | {f"medium {n}": sha for n, sha in enumerate(row.media_sha256)} for row in asked
    ]
    groups = linked_groups(keys, [row.uid for row in asked])
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
    options in their order (closed) or of each decoded token (open). `counts_as` is the label or synonym group of `answer`,
    `unknown_words` what the synonym table lacks of an open answer, `group` the cluster of related samples.
    `<baseline>_answer` and `<baseline>_correct` are null where the baseline was not run.
    """
    import pyarrow as pa

    text, flag, number = pa.string(), pa.bool_(), pa.float64()
    columns = [
        ("uid", text), ("source", text), ("sub_task", text), ("split", text), ("fold", pa.int32()), ("group", text),
        ("demonstration", flag), ("prompt", text), ("options", pa.list_(text)), ("gold", text), ("gold_answers", pa.list_(text)),
        ("answer", text), ("counts_as", text), ("status", text), ("correct", flag), ("exact", flag), ("same_wheel", flag),
        ("unknown_words", pa.list_(text)),
        ("scores", pa.list_(number)), ("probability", number), ("gap", number), ("media_sha256", pa.list_(text)),
    ]  # fmt: skip
    for name in (*BASELINES, *REFERENCES):
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
        "unknown_words": list(verdict.unknown),
        "scores": record.scores, "probability": record.probability, "gap": record.gap, "media_sha256": list(row.media_sha256),
    }  # fmt: skip
    for name, other in record.baselines.items():
        values |= {f"{name}_answer": other.answer, f"{name}_correct": other.correct}
    return values
