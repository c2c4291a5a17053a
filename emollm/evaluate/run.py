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
from dataset_build.schema import option_texts
from emollm.evaluate.plan import FEATURES, TEXT_ONLY, Plan, Shard
from emollm.evaluate.protocol import EvaluationError, Row
from emollm.evaluate.score import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from emollm.evaluate.score import Scorer

ANSWERS_FOLDER = "answers"


@dataclass(frozen=True)
class Job:
    """Where an actor finds the data and the models, and where its answers go."""

    data: str
    out: str
    model_dir: str
    training_recipe: dict[str, Any] | None
    batch_size: int
    threads: int = 1
    folder: str = ""  # working directory that relative paths (also those inside a saved model) refer to


def answers_path(out: str, shard: Shard) -> str:
    return storage.join(out, ANSWERS_FOLDER, f"{shard.name}.parquet")


class ShardScorer:
    """Scores shards with at most one model in memory; a Ray Data actor class, and usable without Ray."""

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.folder and os.path.isdir(job.folder):
            os.chdir(job.folder)
        self._loaded: tuple[str, Any, Any] | None = None
        self._features = PatchFeatures()

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
        model, processor = self._models(shard.model)
        if shard.pass_name == FEATURES:
            write_features(
                path, shard, _features(model, processor, samples, self.job.batch_size, self._features)
            )
        else:
            prompts = encode_prompts(samples, processor, withhold_media=shard.pass_name == TEXT_ONLY)
            write_answers(
                path,
                shard,
                make_scorer(model, processor, self.job.batch_size, self._features).answers(prompts),
            )

    def _models(self, name: str) -> tuple[Any, Any]:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # the old replica goes before the new one comes
            self._loaded = (name, *load_model(self.job.model_dir, name, self.job.training_recipe))
        return self._loaded[1], self._loaded[2]


def load_model(model_dir: str, name: str, training_recipe: dict[str, Any] | None) -> tuple[Any, Any]:
    """(model in float32 and evaluation mode, processor) of `fold-k`, `single` or `untrained`."""
    import torch

    if name == "untrained":
        from emollm.config import TrainRecipe
        from emollm.train.build import initial_model

        recipe = TrainRecipe.model_validate(training_recipe)
        model, processor = initial_model(recipe, recipe.seed)
    else:
        from emollm.model import load

        folder = model_dir if name == "single" else storage.join(model_dir, name)
        model, processor = load.load_model(folder), load.load_processor(folder)
    model.merge_lora()  # the same function in a quarter less time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.float().eval().to(device), processor


class PatchFeatures:
    """Patch features of pictures seen before. The tower is frozen, so fold models share them, and so do sub-tasks.

    Pictures go through the tower one at a time, as in training: what else is in a batch cannot change a bit of them.
    """

    MAX_PICTURES = 2048  # about 100 kB each with DINOv2-S at 112 px

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._tower: str | None = None

    def of(self, model: Any, pictures_NCHW: Any) -> Any:
        """Features (N, P, D), computed for the pictures that are not known yet."""
        import hashlib

        import torch

        tower = ((model.config.foundations or {}).get("digests") or {}).get("vision")
        if tower is None or tower != self._tower or len(self._known) > self.MAX_PICTURES:
            self._known, self._tower = {}, tower
        keys = [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pictures_NCHW]
        for key, picture in zip(keys, pictures_NCHW, strict=True):
            if key not in self._known:
                (self._known[key],) = model.patch_features(picture.unsqueeze(0).to(model.device))
        return torch.stack([self._known[key] for key in keys])


def make_scorer(model: Any, processor: Any, batch_size: int, features: PatchFeatures | None = None) -> Scorer:
    """A Scorer for an EmoLLM and its processor."""
    features = features or PatchFeatures()
    from emollm.data.collate import collate
    from emollm.evaluate.score import Scorer

    def to_batch(encoded: list[Any]) -> dict[str, Any]:
        batch = collate(encoded, processor.pad_id, padding_side="right")
        if "pixel_values" in batch:
            batch["patches"] = features.of(model, batch.pop("pixel_values"))
        return {
            name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()
        }

    return Scorer(
        model,
        to_batch,
        decode=lambda ids: processor.decode(ids, skip_special_tokens=True),
        end_ids=[processor.end_id],
        batch_size=batch_size,
    )


