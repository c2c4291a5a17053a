"""From answers to `samples.parquet`: one record per asked row. The scores of `results.json` are in `scores`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from emollm.evaluate import open_set, parse
from emollm.evaluate.protocol import EvaluationError, Row, cluster_keys
from emollm.evaluate.score import Answer, option_probabilities
from emollm.evaluate.statistics import linked_groups

if TYPE_CHECKING:
    import pyarrow

BASELINES = ("majority", "text_only", "untrained")
REFERENCES = ("linear_probe", "nearest_neighbour", "random")
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
    probability: float | None  # of the answer; None where its source gives none
    gap: float
    generated: str | None = None  # the text as it came, where the answer was generated
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


def judge_answer(row: Row, answer: Answer) -> Verdict:
    """Compare what a model answered, scored or generated, with the row's gold labels."""
    text = parse.spoken(answer.text or "")
    if answer.finish == "error":
        return _invalid("", parse.ENDPOINT_ERROR)
    if answer.choice is not None:
        return judge(row, row.options[answer.choice])
    if answer.finish == "refused":
        return _invalid(text, parse.REFUSED)
    cut_off = answer.finish == "length"
    if not row.options:
        verdict = judge(row, text[: parse.MAX_CHARS])
        cut_off = cut_off or len(text) > parse.MAX_CHARS
        unread = verdict.status in (parse.UNPARSED, parse.EMPTY) and cut_off
        return replace(verdict, status=parse.TOO_LONG) if unread else verdict
    reading = parse.read_choice(text, row.options, cut_off)
    if reading.choice is None:
        return _invalid(text, reading.status)
    return judge(row, row.options[reading.choice])


def _invalid(said: str, status: str) -> Verdict:
    return Verdict(said, None, status, False, False, False)


def probability_of(row: Row, answer: Answer) -> float | None:
    """How probable the model held its answer: among the options, or the generated words of an open question.

    None where an option was generated (its words are no share among the options) and where an endpoint answered.
    """
    if answer.choice is not None:
        return option_probabilities(answer.log_probs)[answer.choice]
    return math.exp(sum(answer.log_probs)) if answer.log_probs and not row.options else None


def make_records(
    asked: Sequence[Row],
    model: Sequence[Answer],
    baselines: Mapping[str, Sequence[str | Verdict | None]],
    manifest: dict[str, Any],
) -> list[Record]:
    """One record per asked row, in order; `baselines` maps a name to one answer per row, as text or judged (None: it was not asked).

    Raises EvaluationError unless every asked row has exactly one answer of the model and of each baseline.
    """
    for name, answers in [("model", model), *baselines.items()]:
        if len(answers) != len(asked):
            raise EvaluationError(
                f"{len(answers)} answers of {name} for {len(asked)} asked rows; start the evaluation again"
            )
    if len({row.uid for row in asked}) != len(asked):
        raise EvaluationError("a row is asked twice; start the evaluation again")
    groups = group_names(asked, manifest)
    records = []
    for number, (row, group, answer) in enumerate(zip(asked, groups, model, strict=True)):
        said = {name: answers[number] for name, answers in baselines.items()}
        verdicts = {
            name: judge(row, one) if isinstance(one, str) else one
            for name, one in said.items()
            if one is not None
        }
        records.append(
            Record(
                row,
                group,
                judge_answer(row, answer),
                [] if row.options and answer.choice is None else list(answer.log_probs),
                probability_of(row, answer),
                answer.gap,
                answer.text,
                verdicts,
            )
        )
    return records


def group_names(rows: Sequence[Row], manifest: dict[str, Any]) -> list[str]:
    """The cluster of related samples that each row belongs to.

    Rows about one medium (an emoji asked closed and openly, utterances cut from one file) are no independent ones either.
    """
    keys = [
        cluster_keys(row, manifest) | {f"medium {n}": sha for n, sha in enumerate(row.media_sha256)}
        for row in rows
    ]
    return linked_groups(keys, [row.uid for row in rows])


def records_schema() -> pyarrow.Schema:
    """The Arrow schema of samples.parquet.

    `gold_answers` holds every answer that counts as right, the main one first. `scores` are the log-probabilities of the
    options in their order (closed) or of each decoded token (open). `counts_as` is the label or synonym group of `answer`,
    `unknown_words` what the synonym table lacks of an open answer, `group` the cluster of related samples.
    `generated` is the text as it came where the answer was generated; `scores` is then empty for closed sub-tasks.
    `<baseline>_answer` and `<baseline>_correct` are null where the baseline was not run.
    """
    import pyarrow as pa

    text, flag, number = pa.string(), pa.bool_(), pa.float64()
    columns = [
        ("uid", text), ("source", text), ("sub_task", text), ("split", text), ("fold", pa.int32()), ("group", text),
        ("demonstration", flag), ("prompt", text), ("options", pa.list_(text)), ("gold", text), ("gold_answers", pa.list_(text)),
        ("answer", text), ("counts_as", text), ("status", text), ("correct", flag), ("exact", flag), ("same_wheel", flag),
        ("unknown_words", pa.list_(text)),
        ("scores", pa.list_(number)), ("probability", number), ("gap", number), ("generated", text), ("media_sha256", pa.list_(text)),
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
        "scores": record.scores, "probability": record.probability, "gap": record.gap, "generated": record.generated, "media_sha256": list(row.media_sha256),
    }  # fmt: skip
    for name, other in record.baselines.items():
        values |= {f"{name}_answer": other.answer, f"{name}_correct": other.correct}
    return values
