"""The training loop: a plain function, with or without Ray around it.

One call trains one protocol (fold): stage 1 aligns MVP, stage 2 tunes MVP and LoRA, the result is exported. Killed at
any point and called again, it goes on from the newest whole checkpoint; on the CPU in float32 it ends with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from emollm.config import TrainRecipe
from emollm.data.collate import AnyProcessor, Encoded
from emollm.data.features import Features, FeatureStore
from emollm.data.loader import Corpus, Step, plan_training, read_digest, training_table
from emollm.data.masking import IGNORED
from emollm.data.packing import first_fit, pack
from emollm.model.base import EmoLLMBase
from emollm.model.emollm import EmoLLM
from emollm.model.processor import EmoLLMProcessor
from emollm.train import perspectives
from emollm.train.align import align
from emollm.train.build import initial_model, part_seed
from emollm.train.checkpoint import Checkpoints, Whole, disk_trouble
from emollm.train.deepspeed import ensure_process_group, group_device, make_engine, trained_state
from emollm.train.metrics import MetricsWriter, read_metrics
from emollm.train.resume import ONLY_THE_SAME, Resume, fold_checkpoints

FOLD_FILE = "fold.json"
Report = Callable[[dict[str, Any]], None]


class NonFiniteLossError(ValueError):
    """The loss is not a number or infinite; the message names the samples of the batch."""


class Fold(NamedTuple):
    """Everything one rank needs to train one protocol."""

    recipe: TrainRecipe
    number: int
    model: EmoLLMBase
    processor: AnyProcessor
    corpus: Corpus
    features: FeatureStore
    steps: list[Step]
    rank: int
    world: int

    def row_features(self, number: int) -> Features:
        return self.features.row(self.corpus, number, self.model, self.processor)

    def row_patches(self, number: int) -> Tensor | None:
        return self.row_features(number).patches


def fold_folder(recipe: TrainRecipe, fold: int) -> str:
    return storage.join(recipe.out, f"fold-{fold}")


def log_folder(recipe: TrainRecipe, fold: int) -> str:
    return storage.join(fold_folder(recipe, fold), "log")


def finished_fold(
    recipe: TrainRecipe, fold: int, inputs_digest: str, resume: Resume = ONLY_THE_SAME
) -> dict[str, Any] | None:
    """What a finished training of this fold with the same inputs left behind; None where there is none, or where a
    file of the model is missing or damaged."""
    path = storage.join(fold_folder(recipe, fold), FOLD_FILE)
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    accepted = (inputs_digest, *resume.earlier_inputs)
    same = found.get("inputs_digest") in accepted and found["files"] == model_files(recipe, fold)
    return found if same else None


def model_files(recipe: TrainRecipe, fold: int) -> dict[str, str]:
    """sha256 of every file of an exported fold, without its log."""
    folder = fold_folder(recipe, fold)
    names = [name for name in storage.list_files(folder) if name != FOLD_FILE and not name.startswith("log/")]
    return {name: sha256_of_file(storage.join(folder, name)) for name in names}


def train_fold(
    recipe: TrainRecipe,
    fold: int,
    inputs_digest: str,
    *,
    report: Report | None = None,
    features: FeatureStore | None = None,
    resume: Resume = ONLY_THE_SAME,
) -> dict[str, Any]:
    """Train one protocol and export it to `OUT/fold-k`. Every rank calls this; returns the content of `fold.json`.

    Raises CheckpointError where there are checkpoints that it must not go on from, or where a disk is full.
    """
    rank, world = ensure_process_group()
    if done := finished_fold(recipe, fold, inputs_digest, resume):
        return done
    torch.set_num_threads(recipe.workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    started = time.monotonic()
    state = prepare(recipe, fold, rank, world, features or FeatureStore(recipe.tune.cache_gib))
    checkpoints = Checkpoints(
        fold_checkpoints(recipe.out, fold), inputs_digest, recipe.checkpoint.keep, resume
    )
    newest = checkpoints.newest_whole()
    look_at_pictures(state)
    kept: dict[str, Any] = newest.kept if newest else {"align_losses": align_fold(state), "changes": []}
    state.model.train()
    engine = make_engine(
        state.model,
        recipe.deepspeed,
        recipe.tune,
        len(state.steps[0].micro_batches),
        universal=newest is not None and newest.world_size != world,
    )
    if newest:
        checkpoints.load(engine, newest)
        kept["changes"] += changes(newest, inputs_digest, world)
        if rank == 0:
            print(f"fold {fold}: goes on at step {newest.step + 1} of {len(state.steps)}", flush=True)
    with disk_trouble(Path(recipe.out)):
        run_steps(state, engine, checkpoints, newest.step if newest else 0, kept, report)
    align_losses = kept["align_losses"]
    result = {
        "inputs_digest": inputs_digest,
        "fold": fold,
        "data_digest": read_digest(recipe.data),
        "path": f"fold-{fold}",
        "steps": len(state.steps),
        "samples_seen": _rows_seen(state),
        "rows": len(state.corpus),
        "world_size": world,
        "changes": kept["changes"],
        "align": {"first_loss": align_losses[0], "final_loss": align_losses[-1]} if align_losses else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    with disk_trouble(Path(recipe.out)):
        export_fold(state, engine, result)
    if rank == 0:
        checkpoints.remove_all()
    engine.destroy()
    dist.barrier()
    return result


def changes(newest: Whole, inputs_digest: str, world: int) -> list[dict[str, Any]]:
    """What changes where a run goes on from `newest`, for fold.json: its world size, its code."""
    found: list[dict[str, Any]] = []
    if newest.world_size != world:
        found.append({"after_step": newest.step, "world_size": [newest.world_size, world]})
    if newest.inputs_digest != inputs_digest:
        found.append({"after_step": newest.step, "inputs_digest": [newest.inputs_digest, inputs_digest]})
    return found


def prepare(recipe: TrainRecipe, fold: int, rank: int, world: int, features: FeatureStore) -> Fold:
    """Model, rows, plan and picture features of one protocol."""
    model, processor = initial_model(recipe, recipe.seed)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    corpus = Corpus(training_table(recipe.data, fold), processor, limit)
    tune = recipe.tune
    steps = plan_training(
        corpus.keys,
        corpus.lengths,
        mix=recipe.mix,
        seed=recipe.seed,
        epochs=tune.epochs,
        batch_size=tune.batch_size,
        micro_batch=tune.micro_batch,
        world_size=world,
        rank=rank,
    )
    if rank == 0:
        print(
            f"fold {fold}: {len(corpus)} training rows, {len(steps)} steps of {tune.batch_size} rows",
            flush=True,
        )
    return Fold(recipe, fold, model, processor, corpus, features, steps, rank, world)


def look_at_pictures(state: Fold) -> None:
    """Compute the features of all pictures that the fold will see, shared among the ranks."""
    numbers = _rows_looked_at(state)
    state.features.fill(state.corpus, numbers, state.model, state.processor, state.rank, state.world)


def align_fold(state: Fold) -> list[float]:
    """Stage 1; the loss of every step. An attached foundation's projector is aligned already."""
    if state.recipe.foundation.family == "attached":
        return []
    started = time.monotonic()
    model, processor = state.model, state.processor
    assert isinstance(model, EmoLLM) and isinstance(processor, EmoLLMProcessor)
    losses = align(model, processor, state.corpus, state.row_patches, state.recipe.align, state.recipe.seed)
    if losses and state.rank == 0:
        print(
            f"fold {state.number}: aligned pictures with label words in {len(losses)} steps, "
            f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {time.monotonic() - started:.1f} s",
            flush=True,
        )
    return losses


