"""A checkpoint that is written while training goes on holds the state of its step, and nothing overtakes it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from emollm.config import TrainRecipe
from emollm.train.build import initial_model
from emollm.train.checkpoint import CheckpointError, Checkpoints, best_file
from emollm.train.deepspeed import ensure_process_group, make_engine, trained_state
from emollm.train.resume import METADATA, ONLY_THE_SAME

KEPT: dict[str, Any] = {"scores": [], "best": None}


@pytest.fixture
def engine(tiny_recipe: TrainRecipe) -> Iterator[Any]:
    ensure_process_group()
    model, _ = initial_model(tiny_recipe, 0)
    made = make_engine(model, tiny_recipe.deepspeed, tiny_recipe.tune, 1)
    yield made
    made.destroy()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing does not begin before this is set: a slow disk."""
    go, save = threading.Event(), torch.save

    def slow(*arguments: Any, **named: Any) -> None:
        assert go.wait(60)
        save(*arguments, **named)

    monkeypatch.setattr(torch, "save", slow)
    yield go
    go.set()


def change(engine: Any) -> None:
    """What a later step does to the state, in place."""
    for group in engine.optimizer.single_partition_of_fp32_groups:
        group.data.add_(1)
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1)


def whole(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"step-*/{METADATA}"))


def test_it_holds_the_state_of_its_step(engine: Any, held: threading.Event, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "d", 2, ONLY_THE_SAME)
    kept = {**KEPT, "scores": [1]}
    checkpoints.save(engine, 3, kept)
    before = trained_state(engine)
    change(engine)
    kept["scores"].append(2)
    checkpoints.watch()
    assert whole(tmp_path) == []
    held.set()
    checkpoints.wait()
    found = checkpoints.newest_whole()
    assert found is not None and found.step == 3 and found.kept["scores"] == [1]
    assert not torch.equal(trained_state(engine)[min(before)], before[min(before)])
    checkpoints.load(engine, found)
    assert all(torch.equal(value, before[name]) for name, value in trained_state(engine).items())


def in_a_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.3)
    return thread


def test_the_next_one_and_the_end_wait_for_it(engine: Any, held: threading.Event, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "d", 2, ONLY_THE_SAME)
    checkpoints.save(engine, 3, KEPT)
    second = in_a_thread(lambda: checkpoints.save(engine, 6, KEPT))
    assert second.is_alive() and not (tmp_path / "step-000006").exists()
    held.set()
    second.join(60)
    checkpoints.wait()
    assert whole(tmp_path) == ["step-000003", "step-000006"]


def test_an_error_of_the_writer_is_raised_by_the_loop(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "d", 2, ONLY_THE_SAME)
    checkpoints.save(engine, 3, KEPT)
    checkpoints.wait()

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.save(engine, 6, KEPT)
    with pytest.raises(CheckpointError, match="cannot be written to.*Make room"):
        for _ in range(1000):  # steps
            checkpoints.watch()
            time.sleep(0.01)
    checkpoints.leave()
    assert whole(tmp_path) == ["step-000003"] and not (tmp_path / "step-000006").exists()


def test_best_weights_saved_meanwhile_stay(engine: Any, held: threading.Event, tmp_path: Path) -> None:
    """The checkpoint of step 4 removes best weights that no checkpoint names; those of step 6 will be named by the next."""
    checkpoints = Checkpoints(tmp_path, "d", 2, ONLY_THE_SAME)
    for step in (2, 4):
        checkpoints.save_best({"w": torch.ones(3)}, step)
    checkpoints.save(engine, 4, {**KEPT, "best": {"file": best_file(4)}})
    checkpoints.save_best({"w": torch.zeros(3)}, 6)
    held.set()
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.glob("best-*")) == [best_file(4), best_file(6)]


def test_in_the_foreground_it_is_whole_at_once(engine: Any, tmp_path: Path) -> None:
    Checkpoints(tmp_path, "d", 2, ONLY_THE_SAME, background=False).save(engine, 3, KEPT)
    assert whole(tmp_path) == ["step-000003"]
    assert not list(tmp_path.glob("step-*/part-*"))
