"""train-overhead: the step time of a training under Ray Train, beside the bare step on tensors in memory.

    python -m tests.benchmarks.train_overhead ray|bare

- ray: one Ray Train worker runs the project's loop: rows read and encoded from Parquet in every step, packed, counted
  over all ranks, checked to be finite, logged, reported to Ray.
- bare: the same engine over the same batches, which lie in memory as tensors: forward, backward, optimizer step.

Both run the same steps of the quickstart's model (features of the frozen tower are computed before, as a training does),
two rows a step: the smaller a step, the more what surrounds it weighs. Timed from the end of the first step to the end of
the last. Ray itself is up before the clock starts.

Equal work: steps, rows, and the loss of the first and of the last step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import training
from tests.benchmarks.harness import Benchmark, Side, Size, equal_work

STEPS = {"smoke": 4, "normal": 12, "large": 40}
ROWS = {"smoke": 2, "normal": 2, "large": 8}


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    def side(word: str, name: str) -> Side:
        return training.side("train_overhead", word, size, folder, name=name)

    return side("ray", "Ray Train and loader"), [side("bare", "bare step")]


BENCHMARKS = [
    Benchmark(
        "train-overhead",
        "step time under Ray Train with the loader, beside the bare step on tensors in memory",
        "s per step",
        1.05,
        sides,
        equal_work(first_loss=1e-5, last_loss=1e-3),
        better="less",
    )
]


def prepared(size: Size, folder: Path, out: Path, data: str | None) -> Any:
    state = training.ready(size, folder, out, data, "tune.log_every=1", f"tune.micro_batch={ROWS[size]}")
    rows = ROWS[size]
    batches = [
        [(rows * step + number) % len(state.index) for number in range(rows)] for step in range(STEPS[size])
    ]
    return training.with_steps(state, batches)


def report(ends: list[float], losses: list[float], state: Any) -> dict[str, Any]:
    return {
        "seconds": ends[-1] - ends[0],
        "units": len(ends) - 1,
        "work": {
            "steps": len(losses),
            "rows": sum(len(batch) for step in state.steps for batch in step.micro_batches),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        },
        "notes": {"seconds": [later - sooner for sooner, later in zip(ends, ends[1:])]},
    }


def bare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from emollm.train.deepspeed import make_engine
    from emollm.train.fold import make_batch
    from emollm.train.loop import schedule
    from tests.benchmarks.train_step import supervised

    state = prepared(options.size, options.folder, scratch, options.data)
    tune = state.recipe.tune
    numbers = [step.micro_batches[0] for step in state.steps]
    with state.stream([step.micro_batches for step in state.steps]) as stream:
        batches = [make_batch(state, rows, next(stream)[0]) for rows in numbers]
    counts = [supervised(batch["labels"]) for batch in batches]
    engine = make_engine(state.model, state.recipe.deepspeed, tune, 1)
    ends, losses = [], []
    for number, batch in enumerate(batches):
        factor = schedule(number, len(batches), tune.warmup_share, tune.final_share)
        for group in engine.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        loss = engine(**batch, supervised_only=True, num_items_in_batch=counts[number]).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
        ends.append(time.perf_counter())
    return report(ends, losses, state)


def under_ray(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from dataset_build import ray_local

    # What the worker computes with: everything it needs is made here, so that it finds it.
    training.ready(options.size, options.folder, scratch / "first", options.data)
    found = scratch / "report.json"
    with ray_local.session(log_to_driver=False):
        TorchTrainer(
            train_loop_per_worker=worker,
            train_loop_config={
                "size": options.size,
                "folder": str(options.folder),
                "out": str(scratch / "model"),
                "data": options.data,
                "report": str(found),
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="overhead", storage_path=str(scratch / "ray")),
        ).fit()
    made: dict[str, Any] = json.loads(found.read_text())
    return made


def worker(config: dict[str, Any]) -> None:
    from emollm.train.checkpoint import Checkpoints
    from emollm.train.deepspeed import make_engine
    from emollm.train.loop import run_steps
    from emollm.train.ray_worker import Reports
    from emollm.train.resume import ONLY_THE_SAME

    out = Path(config["out"])
    state = prepared(config["size"], Path(config["folder"]), out, config["data"])
    engine = make_engine(state.model, state.recipe.deepspeed, state.recipe.tune, 1)
    checkpoints = Checkpoints(out / "checkpoints", "benchmark", 2, ONLY_THE_SAME)
    kept: dict[str, Any] = {"align_losses": [], "changes": [], "scores": [], "best": None, "saves": []}
    ends, losses, reports = [], [], Reports()

    def told(values: dict[str, Any]) -> None:
        reports(values)
        losses.append(values["loss"])
        ends.append(time.perf_counter())  # the checkpoint of the last step comes after its report

    run_steps(state, engine, checkpoints, 0, kept, told)
    Path(config["report"]).write_text(json.dumps(report(ends, losses, state)))


if __name__ == "__main__":
    training.main(__doc__ or "", {"ray": under_ray, "bare": bare})