def _rows_looked_at(state: Fold) -> list[int]:
    planned = {number for step in state.steps for batch in step.micro_batches for number in batch}
    everyone: list[Any] = [planned]
    if state.world > 1:
        everyone = [None] * state.world
        dist.all_gather_object(everyone, planned)
    tasks = state.corpus.table.column("sub_task").to_pylist()
    aligned = {number for number, task in enumerate(tasks) if task in state.recipe.align.sub_tasks}
    return sorted(set().union(aligned, *everyone))


def _rows_seen(state: Fold) -> int:
    rows = sum(len(batch) for step in state.steps for batch in step.micro_batches)
    count = torch.tensor([rows], device=group_device())
    dist.all_reduce(count)
    return int(count)


def run_steps(
    state: Fold,
    engine: Any,
    checkpoints: Checkpoints,
    done_steps: int,
    kept: dict[str, Any],
    report: Report | None,
) -> None:
    """Stage 2, from the step after `done_steps`; `kept` goes into every checkpoint."""
    recipe, total = state.recipe, len(state.steps)
    folder = log_folder(recipe, state.number)
    writer = None
    if state.rank == 0:
        what = f"fold {state.number} training"
        writer = MetricsWriter(folder, what, total, done_steps, recipe.tune.log_every).__enter__()
    try:
        for number in range(done_steps, total):
            values = run_step(state, engine, number)
            if writer is not None:
                writer.write(values)
            if report is not None and (
                values["step"] % recipe.tune.log_every == 0 or values["step"] == total
            ):
                report({"fold": state.number, **values})
            if values["step"] % recipe.checkpoint.every_steps == 0 or values["step"] == total:
                checkpoints.save(engine, values["step"], kept)
    finally:
        if writer is not None:
            writer.__exit__(None, None, None)


