"""Scoring shards on Ray Data actors, one model replica each, and the evaluation as a whole.

Shards are handed to the actors as they are, never through a split (which loses rows). An actor writes its shard's answers
to `OUT/answers/<name>.parquet`, atomically; a shard whose file is there is not scored again, so a killed evaluation goes
on where it was, and rows are asked exactly once.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_build import ray_local, storage
from dataset_build.progress import Progress
from emollm.evaluate import ablation
from emollm.evaluate.asking import Asking
from emollm.evaluate.plan import FEATURES, TEXT_ONLY, Plan, Shard
from emollm.evaluate.protocol import EvaluationError, Row
from emollm.evaluate.ray_metrics import METRICS
from emollm.evaluate.recipe import EndpointConfig
from emollm.evaluate.replica import PatchFeatures, Replica, answers, load_own
from emollm.evaluate.score import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

ANSWERS_FOLDER = "answers"


@dataclass(frozen=True)
class Job:
    """Where an actor finds the data and the models, and where its answers go."""

    data: str
    out: str
    model: str
    kind: str = "emollm"  # of `emollm.evaluate.models.KINDS`
    training_recipe: dict[str, Any] | None = None
    asking: Asking = Asking()
    endpoint: EndpointConfig | None = None
    allow_failures: bool = False
    batch_size: int = 8
    threads: int = 1
    folder: str = ""  # working directory that relative paths (also those inside a saved model) refer to

    def asks(self, shard: Shard) -> Asking:
        """How the questions of a shard are put."""
        if shard.pass_name == TEXT_ONLY:
            return self.asking._replace(ablation=ablation.TEXT_ONLY)
        return self.asking


def answers_path(out: str, shard: Shard) -> str:
    return storage.join(out, ANSWERS_FOLDER, f"{shard.name}.parquet")


class ShardScorer:
    """Scores shards with at most one model in memory; a Ray Data actor class, and usable without Ray."""

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.folder and os.path.isdir(job.folder):
            os.chdir(job.folder)
        self._loaded: tuple[str, Replica] | None = None
        self._known = PatchFeatures()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        import torch

        torch.set_num_threads(self.job.threads)
        shards = [Shard.from_json(json.loads(text)) for text in batch["shard"]]
        started = time.monotonic()
        for shard in shards:
            self.score(shard)
        seconds = (time.monotonic() - started) / len(shards)
        return {
            "name": [shard.name for shard in shards],
            "questions": [len(shard.questions) for shard in shards],
            "seconds": [seconds] * len(shards),
        }

    def score(self, shard: Shard) -> None:
        """Write the answers of one shard; one that is there already (a retried task) is left as it is."""
        path = answers_path(self.job.out, shard)
        if storage.exists(path):
            return
        samples = read_samples(self.job.data, shard)
        replica = self._replica(shard.model)
        if shard.pass_name == FEATURES:
            write_features(path, shard, replica.features(samples, self.job.batch_size))
        else:
            asking = self.job.asks(shard)
            write_answers(path, shard, answers(replica, samples, asking, self.job.batch_size))

    def _replica(self, name: str) -> Replica:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # the old replica goes before the new one comes
            if self.job.kind == "transformers":
                from emollm.evaluate.foreign import load_foreign

                self._loaded = (name, load_foreign(self.job.model))
            else:
                loaded = load_own(self.job.model, name, self.job.training_recipe, self._known)
                self._loaded = (name, loaded)
        return self._loaded[1]


def read_samples(data: str, shard: Shard) -> list[dict[str, Any]]:
    """The full samples of a shard's questions, in order; row groups that hold none of them are not read."""
    import pyarrow.parquet as pq

    wanted: dict[str, list[int]] = {}
    for question in shard.questions:
        wanted.setdefault(question.path, []).append(question.index)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path, indices in wanted.items():
        with storage.open_read(storage.join(data, path)) as stream:
            file = pq.ParquetFile(stream)
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                inside = [index - start for index in indices if start <= index < end]
                if inside:
                    taken = file.read_row_group(group).take(inside).to_pylist()
                    found.update(((path, start + i), value) for i, value in zip(inside, taken, strict=True))
                start = end
    samples = [found[question.path, question.index] for question in shard.questions]
    for question, sample in zip(shard.questions, samples, strict=True):
        if sample["uid"] != question.uid:
            raise EvaluationError(
                f"{data}/{question.path} row {question.index}: uid {sample['uid']!r}, expected {question.uid!r}; "
                "the data changed during the evaluation, start it again"
            )
    return samples


def write_answers(path: str, shard: Shard, given: Sequence[Answer]) -> None:
    values = [
        {"key": question.key, **answer._asdict()}
        for question, answer in zip(shard.questions, given, strict=True)
    ]
    _write_rows(path, values, answers_schema())


def answers_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("choice", pa.int32()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("log_probs", pa.list_(pa.float64())),
            ("gap", pa.float64()),
            ("finish", pa.string()),
            ("error", pa.string()),
        ]
    )