def encode_prompts(samples: Sequence[dict[str, Any]], processor: Any, withhold_media: bool) -> list[Any]:
    """Prompts of samples; an error names the sample."""
    from emollm.data.collate import encode_sample
    from emollm.evaluate.score import Prompt, option_token_ids

    prompts = []
    for sample in samples:
        try:
            encoded = encode_sample(sample, processor, supervise=False, withhold_media=withhold_media)
            options = option_texts(sample)
            ids = option_token_ids(options, processor.continuation, processor.end_id) if options else []
        except (ValueError, OSError) as error:
            raise EvaluationError(f"{sample['uid']}: cannot be put to the model: {error}") from error
        prompts.append(Prompt(encoded, ids))
    return prompts


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


def write_answers(path: str, shard: Shard, answers: Sequence[Answer]) -> None:
    values = [
        {"key": question.key, **answer._asdict()}
        for question, answer in zip(shard.questions, answers, strict=True)
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


def _features(
    model: Any, processor: Any, samples: Sequence[dict[str, Any]], batch_size: int, known: PatchFeatures
) -> NDArray[np.float32]:
    """Mean patch features of the frozen vision tower, averaged over a sample's pictures or frames: (N, D).

    For an attached foundation the mean of its own visual tokens, without MVP.
    """
    import numpy as np
    import torch

    from emollm.data.collate import decode_pictures, decode_visuals

    if hasattr(model, "frozen_features"):  # an attached foundation
        with torch.inference_mode():
            return np.stack([model.frozen_features(decode_visuals(sample, processor)) for sample in samples])
    pictures_of = [decode_pictures(sample, processor) for sample in samples]
    flat = [picture for pictures in pictures_of for picture in pictures]
    means = []
    with torch.inference_mode():
        for start in range(0, len(flat), batch_size):
            patches_NPD = known.of(model, torch.stack(flat[start : start + batch_size]))
            means.append(patches_NPD.mean(dim=1).float().cpu().numpy())
    mean_MD = np.concatenate(means)
    ends = np.cumsum([len(pictures) for pictures in pictures_of])
    return np.stack([part.mean(axis=0) for part in np.split(mean_MD, ends[:-1])])


def score_shards(plan: Plan, job: Job, workers: int) -> dict[str, Any]:
    """Score the shards that have no answers yet. Returns `{questions, scored, seconds}`.

    Uses the Ray that RAY_ADDRESS (or the surrounding Ray job) names, else a local one that ends afterwards.
    """
    started = time.monotonic()
    total = sum(len(shard.questions) for shard in plan.shards)
    pending = [shard for shard in plan.shards if not storage.exists(answers_path(job.out, shard))]
    already = total - sum(len(shard.questions) for shard in pending)
    if already:
        print(f"scoring: {already} of {total} questions have an answer from an earlier run", flush=True)
    if pending:
        with Progress("scoring", total, "questions", already=already) as progress:
            for count in _on_ray(pending, job, workers):
                progress.advance(count)
    missing = [shard.name for shard in plan.shards if not storage.exists(answers_path(job.out, shard))]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(plan.shards)} shards have no answers; start the evaluation again"
        )
    return {"questions": total, "scored": total - already, "seconds": round(time.monotonic() - started, 1)}


def _on_ray(shards: Sequence[Shard], job: Job, workers: int) -> Iterator[int]:
    """Number of questions of each shard, as it is finished."""
    import dataclasses

    with ray_local.session():
        import ray  # only now: what it reads when it is imported is set by then

        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        count = max(1, min(workers, len(shards), int(cpus)))
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
            num_gpus=1 if gpus >= count else 0,
        )
        for row in answered.iter_rows():
            yield int(row["questions"])


def read_answers(
    plan: Plan, out: str
) -> tuple[dict[tuple[str, str, str], Answer], dict[str, NDArray[np.float32]]]:
    """(answer per (pass, model, question key); feature per medium). Raises EvaluationError unless each is there once."""
    import numpy as np

    answers: dict[tuple[str, str, str], Answer] = {}
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
                answers[shard.pass_name, shard.model, row["key"]] = Answer(**values)
    return answers, features


def answers_for(
    plan: Plan, answers: dict[tuple[str, str, str], Answer], pass_name: str, asked: Sequence[Row]
) -> list[Answer]:
    """The answer of one pass to each asked row, in order."""
    return [answers[pass_name, *plan.answered_by[pass_name, row.uid]] for row in asked]


def forget_other_answers(plan: Plan, out: str) -> None:
    """Remove cached answers that this plan does not use."""
    keep = {f"{shard.name}.parquet" for shard in plan.shards}
    folder = storage.join(out, ANSWERS_FOLDER)
    for name in storage.list_files(folder):
        if name not in keep:
            storage.remove(storage.join(folder, name))
