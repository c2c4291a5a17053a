"""Whatever ends a training, it goes on when it is started again, and ends with the bits of one that nothing disturbed."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from emollm.config import load_recipe
from emollm.train.checkpoint import CheckpointError, Checkpoints
from emollm.train.loop import train_fold
from emollm.train.resume import METADATA, ONLY_THE_SAME
from tests.emollm.train.conftest import EVERY, STEPS
from tests.emollm.train.ranks import Fault, Group, Job, curve, same_bits, start, wait_for

KILLED = -9


def test_killed_in_every_way_it_ends_with_the_same_bits(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    folder = out / "checkpoints" / "fold-0"

    def again(fault: str = "", rank: int = 0, step: int = 0) -> Group:
        job = Job([*twenty_steps, f"out={out}", "checkpoint.keep=5"])
        return start(2, log, job, fault=Fault(fault, rank, step, out) if fault else None)

    def whole() -> list[str]:
        return sorted(path.parent.name for path in folder.glob(f"step-*/{METADATA}"))

    # One worker; the other must not go on alone.
    group = again()
    wait_for(lambda: whole() == ["step-000004"], group)
    group.kill(1)
    codes = group.end()
    assert codes[1] == KILLED and codes[0] not in (0, KILLED)
    assert not (out / "fold-0" / "fold.json").exists()

    # All workers.
    group = again()
    wait_for(lambda: "step-000008" in whole(), group)
    group.kill(0, 1)
    assert group.end() == [KILLED, KILLED]
    kept = ["step-000004", "step-000008"]
    for path in folder.glob("step-*"):  # it may have gone on between the look and the kill
        if path.name not in kept:
            shutil.rmtree(path)
    assert whole() == kept

    # In the middle of writing a part, and when all parts are there but the metadata.
    for fault, rank in (("write", 1), ("metadata", 0)):
        group = again(fault, rank, 12)
        assert group.end()[rank] == KILLED
        # Training goes on while it is written, but not beyond the next checkpoint, which waits for it.
        assert whole() == kept and 12 <= len(curve(out)) <= 16
    assert (folder / "step-000012").is_dir(), "the parts that rank 0 left, which could not clean up"

    # No room for the next checkpoint: nothing half is left behind, nothing old is gone.
    group = again("full", 0, 12)
    assert group.end()[0] == 1
    said = group.log()
    assert "checkpoint step-000012 is not used: it was not finished; falling back" in said
    assert f"CheckpointError: {folder}: cannot be written to" in said and "Make room" in said
    assert not (folder / "step-000012").exists() and whole() == kept

    # The newest is damaged.
    victim = next((folder / "step-000008").glob("*_optim_states.pt"))
    victim.write_bytes(victim.read_bytes()[:100])
    (found,) = again().finish()
    assert f"checkpoint step-000008 is not used: {victim.name} is damaged" in again_log(log)
    assert "goes on at step 5 of 20" in again_log(log)
    assert same_bits(out, undisturbed / "two")
    assert [line["step"] for line in curve(out)] == list(range(1, STEPS + 1)), "every step has one line"
    assert found["samples_seen"] == 5 * found["rows"]
    # The checkpoint that it went on from could not say how long it took.
    assert found["checkpoints"]["saved"] == STEPS // EVERY - 1
    assert curve(out)[2 * EVERY]["checkpoint_seconds"] > 0
    assert not folder.exists(), "checkpoints go once the model is exported"


def again_log(folder: Path) -> str:
    return (folder / "rank-0.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_stage_ends_with_the_same_bits(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path, stage: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    overrides = [*twenty_steps, f"deepspeed.stage={stage}"]
    start(2, tmp_path / "a", Job([*overrides, f"out={whole}"])).finish()
    job = Job([*overrides, f"out={killed}"])
    start(2, tmp_path / "b", job, fault=Fault("write", 0, 12, killed)).end()
    start(2, tmp_path / "b", job).finish()
    assert "goes on at step 9" in again_log(tmp_path / "b")
    assert same_bits(whole, killed)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 600 KB. Mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # a failed run may keep a log open


def test_no_room_for_weights_is_told_as_such(tmp_path: Path) -> None:
    """safetensors, which writes the best weights and the exported model, has an exception of its own for it."""
    checkpoints = Checkpoints(tmp_path, "test-digest", 2, ONLY_THE_SAME)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written to.*Make room"):
            checkpoints.save_best({"weight": torch.zeros(10_000)}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_file_system(twenty_steps: list[str], tmp_path: Path, small_disk: Path) -> None:
    """The same with a disk that really is full, from whatever is written first, and with room again."""
    recipe = load_recipe("smoke", [*twenty_steps, f"out={small_disk / 'out'}"])
    with pytest.raises(CheckpointError, match="cannot be written to.*Make room") as told:
        train_fold(recipe, 0, "test-digest")
    print(told.value)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    train_fold(recipe, 0, "test-digest")
    undisturbed_alone = tmp_path / "alone"
    train_fold(recipe.model_copy(update={"out": str(undisturbed_alone)}), 0, "test-digest")
    assert same_bits(small_disk / "out", undisturbed_alone)
