"""Ray Train around the loop: workers, failure policy, reports. The learning itself is in `loop`.

One worker group trains all protocols one after the other, so its start-up is paid once. A lost worker makes Ray start
the group again: finished protocols are skipped, the unfinished one goes on from its newest whole checkpoint. Checkpoints
lie in the output folder, which all workers must see, as they must Ray's own storage folder.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_build import ray_local
from emollm.config import TrainRecipe
from emollm.train.resume import Resume


class WorkersLostError(ValueError):
    """The workers failed more often than `workers.max_failures` allows; the message holds the last failure."""


def train_under_ray(recipe: TrainRecipe, inputs_digest: str, folds: Sequence[int], resume: Resume) -> None:
    """Train these protocols on `recipe.workers`, in the running Ray cluster or a local one made for it.

    Returns once all have a finished `fold-k`. A lost worker makes Ray start the group again, up to `max_failures` times,
    after which WorkersLostError is raised. A ValueError of the loop (recipe, data, checkpoint, full disk, non-finite loss)
    is raised as it is and at once: another start would only meet it again.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # with it every printed line appears twice
    with ray_local.session(log_to_driver=True, num_cpus=_local_cpus(recipe)):
        from ray.train import ControllerError, TrainingFailedError

        try:
            _trainer(recipe, inputs_digest, folds, resume).fit()
        except TrainingFailedError as error:
            cause = error.controller_failure if isinstance(error, ControllerError) else None
            if isinstance(cause, ValueError):
                raise cause from None
            raise WorkersLostError(
                f"{recipe.out}: the workers failed {recipe.workers.max_failures + 1} times "
                f"(workers.max_failures={recipe.workers.max_failures}); the last time: {error}. Started again, the "
                "training goes on from its newest whole checkpoint"
            ) from error


def _fail_fast() -> Any:
    """Ray's failure policy counts every error of a worker. An error in a callback ends the run instead, so this one
    raises what no new start would mend."""
    from ray.train import UserCallback

    class FailFast(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, ValueError):
                    raise error

    return FailFast()


def _trainer(recipe: TrainRecipe, inputs_digest: str, folds: Sequence[int], resume: Resume) -> Any:
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
            "resume": resume,
        },
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"train-{inputs_digest[:16]}",
            storage_path=str(Path(recipe.out) / "ray"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[_fail_fast()],
        ),
    )


class Reports:
    """Reports to Ray, but not more often than it takes them.

    Ray Train fetches reports every two seconds, and a report waits until the one before it was fetched: at every step,
    steps of 20 ms took two seconds (Ray 2.60). All ranks must report equally often, so the clock of rank 0 decides.
    """

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, values: dict[str, Any]) -> None:
        import ray.train
        import torch
        import torch.distributed as dist

        from emollm.train.deepspeed import group_device

        now = time.monotonic()
        due = torch.tensor([int(now - self._last >= self.EVERY_S)], device=group_device())
        dist.broadcast(due, src=0)
        if int(due):
            self._last = now
            ray.train.report(values)


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker runs. A run that is already finished passes through without a report."""
    from emollm.data.features import FeatureStore
    from emollm.train.loop import train_fold

    reports = Reports()
    recipe = TrainRecipe.model_validate(config["recipe"])
    features = FeatureStore(recipe.tune.cache_gib)  # folds share pictures
    for fold in config["folds"]:
        train_fold(
            recipe,
            fold,
            config["inputs_digest"],
            report=reports,
            features=features,
            resume=Resume(*config["resume"]),
        )


def _local_cpus(recipe: TrainRecipe) -> int:
    """As many logical CPUs as the workers ask for, and not fewer than the machine has."""
    return max(os.cpu_count() or 1, int(recipe.workers.count * recipe.workers.cpus))
