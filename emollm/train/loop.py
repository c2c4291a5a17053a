"""The training loop: a plain function, with or without Ray around it.

One call trains one protocol (fold): stage 1 aligns MVP, stage 2 tunes MVP and LoRA, the result is exported. Killed at
any point and called again, it goes on from the newest whole checkpoint; on the CPU in float32 it ends with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from emollm import model_card
from emollm.config import TrainRecipe
from emollm.data.emobench import DataError, read_digest, read_manifest
from emollm.data.features import FeatureStore
from emollm.data.masking import IGNORED
from emollm.data.plan import epoch_rows
from emollm.data.stream import StepRows, Stream
from emollm.train import perspectives
from emollm.train.build import part_seed
from emollm.train.checkpoint import Checkpoints, Whole, best_file, disk_trouble
from emollm.train.deepspeed import (
    ensure_process_group,
    group_device,
    make_engine,
    put_trained_state,
    trained_state,
)
from emollm.train.early_stop import EarlyStop, Validation
from emollm.train.fold import Fold, align_fold, look_at_pictures, make_batch, prepare
from emollm.train.metrics import MetricsWriter, read_metrics
from emollm.train.resume import ONLY_THE_SAME, Resume, fold_checkpoints

FOLD_FILE = "fold.json"
RECIPE_FILE = "recipe.json"  # beside the checkpoints: what they are of
Report = Callable[[dict[str, Any]], None]


class NonFiniteLossError(ValueError):
    """The loss is not a number or infinite; the message names the samples of the batch."""


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
    """sha256 of every file of an exported fold, without its log and its card, which may be edited."""
    folder = fold_folder(recipe, fold)
    others = (FOLD_FILE, model_card.CARD, model_card.FACTS)
    names = [
        name for name in storage.list_files(folder) if name not in others and not name.startswith("log/")
    ]
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
    with disk_trouble(Path(recipe.out)):
        return _train_fold(recipe, fold, inputs_digest, report, features, resume)


def _train_fold(
    recipe: TrainRecipe,
    fold: int,
    inputs_digest: str,
    report: Report | None,
    features: FeatureStore | None,
    resume: Resume,
) -> dict[str, Any]:
    rank, world = ensure_process_group()
    if done := finished_fold(recipe, fold, inputs_digest, resume):
        return done
    torch.set_num_threads(recipe.workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    started = time.monotonic()
    state = prepare(recipe, fold, rank, world, features or FeatureStore(recipe.tune.cache_gib))
    checkpoints = Checkpoints(
        fold_checkpoints(recipe.out, fold),
        inputs_digest,
        recipe.checkpoint.keep,
        resume,
        recipe.checkpoint.background,
    )
    newest = checkpoints.newest_whole()
    if rank == 0:  # so that a checkpoint can be exported without the run
        record = {"recipe": recipe.model_dump(mode="json"), "fold": fold, "card": card_facts(state)}
        storage.write_json(str(checkpoints.folder / RECIPE_FILE), record)
    look_at_pictures(state)
    validation = Validation(state) if recipe.early_stop else None
    if validation:
        validation.look_at_pictures()
    kept: dict[str, Any] = (
        newest.kept
        if newest
        else {"align_losses": align_fold(state), "changes": [], "scores": [], "best": None, "saves": []}
    )
    state.model.train()
    engine = make_engine(
        state.model,
        recipe.deepspeed,
        recipe.tune,
        len(state.steps[0].micro_batches),
        universal=newest is not None and checkpoints.needs_conversion(newest, recipe.deepspeed.stage),
    )
    if newest:
        checkpoints.load(engine, newest)
        kept["changes"] += changes(newest, inputs_digest, world)
        if rank == 0:
            print(f"fold {fold}: goes on at step {newest.step + 1} of {len(state.steps)}", flush=True)
    steps_done = run_steps(state, engine, checkpoints, newest.step if newest else 0, kept, report, validation)
    if kept["best"]:
        put_trained_state(engine, checkpoints.load_best(kept["best"]["file"]))
    align_losses = kept["align_losses"]
    result = {
        "inputs_digest": inputs_digest,
        "fold": fold,
        "data_digest": read_digest(recipe.data),
        "path": f"fold-{fold}",
        "steps": steps_done,
        "planned_steps": len(state.steps),
        "samples_seen": _rows_seen(state, steps_done),
        "rows": len(state.index),
        "world_size": world,
        "changes": kept["changes"],
        "align": {"first_loss": align_losses[0], "final_loss": align_losses[-1]} if align_losses else None,
        "early_stop": EarlyStop(recipe.early_stop, kept["scores"]).summary() if recipe.early_stop else None,
        "checkpoints": {"saved": len(kept["saves"]), "seconds": round(sum(kept["saves"]), 3)},
        "seconds": round(time.monotonic() - started, 1),
    }
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


def _rows_seen(state: Fold, steps: int) -> int:
    rows = sum(len(batch) for step in state.steps[:steps] for batch in step.micro_batches)
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
    validation: Validation | None = None,
) -> int:
    """Stage 2, from the step after `done_steps` to the last one, or to where it stops early; the steps done then.

    `kept` goes into every checkpoint: the scores so far, the best one and where its weights are, and the seconds that
    training stood still for each checkpoint. A step's line in `metrics.jsonl` says so of the checkpoint before it.
    All checkpoints are whole when this returns.
    """
    recipe, total = state.recipe, len(state.steps)
    rule = EarlyStop(recipe.early_stop, kept["scores"]) if recipe.early_stop else None
    last_save: dict[str, float] = {}
    folder = log_folder(recipe, state.number)
    writer = None
    if state.rank == 0:
        writer = MetricsWriter(
            folder, recipe.name, state.number, total, done_steps, recipe.tune.log_every
        ).__enter__()
    stream = state.stream([step.micro_batches for step in state.steps], start=done_steps)
    try:
        while done_steps < total and not (rule and rule.stopped):
            values = run_step(state, engine, done_steps, stream) | last_save
            done_steps, last_save = values["step"], {}
            checkpoints.watch()
            if rule and validation and (done_steps % rule.config.every_steps == 0 or done_steps == total):
                score = validation.score(engine)
                values |= {f"val_{name}": value for name, value in score.items()}
                if rule.add({"step": done_steps, **score}):
                    weights = trained_state(engine)
                    if state.rank == 0:
                        checkpoints.save_best(weights, done_steps)
                    kept["best"] = {**score, "step": done_steps, "file": best_file(done_steps)}
            last = done_steps == total or bool(rule and rule.stopped)
            if writer is not None:
                writer.write(values)
            if report is not None and (done_steps % recipe.tune.log_every == 0 or last):
                report({"fold": state.number, **values})
            if done_steps % recipe.checkpoint.every_steps == 0 or last:
                seconds = checkpoints.save(engine, done_steps, kept)
                kept["saves"].append(seconds)
                last_save = {"checkpoint_seconds": round(seconds, 3)}
                if writer is not None:
                    writer.checkpoint_written(seconds)
                    print(
                        f"fold {state.number}: checkpoint of step {done_steps}, training stood still for {seconds:.1f} s",
                        flush=True,
                    )
        started = time.monotonic()
        checkpoints.wait()
        if kept["saves"]:
            kept["saves"][-1] += time.monotonic() - started
    finally:
        checkpoints.leave()
        stream.close()
        if writer is not None:
            writer.__exit__(None, None, None)
    if rule and rule.best is None:
        raise NonFiniteLossError(
            f"fold {state.number}: none of the {len(rule.history)} validation scores is finite (early_stop.metric: "
            f"{rule.config.metric}); lower tune.learning_rate, or look at the validation rows"
        )
    if rule and rule.best and rule.stopped and state.rank == 0:
        print(
            f"fold {state.number}: stops after step {done_steps} of {total}: no better validation {rule.config.metric} "
            f"than {rule.best[rule.config.metric]:.4f} after step {rule.best['step']}, whose weights are exported",
            flush=True,
        )
    return done_steps


def run_step(state: Fold, engine: Any, number: int, stream: Stream) -> dict[str, Any]:
    """One optimizer step over the global batch `number`, which is the next of the stream. Every rank calls this with
    the same number. Raises DataError on all ranks where one of them cannot read its rows."""
    started = time.monotonic()
    step, tune = state.steps[number], state.recipe.tune
    torch.manual_seed(part_seed(state.recipe.seed, f"fold {state.number} step {number} rank {state.rank}"))
    read, problem = _next(stream)
    waited = time.monotonic() - started
    # Of the whole step, over ranks and micro-batches: supervised tokens, all tokens, rows; ranks that cannot read.
    counts = torch.tensor(
        [
            sum(label != IGNORED for rows in read for row in rows for label in row.labels[1:]),
            sum(state.index.lengths[row] for rows in step.micro_batches for row in rows),
            sum(len(rows) for rows in step.micro_batches),
            1 if problem else 0,
        ],
        dtype=torch.float64,
        device=group_device(),
    )
    dist.all_reduce(counts)
    if int(counts[3]):
        stop_unread(state, problem, number)
    supervised = float(counts[0])
    # DeepSpeed averages gradients over ranks and micro-batches; this makes the average the mean over all tokens.
    divisor = supervised / (state.world * len(read))
    factor = schedule(number, len(state.steps), tune.warmup_share, tune.final_share)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    loss_sum = 0.0
    for numbers, rows in zip(step.micro_batches, read):
        batch = make_batch(state, numbers, rows)
        loss = engine(**batch, supervised_only=True, num_items_in_batch=divisor).loss
        local = float(loss.detach()) * divisor
        stop_if_not_finite(state, local, [row.uid for row in rows], number)
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
        "rows": int(counts[2]),
        "tokens_per_s": float(counts[1]) / spent,
        "data_wait_share": waited / spent,
        "seconds": round(spent, 3),
    }


def schedule(number: int, total: int, warmup_share: float, final_share: float) -> float:
    """Linear warm-up, then a cosine down to `final_share`; 1.0 is the full learning rate."""
    warmup = max(1, round(warmup_share * total))
    if number < warmup:
        return (number + 1) / warmup
    progress = (number - warmup) / max(1, total - warmup)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _next(stream: Stream) -> tuple[StepRows, str]:
    """The next step's rows, or why they cannot be read."""
    try:
        return next(stream), ""
    except DataError as error:
        return [], str(error)


