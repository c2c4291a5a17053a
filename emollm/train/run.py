"""A whole training: what is to be done, doing it, and `training.json`, written last."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from dataset_build import storage
from dataset_build.progress import duration
from dataset_build.provenance import code_version, sha256_of_file, sha256_of_json
from emollm.config import FOUNDATION_PARTS, TrainRecipe, train_inputs
from emollm.data.emobench import DataError, read_digest
from emollm.data.index import RowIndex, make_index
from emollm.data.plan import epoch_rows
from emollm.train.resume import CHECKPOINTS, what_to_resume

SCHEMA_VERSION = "1.0"
TRAINING_FILE = "training.json"
WEIGHT_SUFFIXES = (".safetensors",)


def with_absolute_paths(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with local paths made absolute, because workers run in folders of their own."""
    named = {part: getattr(recipe.foundation, part) for part in FOUNDATION_PARTS}
    foundation = recipe.foundation.model_copy(
        update={part: _absolute(path) for part, path in named.items() if path}
    )
    places = {"data": _absolute(recipe.data), "out": str(Path(recipe.out).resolve())}
    return recipe.model_copy(update={"foundation": foundation, **places})


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if not storage.is_remote(path) and Path(path).exists() else path


def chosen_folds(recipe: TrainRecipe, index: RowIndex) -> list[int]:
    """The protocols to train. Raises DataError where the recipe asks for one that the data do not have."""
    there = index.folds()
    if recipe.folds == "all":
        return there
    if missing := [fold for fold in recipe.folds if fold not in there]:
        raise DataError(f"folds {missing} were asked for, but {recipe.data} has {there}")
    return list(recipe.folds)


def finished_training(recipe: TrainRecipe, inputs_digest: str) -> dict[str, Any] | None:
    """The content of training.json where it is there, of the same inputs, and its weights are unharmed."""
    path = storage.join(recipe.out, TRAINING_FILE)
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    if found.get("inputs_digest") != inputs_digest or model_digest(recipe.out) != found.get("model_digest"):
        return None
    return found


def model_digest(out: str) -> str:
    """Digest of the exported weight files of all folds."""
    names = [
        name
        for name in storage.list_files(out)
        if name.startswith("fold-") and name.endswith(WEIGHT_SUFFIXES)
    ]
    return sha256_of_json({name: sha256_of_file(storage.join(out, name)) for name in names})


def train(
    recipe: TrainRecipe,
    *,
    force: bool = False,
    allow_world_size_change: bool = False,
    allow_code_change: bool = False,
) -> dict[str, Any]:
    """Train what is not trained yet; returns the content of training.json. Started again, it goes on or says so.

    `force` removes what is there first, finished folds and checkpoints alike. Without it, an unfinished training of other
    inputs in OUT is an error (see `emollm.train.resume`); a finished one is replaced.
    """
    from emollm.train.checkpoint import disk_trouble

    with disk_trouble(Path(recipe.out)):
        return _train(recipe, force, allow_world_size_change, allow_code_change)


def _train(
    recipe: TrainRecipe, force: bool, allow_world_size_change: bool, allow_code_change: bool
) -> dict[str, Any]:
    from emollm.train.fold import row_encoder, trainable, validating
    from emollm.train.loop import finished_fold
    from emollm.train.ray_worker import train_under_ray

    if storage.is_remote(recipe.out):
        raise DataError(
            f"out: {recipe.out}: models are written to a folder that all workers see; use a shared disk"
        )
    started = time.monotonic()
    data_digest = read_digest(recipe.data)
    inputs = train_inputs(recipe, data_digest)
    inputs_digest = sha256_of_json(inputs)
    if force:
        _remove_foreign(recipe, [])
        _remove_leftovers(recipe.out)
    elif done := finished_training(recipe, inputs_digest):
        print(
            f"nothing changed: {storage.join(recipe.out, TRAINING_FILE)} is of the same recipe, data and code"
        )
        return done
    resume = what_to_resume(
        recipe.out,
        inputs,
        world_size=recipe.workers.count,
        allow_world_size_change=allow_world_size_change,
        allow_code_change=allow_code_change,
    )
    storage.remove(storage.join(recipe.out, TRAINING_FILE))
    placed = with_absolute_paths(recipe)
    index = make_index(placed.data, placed.out, row_encoder(placed), data_digest, on_ray=True)
    folds = chosen_folds(recipe, index)
    for fold in folds:  # what cannot be trained is refused here: Ray would start the workers again and again
        epoch_rows(trainable(index, recipe, fold).keys, recipe.mix, recipe.seed, 0)
        validating(index, recipe, fold)
    finished = [fold for fold in folds if finished_fold(recipe, fold, inputs_digest, resume)]
    _remove_foreign(recipe, finished)
    if len(finished) < len(folds):
        print(f"training {len(folds)} folds with {recipe.workers.count} workers, {recipe.out}", flush=True)
        train_under_ray(placed, inputs_digest, folds, resume)
    results = [finished_fold(recipe, fold, inputs_digest, resume) for fold in folds]
    if missing := [fold for fold, result in zip(folds, results) if result is None]:
        raise DataError(f"{recipe.out}: folds {missing} have no model; are all workers seeing this folder?")
    training = {
        "schema_version": SCHEMA_VERSION,
        "inputs_digest": inputs_digest,
        "model_digest": model_digest(recipe.out),
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "code": code_version(),
        "data_digest": data_digest,
        "folds": results,
        "seconds": round(time.monotonic() - started, 1),
    }
    _remove_leftovers(recipe.out)
    plot_losses(recipe.out, folds)
    storage.write_json(storage.join(recipe.out, TRAINING_FILE), training)
    print(f"trained {len(folds)} folds in {duration(time.monotonic() - started)}: {recipe.out}", flush=True)
    return training


def _remove_leftovers(out: str) -> None:
    """Remove what only an unfinished training needs."""
    for leftover in (CHECKPOINTS, "ray"):
        shutil.rmtree(storage.join(out, leftover), ignore_errors=True)


def _remove_foreign(recipe: TrainRecipe, finished: list[int]) -> None:
    """Remove the models that another recipe, other data or other code left, or that are damaged; logs of an unfinished
    run stay."""
    for folder in Path(recipe.out).glob("fold-*"):
        if (folder / "fold.json").exists() and folder.name not in {f"fold-{fold}" for fold in finished}:
            print(f"{folder} is removed: it is damaged or of other inputs", flush=True)
            shutil.rmtree(folder)


def plot_losses(out: str, folds: list[int]) -> None:
    """`training.png`: the loss of every fold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from emollm.train.metrics import read_metrics

    figure, axes = plt.subplots(figsize=(7, 4))
    for fold in folds:
        lines = read_metrics(storage.join(out, f"fold-{fold}", "log", "metrics.jsonl"))
        (drawn,) = axes.plot(
            [line["step"] for line in lines], [line["loss"] for line in lines], label=f"fold {fold}"
        )
        if scores := [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]:
            label = f"fold {fold}, validation"
            axes.plot(*zip(*scores), marker="o", linestyle="--", color=drawn.get_color(), label=label)
    axes.set(xlabel="step", ylabel="loss per supervised token", title="Training loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(storage.join(out, "training.png"), dpi=110)
    plt.close(figure)
