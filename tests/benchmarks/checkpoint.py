"""checkpoint: seconds that training stands still for a checkpoint, written in the background and not.

    python -m tests.benchmarks.checkpoint background|blocking

The same training of the quickstart's model (LoRA of rank 64, so that a checkpoint has a quarter of a gigabyte), two rows a
step, a checkpoint every few steps, through `emollm.train.loop.run_steps`. `seconds` is what the loop itself says that it
stood still; `notes.whole_s` is the whole loop and `notes.steps_s` its steps, so that work which only moved
elsewhere is seen: where training computes on all cores, the writer takes its time from the steps.

Equal work: number and size of the checkpoints, and the digest of every tensor in the last one but one.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import training
from tests.benchmarks.harness import Benchmark, Side, Size

EVERY, SAVES = 4, 3
SETTINGS = {
    "smoke": [],
    "normal": ["lora={rank: 64, alpha: 128}"],
    "large": ["lora={rank: 256, alpha: 512}"],
}


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    def side(word: str) -> Side:
        return training.side("checkpoint", word, size, folder)

    return side("background"), [side("blocking")]


BENCHMARKS = [
    Benchmark(
        "checkpoint",
        "seconds that training stands still for a checkpoint: written in the background, and not",
        "s per checkpoint",
        0.3,
        sides,
        better="less",
    )
]


def run(options: argparse.Namespace, scratch: Path, background: bool) -> dict[str, Any]:
    from emollm.train.checkpoint import Checkpoints
    from emollm.train.deepspeed import make_engine
    from emollm.train.loop import run_steps
    from emollm.train.metrics import read_metrics
    from emollm.train.resume import ONLY_THE_SAME

    more = [*SETTINGS[options.size], f"checkpoint.every_steps={EVERY}"]
    state = training.ready(options.size, options.folder, scratch, options.data, *more)
    # After the last checkpoint that counts as many steps as between two: it is written while they run.
    batches = [
        [(2 * step) % len(state.index), (2 * step + 1) % len(state.index)]
        for step in range(EVERY * (SAVES + 1))
    ]
    state = training.with_steps(state, batches)
    engine = make_engine(state.model, state.recipe.deepspeed, state.recipe.tune, 1)
    checkpoints = Checkpoints(scratch / "checkpoints", "benchmark", 2, ONLY_THE_SAME, background)
    kept: dict[str, Any] = {"align_losses": [], "changes": [], "scores": [], "best": None, "saves": []}
    started = time.perf_counter()
    run_steps(state, engine, checkpoints, 0, kept, None)
    whole_s = time.perf_counter() - started
    stood = kept["saves"][:SAVES]  # the one at the end has no steps behind it
    steps = [line["seconds"] for line in read_metrics(f"{state.recipe.out}/fold-0/log/metrics.jsonl")]
    last = scratch / "checkpoints" / f"step-{EVERY * SAVES:06d}"
    return {
        "seconds": sum(stood),
        "units": SAVES,
        "work": {"checkpoints": len(kept["saves"]), **contents(last)},
        "notes": {
            "stood_still_s": stood,
            "at_the_end_s": kept["saves"][-1],
            "whole_s": whole_s,
            "steps_s": sum(steps),
        },
    }


def contents(folder: Path) -> dict[str, Any]:
    """Bytes of a checkpoint's tensors and the digest over all of them, in the order of their names."""
    import torch

    digest, size = hashlib.sha256(), 0

    def take(name: str, value: Any) -> None:
        nonlocal size
        if isinstance(value, torch.Tensor):
            data = value.detach().contiguous().view(torch.uint8).numpy() if value.dim() else value.numpy()
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(data.tobytes())
            size += data.nbytes
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                take(f"{name}/{key}", value[key])
        elif isinstance(value, list | tuple):
            for number, one in enumerate(value):
                take(f"{name}/{number}", one)

    for path in sorted(folder.glob("*.pt")):
        take(path.name, torch.load(path, map_location="cpu", weights_only=False))  # written a moment ago
    return {"tensor_bytes": size, "tensors": digest.hexdigest()[:16]}


if __name__ == "__main__":
    training.main(
        __doc__ or "",
        {
            "background": lambda options, scratch: run(options, scratch, True),
            "blocking": lambda options, scratch: run(options, scratch, False),
        },
    )
