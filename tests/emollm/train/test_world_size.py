"""How many workers train, and how ZeRO shares the work among them, changes neither what is learned nor where it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from emollm.config import load_recipe
from emollm.train.checkpoint import CheckpointError
from emollm.train.loop import train_fold
from emollm.train.resume import METADATA, Resume
from tests.emollm.train.conftest import EVERY, STEPS
from tests.emollm.train.ranks import Fault, Job, apart, curve, start


class Stopped(RuntimeError):
    pass


def stop_after(step: int):
    def report(values: dict) -> None:
        if values["step"] == step:
            raise Stopped

    return report


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in curve(out)]


def test_one_two_and_four_workers_learn_the_same(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Four ranks share batches of five, one row each, and leave three of them without rows in every fourth."""
    alone, four = tmp_path / "alone", tmp_path / "four"
    recipe = load_recipe("smoke", [*twenty_steps, f"out={alone}", "deepspeed.stage=0", "tune.packing=false"])
    one = train_fold(recipe, 0, "alone")
    (most,) = start(
        4, tmp_path / "log", Job([*twenty_steps, f"out={four}", "deepspeed.stage=3", "tune.micro_batch=1"])
    ).finish()
    assert one["samples_seen"] == most["samples_seen"] == 5 * one["rows"]
    assert most["world_size"] == 4
    for other in (undisturbed / "two", four):
        assert losses(other) == pytest.approx(losses(alone), abs=1e-5)
        assert apart(other, alone) < 1e-5
    assert losses(alone)[-1] < losses(alone)[0], "it learns"


def test_zero_1_2_and_3_give_the_same_weights_after_20_steps(undisturbed: Path) -> None:
    assert apart(undisturbed / "zero-1", undisturbed / "two") == 0
    assert apart(undisturbed / "zero-3", undisturbed / "two") < 1e-5


def test_another_number_of_workers_goes_on_where_the_first_was_stopped(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    fewer, more = tmp_path / "fewer", tmp_path / "more"
    with pytest.raises(Stopped):
        train_fold(
            load_recipe("smoke", [*twenty_steps, f"out={more}", "tune.log_every=1"]),
            0,
            "test-digest",
            report=stop_after(3 * EVERY + 1),
        )
    folder = more / "checkpoints" / "fold-0"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000008", "step-000012"], (
        "rotation keeps two"
    )
    assert (folder / "latest").read_text() == "step-000012\n"
    group = start(
        2,
        tmp_path / "log",
        Job([*twenty_steps, f"out={more}"], other_world_size=True),
        Job([*twenty_steps, f"out={fewer}"]),
        fault=Fault("metadata", 0, 3 * EVERY, fewer),
    )
    assert group.end()[0] == -9
    assert f"goes on at step {3 * EVERY + 1} of {STEPS}" in group.log()
    recipe = load_recipe("smoke", [*twenty_steps, f"out={fewer}"])
    with pytest.raises(CheckpointError, match=r"by 2 workers, this run has 1; .*--allow-world-size-change"):
        train_fold(recipe, 0, "test-digest")
    found = train_fold(recipe, 0, "test-digest", resume=Resume(other_world_size=True))
    assert found["changes"] == [{"after_step": 2 * EVERY, "world_size": [2, 1]}]
    assert found["samples_seen"] == 5 * found["rows"]
    for out in (fewer, more):
        assert [line["step"] for line in curve(out)] == list(range(1, STEPS + 1))
        assert losses(out) == pytest.approx(losses(undisturbed / "two"), abs=1e-5)
        assert apart(out, undisturbed / "two") < 1e-5
        assert not (out / "checkpoints" / "fold-0").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "before", "after"), [(0, 2, 3), (1, 2, 3), (2, 2, 3), (3, 2, 3), (3, 2, 1), (3, 1, 2)]
)
def test_every_stage_goes_on_with_another_number_of_workers(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path, stage: int, before: int, after: int
) -> None:
    out = tmp_path / "out"
    overrides = [*twenty_steps, f"out={out}", f"deepspeed.stage={stage}"]
    start(before, tmp_path / "a", Job(overrides), fault=Fault("metadata", 0, 3 * EVERY, out)).end()
    assert sorted(out.glob(f"checkpoints/fold-0/step-*/{METADATA}"))
    (found,) = start(after, tmp_path / "b", Job(overrides, other_world_size=True)).finish()
    assert found["changes"] == [{"after_step": 2 * EVERY, "world_size": [before, after]}]
    print(stage, before, after, apart(out, undisturbed / "two"))
    assert losses(out) == pytest.approx(losses(undisturbed / "two"), abs=1e-5)
    assert apart(out, undisturbed / "two") < 1e-5
