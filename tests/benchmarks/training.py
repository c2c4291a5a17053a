"""What the benchmarks of training share: models, data, and a fold ready to train.

At the normal size the model is the quickstart's (DINOv2-S, MVP, SmolLM2-135M with LoRA) over the mixture of the shipped
recipe `emobench`; the smoke size takes tiny random models. The command's last line is the report for the harness.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks import harness, mixture
from tests.benchmarks.harness import Side, Size

MODELS = harness.PROJECT / ".local" / "models"
POOL_ROWS = 400


def overrides(size: Size, folder: Path, data: Path | str) -> tuple[str, list[str]]:
    """A recipe's name and what is set in it."""
    common = [f"data={data}", "align.steps=0", "workers.threads=1", "deepspeed.stage=2"]
    if size != "smoke":
        return "quickstart", [
            *common,
            f"foundation.vision={MODELS / 'dinov2-small'}",
            f"foundation.language={MODELS / 'smollm2-135m-instruct'}",
            "mix={}",
        ]
    from tests.fixtures.tiny_models import write_tiny_models

    tiny = folder / "models"
    if not (tiny / "smollm2-135m-instruct" / "config.json").exists():
        write_tiny_models(tiny)
        config = tiny / "smollm2-135m-instruct" / "config.json"  # its small vocabulary makes long sequences
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    return "smoke", [
        *common,
        f"foundation.vision={tiny / 'dinov2-small'}",
        f"foundation.language={tiny / 'smollm2-135m-instruct'}",
        "tune.micro_batch=8",
        "tune.pack_tokens=2048",
    ]


def ready(size: Size, folder: Path, out: Path, data: str | None, *more: str) -> Any:
    """A fold of the recipe, its pictures looked at: what `train_fold` has before its first step."""
    import torch

    from emollm.config import load_recipe
    from emollm.data.features import FeatureStore
    from emollm.train.deepspeed import ensure_process_group
    from emollm.train.fold import look_at_pictures, prepare

    source = data or mixture.write(folder, POOL_ROWS if size != "smoke" else 64)
    name, settings = overrides(size, folder, source)
    recipe = load_recipe(name, [*settings, f"out={out}", *more])
    rank, world = ensure_process_group()
    torch.set_num_threads(recipe.workers.threads)
    state = prepare(recipe, 0, rank, world, FeatureStore(recipe.tune.cache_gib))
    look_at_pictures(state)
    state.model.train()
    return state


def grouped(lengths: Sequence[int], batch: int, steps: int) -> list[list[int]]:
    """`steps` batches of rows of like length, as sorting them all gives, that stand for all rows.

    Of many random choices the one whose rows come nearest to all rows in mean length and in the share that padding to
    the longest would leave in batches of `shuffled` order.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    together = [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]
    rng = random.Random(0)
    wanted_fill = fmean(_fill(lengths, rng.sample(order, batch)) for _ in range(300))
    wanted_mean = fmean(lengths)

    def distance(groups: list[list[int]]) -> float:
        rows = [row for group in groups for row in group]
        fill = fmean(_fill(lengths, one) for one in shuffled(groups))
        return abs(fill / wanted_fill - 1) + abs(fmean(lengths[row] for row in rows) / wanted_mean - 1)

    return min((rng.sample(together, min(steps, len(together))) for _ in range(500)), key=distance)


def shuffled(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same rows in random batches of the same size."""
    rows, batch = [row for group in groups for row in group], len(groups[0])
    random.Random(1).shuffle(rows)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def _fill(lengths: Sequence[int], rows: Sequence[int]) -> float:
    """The share of a batch padded to its longest row that is not padding."""
    return sum(lengths[row] for row in rows) / (len(rows) * max(lengths[row] for row in rows))


def with_steps(state: Any, batches: Sequence[Sequence[int]]) -> Any:
    """The fold with these batches as its steps."""
    from emollm.data.plan import Step

    return replace(state, steps=[Step(0, (tuple(batch),)) for batch in batches])


def side(
    module: str, word: str, size: Size, folder: Path, *more: str, name: str | None = None, models: bool = True
) -> Side:
    """The command of a side. Raises BenchmarkError where it needs `models` that are not there."""
    if models and size != "smoke" and not (MODELS / "smollm2-135m-instruct").is_dir():
        raise harness.BenchmarkError(
            f"{MODELS} does not hold the quickstart's models: make quickstart fetches them"
        )
    argv = [sys.executable, "-m", f"tests.benchmarks.{module}", word, "--size", size, "--folder", str(folder)]
    return Side(name or word, [*argv, *more], env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})


def main(
    description: str, ways: dict[str, Callable[..., dict[str, Any]]], *options: tuple[str, dict[str, Any]]
) -> None:
    """The command of a side: calls `ways[word](options, scratch folder)` and prints its report as the last line."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("way", choices=list(ways))
    parser.add_argument("--size", choices=("smoke", "normal", "large"), default="normal")
    parser.add_argument("--folder", type=Path, default=harness.CACHE / "training")
    parser.add_argument("--data", help="a built EmoBench in place of the mixture")
    for flag, named in options:
        parser.add_argument(flag, **named)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="emollm-bench-") as scratch:
        report = ways[chosen.way](chosen, Path(scratch))
    print(json.dumps(report), flush=True)
