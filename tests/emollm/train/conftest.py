"""Trainings of 20 steps that many tests compare theirs with, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emollm.train import ranks

EVERY, STEPS = 4, 20


@pytest.fixture(scope="session")
def twenty_steps(foundations: Path, small_emobench: Path) -> list[str]:
    """Overrides: 16 rows in batches of 5, so every fourth batch has one row; a checkpoint every 4 steps."""
    return [
        f"data={small_emobench}",
        f"foundation.vision={foundations / 'dinov2-small'}",
        f"foundation.language={foundations / 'smollm2-135m-instruct'}",
        "tune.epochs=5",
        "tune.batch_size=5",
        f"checkpoint.every_steps={EVERY}",
        "deepspeed.stage=2",
    ]


@pytest.fixture(scope="session")
def undisturbed(twenty_steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in `two` of two ranks under ZeRO 2, in `zero-1` and `zero-3` the same under ZeRO 1 and 3."""
    folder = tmp_path_factory.mktemp("undisturbed")
    stages = {"two": 2, "zero-1": 1, "zero-3": 3}
    jobs = [
        ranks.Job([*twenty_steps, f"out={folder / name}", f"deepspeed.stage={stage}"])
        for name, stage in stages.items()
    ]
    found = ranks.start(2, folder / "log", *jobs).finish()
    assert all(one["steps"] == STEPS and one["samples_seen"] == 5 * one["rows"] for one in found)
    assert not list((folder / "log" / "cold-extensions").rglob("*.so")), "DeepSpeed compiled something"
    return folder