def stop_unread(state: Fold, problem: str, number: int) -> None:
    """Raise DataError on all ranks, with what those say that cannot read their rows."""
    everyone: list[Any] = [None] * state.world
    dist.all_gather_object(everyone, problem)
    raise DataError(
        f"fold {state.number}, step {number + 1}: "
        + "; ".join(f"rank {rank}: {said}" for rank, said in enumerate(everyone) if said)
    )


def stop_if_not_finite(state: Fold, local: float, uids: Sequence[str], number: int) -> None:
    """Raise NonFiniteLossError on all ranks if the loss of any is not finite, before the optimizer moves."""
    bad = torch.tensor([0.0 if math.isfinite(local) else 1.0], device=group_device())
    dist.all_reduce(bad)
    if float(bad) == 0:
        return
    mine = [] if math.isfinite(local) else list(uids)
    everyone: list[Any] = [None] * state.world
    dist.all_gather_object(everyone, mine)
    named = [uid for part in everyone for uid in part]
    raise NonFiniteLossError(
        f"fold {state.number}, step {number + 1}: the loss is not finite; batch: {', '.join(named)}; "
        f"look at these samples, or lower tune.learning_rate"
    )


def card_facts(state: Fold) -> dict[str, Any]:
    """What the model's card says of the training."""
    keys, recipe = state.index.keys, state.recipe
    taken = epoch_rows(keys, recipe.mix, recipe.seed, 0)
    return model_card.facts(recipe, keys, taken, read_manifest(recipe.data), state.model.config.foundations)


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
        model_card.write(folder, card_facts(state), result, "light")
        result["files"] = model_files(state.recipe, state.number)
        storage.write_json(str(folder / FOLD_FILE), result)
    shared: list[Any] = [result]
    dist.broadcast_object_list(shared, src=0)
    result.update(shared[0])
