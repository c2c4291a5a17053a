"""Early stopping: the rule, the scores, and what is exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from emollm.config import EarlyStopConfig, load_recipe
from emollm.data.emobench import DataError
from emollm.train.early_stop import EarlyStop, Validation
from emollm.train.loop import NonFiniteLossError, train_fold
from tests.emollm.train.ranks import Job, apart, curve, same_bits, start, weights
from tests.emollm.train.small_emobench import write_emobench


def rule(losses: list[float], **settings) -> EarlyStop:
    config = EarlyStopConfig(every_steps=1, **settings)
    return EarlyStop(config, [{"step": i + 1, "loss": x, "accuracy": -x} for i, x in enumerate(losses)])


@pytest.mark.parametrize(
    ("losses", "settings", "best_step", "stopped"),
    [
        ([3, 2, 1], {"patience": 1}, 3, False),
        ([3, 2, 2], {"patience": 1}, 2, True),
        ([3, 2, 2.5, 2.4], {"patience": 3}, 2, False),
        ([3, 2, 2.5, 2.4, 2.3], {"patience": 3}, 2, True),
        ([3, 2.95, 2.9], {"patience": 2, "min_delta": 0.2}, 1, True),
        ([3, 2.9, 2.7], {"patience": 2, "min_delta": 0.2}, 3, False),
        ([float("nan"), 2, 3], {"patience": 2}, 2, False),
        ([3, 2, 1], {"patience": 1, "metric": "accuracy"}, 3, False),
    ],
)
def test_it_stops_after_patience_scores_that_are_not_better(
    losses: list[float], settings: dict, best_step: int, stopped: bool
) -> None:
    found = rule(losses, **settings)
    assert found.best is not None and found.best["step"] == best_step and found.stopped is stopped


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 4), st.floats(0, 1))
def test_the_history_is_all_there_is_to_remember(losses: list[float], patience: int, delta: float) -> None:
    followed = rule([], patience=patience, min_delta=delta)
    for step, loss in enumerate(losses):
        followed.add({"step": step + 1, "loss": loss, "accuracy": -loss})
    anew = rule(losses, patience=patience, min_delta=delta)
    assert (anew.best, anew.stopped) == (followed.best, followed.stopped)


@pytest.fixture(scope="module")
def overrides(foundations: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """11 training and 11 validation rows, 12 steps, a score every second, a checkpoint every third."""
    folder = tmp_path_factory.mktemp("validated")
    data = write_emobench(folder / "emobench", validated=lambda number: number % 3 == 0)
    return [
        f"data={data}",
        f"foundation.vision={foundations / 'dinov2-small'}",
        f"foundation.language={foundations / 'smollm2-135m-instruct'}",
        "tune.epochs=6",
        "checkpoint.every_steps=3",
        "early_stop.every_steps=2",
        "early_stop.patience=2",
    ]


class Killed(RuntimeError):
    pass


def test_killed_and_started_again_it_stops_at_the_same_step_with_the_best_weights(
    overrides: list[str], tmp_path: Path
) -> None:
    """The loss falls by less than 0.02 after step 4."""
    recipe = load_recipe(
        "smoke",
        [*overrides, "tune.learning_rate=0.05", "tune.log_every=1", "early_stop.min_delta=0.02"],
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kept = tmp_path / "kept.safetensors"

    def keep_best(values: dict) -> None:
        if found := sorted((whole / "checkpoints" / "fold-0").glob("best-*.safetensors")):
            shutil.copy(found[-1], kept)

    expected = train_fold(recipe.model_copy(update={"out": str(whole)}), 0, "d", report=keep_best)
    stop = expected["early_stop"]
    assert stop["stopped_after_step"] == expected["steps"] == stop["best"]["step"] + 4 < 12
    assert expected["planned_steps"] == 12 and expected["samples_seen"] < 6 * expected["rows"]
    best = load_file(kept)
    assert all(value.equal(best[name]) for name, value in weights(whole).items())
    scored = {line["step"]: line["val_loss"] for line in curve(whole) if "val_loss" in line}
    assert scored == {score["step"]: score["loss"] for score in stop["history"]}

    def kill(values: dict) -> None:
        if values["step"] == expected["steps"] - 1:
            raise Killed

    recipe = recipe.model_copy(update={"out": str(killed)})
    with pytest.raises(Killed):
        train_fold(recipe, 0, "d", report=kill)
    found = train_fold(recipe, 0, "d")
    assert found["early_stop"] == stop
    assert same_bits(whole, killed)
    assert not (killed / "checkpoints" / "fold-0").exists()


def test_scores_are_the_same_bits_for_any_number_of_workers_and_any_stage(
    overrides: list[str], tmp_path: Path
) -> None:
    """With weights that do not move, no score after the first is better: it stops after the third."""
    still = [*overrides, "tune.learning_rate=1e-30", "tune.projector_learning_rate=1e-30"]
    alone = train_fold(load_recipe("smoke", [*still, f"out={tmp_path / 'one'}"]), 0, "d")["early_stop"]
    assert alone["stopped_after_step"] == 6 and alone["best"]["step"] == 2
    jobs = [
        Job([*still, f"out={tmp_path / f'zero-{stage}'}", f"deepspeed.stage={stage}"]) for stage in (2, 3)
    ]
    for found in start(3, tmp_path / "log", *jobs).finish():
        assert json.loads(json.dumps(found["early_stop"])) == alone
    assert apart(tmp_path / "zero-3", tmp_path / "one") < 1e-30


def test_a_training_without_a_finite_score_exports_nothing(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = {"loss": float("nan"), "accuracy": 0.0}
    monkeypatch.setattr(Validation, "score", lambda self, engine: nan)
    with pytest.raises(NonFiniteLossError, match="fold 0: none of the 2 validation scores is finite"):
        train_fold(load_recipe("smoke", [*overrides, f"out={tmp_path}"]), 0, "d")
    assert not (tmp_path / "fold-0/fold.json").exists()


def test_without_validation_rows_it_is_refused_with_the_remedy(tiny_overrides: list[str]) -> None:
    recipe = load_recipe("smoke", [*tiny_overrides, "early_stop={every_steps: 2}"])
    with pytest.raises(DataError, match=r"early_stop: .*no validation rows.*splits.fold_val=true.*null"):
        train_fold(recipe, 0, "d")
