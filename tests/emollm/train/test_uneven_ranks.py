"""Ranks that have no picture in a step while others have: nobody waits, and the gradients are those of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from emollm.train.metrics import read_metrics
from tests.emollm.train.small_emobench import write_emobench
from tests.emollm.train.test_loop import finish, start, weights
from tests.fixtures import tiny_mllms


@pytest.fixture(scope="module")
def mostly_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows in four are words alone."""
    folder = tmp_path_factory.mktemp("words") / "emobench"
    return write_emobench(folder, rows=16, has_media=lambda number: number % 4 in (0, 3) and number != 3)


def both(overrides: list[str], folder: Path, stage: int) -> None:
    common = [
        *overrides,
        "tune.epochs=2",
        "tune.batch_size=2",
        "tune.micro_batch=1",
        "deepspeed.bucket_size=1000",
    ]
    alone, two = folder / "alone", folder / "two"
    finish(start(1, folder / "a", [*common, f"out={alone}", "deepspeed.stage=0"]), folder / "a")
    finish(
        start(2, folder / "b", [*common, f"out={two}", f"deepspeed.stage={stage}"]), folder / "b", limit_s=200
    )
    curves = [
        [line["loss"] for line in read_metrics(str(out / "fold-0" / "log" / "metrics.jsonl"))]
        for out in (alone, two)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    ours, theirs = weights(two), weights(alone)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


@pytest.mark.parametrize("stage", [2, 3])
def test_composed(tiny_overrides: list[str], mostly_words: Path, tmp_path: Path, stage: int) -> None:
    both([*tiny_overrides, f"data={mostly_words}"], tmp_path, stage)


@pytest.mark.parametrize("family, stage", [("llava_onevision", 3), ("qwen2_5_vl", 3)])
def test_attached(
    tiny_overrides: list[str], mostly_words: Path, tmp_path: Path, family: str, stage: int
) -> None:
    tiny_mllms.write(family, tmp_path / family)
    foundation = f"foundation={{family: attached, mllm: {tmp_path / family}, max_side_px: 32}}"
    overrides = [o for o in tiny_overrides if not o.startswith("foundation.")]
    both([*overrides, f"data={mostly_words}", foundation, "tune.pack_tokens=400"], tmp_path, stage)
