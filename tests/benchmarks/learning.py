"""Does it learn, and what does each part add: MVP's perspectives and the prompt style, several seeds each.

    make quickstart                                  # or at least its EmoBench: python -m dataset_build build quickstart
    python tests/benchmarks/learning.py              # trains and scores what is not there yet, then writes the table

Every run is the quickstart's recipe with one thing changed, trained by one worker and scored in a folder of its own; a run
that is there is not done again. Loop and scorer are called without Ray, in this one process: the frozen vision tower then
reads each picture once for all runs. A sample's score is its mean over the seeds; intervals are 95 % bootstraps over the same
clusters (emoji, gestures, texts) as in `emollm evaluate`, paired with the full model on the same samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emollm.config import TrainRecipe, load_recipe
from emollm.evaluate import statistics
from emollm.evaluate.results import evaluate
from emollm.train.resume import Resume
from emollm.train.run import train

FULL = "MVP, direct"
VARIANTS = {
    FULL: [],
    "without content and relation": ["mvp.content=false", "mvp.relation=false"],
    "MVP, emoprompt": ["prompt=emoprompt"],
    "without content": ["mvp.content=false"],
    "without relation": ["mvp.relation=false"],
}
DRAWS = 10_000


def run_folder(out: Path, variant: str, seed: int) -> Path:
    return out / variant.replace(", ", "-").replace(" ", "-").lower() / f"seed-{seed}"


def without_ray(cache_gib: float) -> None:
    """Let the loop and the scorer run in this process."""
    from emollm.data.features import FeatureStore
    from emollm.evaluate import run as scoring
    from emollm.train import loop, ray_worker

    features = FeatureStore(cache_gib)

    def train_here(recipe: TrainRecipe, inputs_digest: str, folds: Sequence[int], resume: Resume) -> None:
        for fold in folds:
            loop.train_fold(recipe, fold, inputs_digest, features=features, resume=resume)

    def score_here(shards: Sequence[scoring.Shard], job: scoring.Job, workers: int) -> Iterator[int]:
        scorer = scoring.ShardScorer(job)
        for shard in sorted(shards, key=lambda shard: shard.model):
            scorer({"shard": [json.dumps(shard.to_json())]})
            yield len(shard.questions)

    ray_worker.train_under_ray = train_here
    scoring._on_ray = score_here


def run(folder: Path, variant: str, seed: int, folds: str, data: str) -> None:
    """Train and score one variant with one seed in `folder`, unless it is there."""
    if (folder / "evaluation" / "results.json").exists():
        return
    started = time.monotonic()
    settings = [
        *VARIANTS[variant],
        f"seed={seed}",
        f"folds={folds}",
        f"out={folder / 'model'}",
        f"data={data}",
        "workers.count=1",
        "evaluate.baselines=[majority]",
        "evaluate.linear_probe=false",
    ]
    recipe = load_recipe("quickstart", settings)
    train(recipe)
    evaluate(recipe.out, data, str(folder / "evaluation"), recipe.evaluate)
    (folder / "seconds.json").write_text(json.dumps(time.monotonic() - started))


def scores(folders: list[Path]) -> dict[str, dict[str, tuple[float, str]]]:
    """sub-task → uid → (share of the seeds that answered right, cluster)."""
    found: dict[str, dict[str, list[Any]]] = {}
    for folder in folders:
        columns = ["uid", "sub_task", "correct", "group"]
        for row in pq.read_table(folder / "evaluation" / "samples.parquet", columns=columns).to_pylist():
            found.setdefault(row["sub_task"], {}).setdefault(row["uid"], [row["group"]]).append(
                row["correct"]
            )
    for rows in found.values():
        for uid, (_, *answers) in rows.items():
            if len(answers) != len(folders):
                raise SystemExit(f"{uid} was answered by {len(answers)} of {len(folders)} runs; start again")
    return {
        task: {uid: (float(np.mean(answers)), group) for uid, (group, *answers) in rows.items()}
        for task, rows in found.items()
    }


def interval(values: list[float], groups: list[str]) -> statistics.Interval:
    return statistics.bootstrap_interval(values, statistics.cluster_ids(groups), DRAWS, seed=0)


def table(out: Path, variants: list[str], seeds: list[int]) -> str:
    """Markdown: accuracy of each variant, its range over the seeds, and the paired difference to the full model."""
    full = scores([run_folder(out, FULL, seed) for seed in seeds])
    lines = [
        "| sub-task | n | variant | accuracy, mean of the seeds | lowest and highest seed | minus the full model |",
        "|---|---|---|---|---|---|",
    ]
    for task in full:
        for variant in variants:
            folders = [run_folder(out, variant, seed) for seed in seeds]
            rows = scores(folders)[task]
            uids = sorted(rows)
            values, groups = [rows[uid][0] for uid in uids], [rows[uid][1] for uid in uids]
            low, high = interval(values, groups)
            single = [np.mean([value for value, _ in scores([folder])[task].values()]) for folder in folders]
            gain = [rows[uid][0] - full[task][uid][0] for uid in uids]
            difference = (
                ""
                if variant == FULL
                else f"{np.mean(gain):+.3f} [{', '.join(f'{x:+.3f}' for x in interval(gain, groups))}]"
            )
            lines.append(
                f"| {task} | {len(uids)} | {variant} | {np.mean(values):.3f} [{low:.3f}, {high:.3f}] "
                f"| {min(single):.3f} to {max(single):.3f} | {difference} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--data", default="runs/quickstart/emobench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", default="all", help="protocols to train, as in a recipe: all, or [0, 1]")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    without_ray(load_recipe("quickstart", []).tune.cache_gib)
    for seed in chosen.seeds:
        for variant in chosen.variants:
            folder = run_folder(out, variant, seed)
            run(folder, variant, seed, chosen.folds, chosen.data)
            print(
                f"{variant}, seed {seed}: done in {json.loads((folder / 'seconds.json').read_text()):.0f} s",
                flush=True,
            )
    text = table(out, chosen.variants, chosen.seeds)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
