"""Ranks that have no picture in a step while others have: nobody waits, and the gradients are those of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from emollm.config import load_recipe
from emollm.train.loop import train_fold
from tests.emollm.train.ranks import Job, apart, curve, start
from tests.emollm.train.small_emobench import write_emobench
from tests.fixtures import tiny_mllms

RUNS = {
    "composed-2": ("composed", 2),
    "composed-3": ("composed", 3),
    "llava_onevision-3": ("llava_onevision", 3),
    "qwen2_5_vl-3": ("qwen2_5_vl", 3),
}


@pytest.fixture(scope="module")
def runs(foundations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks trained, in a folder for each run, and one rank alone, in a folder for each family."""
    folder = tmp_path_factory.mktemp("uneven")
    # Three rows in four are words alone.
    data = write_emobench(
        folder / "emobench", rows=16, has_media=lambda number: number % 4 in (0, 3) and number != 3
    )

    def overrides(family: str, out: str, stage: int) -> list[str]:
        named = [
            f"foundation.vision={foundations / 'dinov2-small'}",
            f"foundation.language={foundations / 'smollm2-135m-instruct'}",
        ]
        if family != "composed":
            if not (folder / family).exists():
                tiny_mllms.write(family, folder / family)
            mllm = f"{{family: attached, mllm: {folder / family}, max_side_px: 32}}"
            named = [f"foundation={mllm}", "tune.pack_tokens=400"]
        return [
            *named,
            f"data={data}",
            f"out={folder / out}",
            f"deepspeed.stage={stage}",
            "deepspeed.bucket_size=1000",
            "tune.epochs=2",
            "tune.batch_size=2",
            "tune.micro_batch=1",
        ]

    for family in dict.fromkeys(family for family, _ in RUNS.values()):
        train_fold(load_recipe("smoke", overrides(family, f"{family}-alone", 0)), 0, "alone")
    start(
        2,
        folder / "log",
        *(Job(overrides(family, out, stage)) for out, (family, stage) in RUNS.items()),
    ).finish()
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_learn_what_one_does(runs: Path, name: str) -> None:
    family, _ = RUNS[name]
    one, two = runs / f"{family}-alone", runs / name
    losses = [[line["loss"] for line in curve(out)] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert apart(one, two) < 1e-4
