"""Ray Train around the loop: workers, failure policy, reports. The learning itself is in `loop`.

One worker group trains all protocols one after the other, so its start-up is paid once. A lost worker makes Ray start
the group again: finished protocols are skipped, the unfinished one goes on from its newest whole checkpoint. Checkpoints
lie in the output folder, which all workers must see, as they must Ray's own storage folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_build import ray_local
from emollm.config import TrainRecipe


def train_under_ray(recipe: TrainRecipe, inputs_digest: str, folds: Sequence[int]) -> None:
    """Train these protocols on `recipe.workers`, in the running Ray cluster or a local one made for it.

    Returns once all have a finished `fold-k`. Raises what the workers raised after `max_failures` new starts.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # with it every printed line appears twice
    with ray_local.session(log_to_driver=True, num_cpus=_local_cpus(recipe)):
        _trainer(recipe, inputs_digest, folds).fit()


def _trainer(recipe: TrainRecipe, inputs_digest: str, folds: Sequence[int]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = recipe.workers
    resources = {"CPU": workers.cpus, "memory": workers.memory_gib * 2**30}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    return TorchTrainer(
        train_loop_per_worker=worker_loop,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "inputs_digest": inputs_digest,
            "folds": list(folds),
        },
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"train-{inputs_digest[:16]}",
            storage_path=str(Path(recipe.out) / "ray"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker runs. A run that is already finished passes through without a report."""
    import ray.train

    from emollm.data.features import FeatureStore
    from emollm.train.loop import train_fold

    recipe = TrainRecipe.model_validate(config["recipe"])
    features = FeatureStore(recipe.tune.cache_gib)  # folds share pictures
    for fold in config["folds"]:
        train_fold(
            recipe,
            fold,
            config["inputs_digest"],
            report=lambda values: ray.train.report(values),
            features=features,
        )


def _local_cpus(recipe: TrainRecipe) -> int:
    """As many logical CPUs as the workers ask for, and not fewer than the machine has."""
    return max(os.cpu_count() or 1, int(recipe.workers.count * recipe.workers.cpus))