def run_step(state: Fold, engine: Any, number: int) -> dict[str, Any]:
    """One optimizer step over the global batch `number`. Every rank calls this with the same number."""
    started = time.monotonic()
    step, tune = state.steps[number], state.recipe.tune
    torch.manual_seed(part_seed(state.recipe.seed, f"fold {state.number} step {number} rank {state.rank}"))
    batches = [make_batch(state, rows) for rows in step.micro_batches]
    waited = time.monotonic() - started
    # Supervised tokens and all tokens of the whole step, over ranks and micro-batches.
    counts = torch.tensor(
        [
            sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches),
            sum(len(state.corpus.encoded[row].input_ids) for rows in step.micro_batches for row in rows),
        ],
        dtype=torch.float64,
        device=group_device(),
    )
    dist.all_reduce(counts)
    supervised = float(counts[0])
    # DeepSpeed averages gradients over ranks and micro-batches; this makes the average the mean over all tokens.
    divisor = supervised / (state.world * len(batches))
    factor = schedule(number, len(state.steps), tune.warmup_share, tune.final_share)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    loss_sum = 0.0
    for batch, rows in zip(batches, step.micro_batches):
        loss = engine(**batch, supervised_only=True, num_items_in_batch=divisor).loss
        local = float(loss.detach()) * divisor
        stop_if_not_finite(state, local, rows, number)
        loss_sum += local
        engine.backward(loss)
        engine.step()
    total = torch.tensor([loss_sum], dtype=torch.float64, device=group_device())
    dist.all_reduce(total)
    spent = time.monotonic() - started
    norm = engine.get_global_grad_norm()
    return {
        "step": number + 1,
        "epoch": step.epoch,
        "loss": float(total) / supervised,
        "learning_rate": tune.learning_rate * factor,
        "grad_norm": None if norm is None else float(norm),
        "supervised_tokens": int(supervised),
        "tokens_per_s": float(counts[1]) / spent,
        "data_wait_share": waited / spent,
        "seconds": round(spent, 3),
    }


def make_batch(state: Fold, rows: Sequence[int]) -> dict[str, Any]:
    """The batch of some rows, packed. Without rows, a batch that takes part in everything and weighs nothing."""
    encoded = [state.corpus.encoded[row] for row in rows]
    if not rows:
        filler = min(range(len(state.corpus)), key=lambda row: (state.corpus.lengths[row], row))
        rows, encoded = [filler], [_unsupervised(state.corpus.encoded[filler])]
    tune = state.recipe.tune
    capacity = tune.pack_tokens if tune.packing else 0
    bins = first_fit([len(row.input_ids) for row in encoded], capacity)
    batch: dict[str, Any] = pack(encoded, bins, state.processor.pad_id)
    order = [i for one in bins for i in one]
    found = [state.row_features(rows[i]) for i in order]
    if patches := [features.patches for features in found if features.patches is not None]:
        batch["patches"] = torch.cat(patches)
        batch["media_frames"] = [frames for i in order for frames in encoded[i].media_frames]
    if visuals := [visual for features in found for visual in features.visuals]:
        batch["visuals"] = visuals
    if heard := [features.heard for features in found if features.heard is not None]:
        batch["heard"] = torch.cat(heard)
    return {
        name: value.to(state.model.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _unsupervised(row: Encoded) -> Encoded:
    return row._replace(labels=[IGNORED] * len(row.labels))


def schedule(number: int, total: int, warmup_share: float, final_share: float) -> float:
    """Linear warm-up, then a cosine down to `final_share`; 1.0 is the full learning rate."""
    warmup = max(1, round(warmup_share * total))
    if number < warmup:
        return (number + 1) / warmup
    progress = (number - warmup) / max(1, total - warmup)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def stop_if_not_finite(state: Fold, local: float, rows: Sequence[int], number: int) -> None:
    """Raise NonFiniteLossError on all ranks if the loss of any is not finite, before the optimizer moves."""
    bad = torch.tensor([0.0 if math.isfinite(local) else 1.0], device=group_device())
    dist.all_reduce(bad)
    if float(bad) == 0:
        return
    mine = [] if math.isfinite(local) else [state.corpus.encoded[row].uid for row in rows]
    everyone: list[Any] = [None] * state.world
    dist.all_gather_object(everyone, mine)
    uids = [uid for part in everyone for uid in part]
    raise NonFiniteLossError(
        f"fold {state.number}, step {number + 1}: the loss is not finite; batch: {', '.join(uids)}; "
        f"look at these samples, or lower tune.learning_rate"
    )


def export_fold(state: Fold, engine: Any, result: dict[str, Any]) -> None:
    """Write model, processor and, last, `fold.json` to `OUT/fold-k`. Every rank calls this."""
    attached = state.recipe.foundation.family == "attached"
    opened = perspectives.of_attached(state) if attached else {}
    weights = trained_state(engine)
    if state.rank == 0:
        folder = Path(fold_folder(state.recipe, state.number))
        state.model.save_pretrained(folder, state_dict=weights)
        state.processor.save_pretrained(folder)
        last = [
            line["loss"] for line in read_metrics(f"{log_folder(state.recipe, state.number)}/metrics.jsonl")
        ][-5:]
        result["final_loss"] = sum(last) / len(last)
        result["perspectives"] = opened if attached else perspectives.of_composed(state, weights)
        result["files"] = model_files(state.recipe, state.number)
        storage.write_json(str(folder / FOLD_FILE), result)
    shared: list[Any] = [result]
    dist.broadcast_object_list(shared, src=0)
    result.update(shared[0])