def write_features(path: str, shard: Shard, features_ND: NDArray[np.float32]) -> None:
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("feature", pa.list_(pa.float32()))])
    values = [
        {"key": q.key, "feature": f.tolist()} for q, f in zip(shard.questions, features_ND, strict=True)
    ]
    _write_rows(path, values, schema)


def _write_rows(path: str, values: list[dict[str, Any]], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values, schema), buffer)
    storage.write_bytes(path, buffer.getvalue())


def _read_rows(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        return pq.read_table(stream).to_pylist()


def score_shards(plan: Plan, job: Job, workers: int) -> dict[str, Any]:
    """Score the shards that have no answers yet. Returns `{questions, scored, seconds}`.

    Uses the Ray that RAY_ADDRESS (or the surrounding Ray job) names, else a local one that ends afterwards.
    """
    started = time.monotonic()
    total = sum(len(shard.questions) for shard in plan.shards)
    pending = [shard for shard in plan.shards if not _is_answered(job, shard)]
    already = total - sum(len(shard.questions) for shard in pending)
    if already:
        print(f"scoring: {already} of {total} questions have an answer from an earlier run", flush=True)
    if pending:
        metrics = ray_local.Metrics(METRICS, run=os.path.basename(os.path.dirname(os.path.abspath(job.out))))
        with Progress("scoring", total, "questions", already=already) as progress:
            for count in _answered(pending, job, workers):
                progress.advance(count)
                metrics.record("emollm_evaluate_planned_samples", total)
                metrics.record("emollm_evaluate_samples_total", count)
                metrics.record("emollm_evaluate_samples_per_s", progress.rate)
    missing = [shard.name for shard in plan.shards if not storage.exists(answers_path(job.out, shard))]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(plan.shards)} shards have no answers; start the evaluation again"
        )
    return {"questions": total, "scored": total - already, "seconds": round(time.monotonic() - started, 1)}


def _is_answered(job: Job, shard: Shard) -> bool:
    """Whether a shard has its answers. Requests that failed are sent again, unless failures are allowed."""
    path = answers_path(job.out, shard)
    if not storage.exists(path):
        return False
    if job.kind != "endpoint" or job.allow_failures:
        return True
    return not any(row["error"] for row in _read_rows(path))


def _answered(shards: Sequence[Shard], job: Job, workers: int) -> Iterator[int]:
    """Numbers of questions as they are answered, which add up to all of the shards."""
    if job.kind == "endpoint":
        from emollm.evaluate.endpoint import answer_shards

        return answer_shards(shards, job)
    return _on_ray(shards, job, workers)


def _on_ray(shards: Sequence[Shard], job: Job, workers: int) -> Iterator[int]:
    """Number of questions of each shard, as it is finished."""
    import dataclasses

    with ray_local.session():
        import ray  # only now: what it reads when it is imported is set by then

        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        count = max(1, min(workers, len(shards), int(gpus) or int(cpus)))  # where there are GPUs, one each
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False
        by_model = sorted(shards, key=lambda shard: shard.model)  # so that an actor loads each model once
        texts = [{"shard": json.dumps(shard.to_json())} for shard in by_model]
        answered = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
            ShardScorer,
            fn_constructor_args=(dataclasses.replace(job, folder=os.getcwd()),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
            num_gpus=1 if gpus >= 1 else 0,
        )
        for row in answered.iter_rows():
            yield int(row["questions"])


def read_answers(
    plan: Plan, out: str
) -> tuple[dict[tuple[str, str, str], Answer], dict[str, NDArray[np.float32]]]:
    """(answer per (pass, model, question key); feature per medium). Raises EvaluationError unless each is there once."""
    import numpy as np

    found: dict[tuple[str, str, str], Answer] = {}
    features: dict[str, NDArray[np.float32]] = {}
    for shard in plan.shards:
        rows = _read_rows(answers_path(out, shard))
        if [row["key"] for row in rows] != [question.key for question in shard.questions]:
            raise EvaluationError(
                f"{answers_path(out, shard)} does not hold its questions; delete it and start again"
            )
        for row in rows:
            if shard.pass_name == FEATURES:
                features[row["key"]] = np.asarray(row["feature"], dtype=np.float32)
            else:
                values = {name: row[name] for name in Answer._fields}
                found[shard.pass_name, shard.model, row["key"]] = Answer(**values)
    return found, features


def answers_for(
    plan: Plan, found: dict[tuple[str, str, str], Answer], pass_name: str, asked: Sequence[Row]
) -> list[Answer]:
    """The answer of one pass to each asked row, in order."""
    return [found[pass_name, *plan.answered_by[pass_name, row.uid]] for row in asked]


def forget_other_answers(plan: Plan, out: str) -> None:
    """Remove cached answers that this plan does not use."""
    keep = {f"{shard.name}.parquet" for shard in plan.shards}
    folder = storage.join(out, ANSWERS_FOLDER)
    for name in storage.list_files(folder):
        if name not in keep:
            storage.remove(storage.join(folder, name))
