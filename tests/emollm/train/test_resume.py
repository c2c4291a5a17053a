"""What an unfinished training in OUT may be gone on from, as the command finds it before any worker is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emollm.__main__ import main
from emollm.config import load_recipe, train_inputs
from emollm.data.emobench import read_digest
from emollm.train.resume import CheckpointError, Resume, what_to_resume

INPUTS: dict[str, Any] = {
    "recipe": {"seed": 0, "tune": {"epochs": 1, "batch_size": 8}, "early_stop": None},
    "data": "d" * 64,
    "code": {"emollm": "one", "dataset_build": {"media": "x"}},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**INPUTS, **parts}


def unfinished(out: Path, world_size: int = 2, step: int = 30) -> Path:
    folder = out / "checkpoints" / "fold-0" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"world_size": world_size}))
    return out


def again(out: Path, inputs: dict[str, Any] = INPUTS, world_size: int = 2, **allowed: bool) -> Resume:
    return what_to_resume(str(out), inputs, world_size=world_size, **allowed)


def test_the_same_inputs_go_on(tmp_path: Path) -> None:
    assert again(tmp_path) == again(unfinished(tmp_path)) == Resume()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            changed(recipe={"seed": 1, "tune": {"epochs": 1, "batch_size": 4}, "early_stop": None}),
            r"recipe: seed was 0, is 1; tune.batch_size was 8, is 4\. Give the run the same recipe",
        ),
        (
            changed(recipe={**INPUTS["recipe"], "early_stop": {"every_steps": 5}}),
            r"recipe: early_stop.every_steps was None, is 5\.",
        ),
        (changed(data="e" * 64), r"data: digest was d{16}, is e{16}\. Give the run the same data"),
        (
            changed(data="e" * 64, code={**INPUTS["code"], "emollm": "two"}),
            r"data: .*; code: source files of emollm were changed\. Give the run the same data and code",
        ),
        (
            changed(code={**INPUTS["code"], "emollm": "two"}),
            r"code: source files of emollm .*--allow-code-change",
        ),
    ],
)
def test_other_inputs_are_refused_with_what_differs_and_the_remedy(
    tmp_path: Path, inputs: dict[str, Any], said: str
) -> None:
    again(unfinished(tmp_path))
    with pytest.raises(CheckpointError, match=said) as told:
        again(tmp_path, inputs)
    assert "checkpoint fold-0/step-000030" in str(told.value) and "--force" in str(told.value)
    again(tmp_path)  # and nothing was harmed


def test_other_code_may_be_allowed_and_stays_so(tmp_path: Path) -> None:
    second, third = (changed(code={**INPUTS["code"], "emollm": name}) for name in ("two", "three"))
    again(unfinished(tmp_path))
    once = again(tmp_path, second, allow_code_change=True)
    assert len(once.earlier_inputs) == 1
    assert again(tmp_path, second) == once, "without the flag, from then on"
    assert len(again(tmp_path, third, allow_code_change=True).earlier_inputs) == 2
    with pytest.raises(CheckpointError, match="data"):
        again(tmp_path, changed(data="e" * 64), allow_code_change=True)


def test_another_number_of_workers_is_refused_by_both_numbers_and_the_flag(tmp_path: Path) -> None:
    again(unfinished(tmp_path))
    with pytest.raises(
        CheckpointError,
        match=r"step-000030 was written by 2 workers, this run has 3; .*workers.count=2.*"
        r"--allow-world-size-change",
    ):
        again(tmp_path, world_size=3)
    assert again(tmp_path, world_size=3, allow_world_size_change=True).other_world_size


def test_where_nothing_was_trained_other_inputs_are_taken(tmp_path: Path) -> None:
    again(tmp_path)
    assert again(tmp_path, changed(data="e" * 64), world_size=5) == Resume()


def test_the_command_refuses_before_it_starts_workers(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = load_recipe("smoke", tiny_overrides)
    out = unfinished(Path(recipe.out))
    again(out, train_inputs(recipe, read_digest(recipe.data)))
    words = [word for override in tiny_overrides for word in ("--set", override)]
    assert main(["train", "smoke", *words, "--set", "tune.epochs=7"]) == 1
    said = capsys.readouterr().err
    assert "recipe: tune.epochs was 1, is 7" in said and "Traceback" not in said
    assert main(["train", "smoke", *words, "--set", "workers.count=3"]) == 1
    assert "by 2 workers, this run has 3" in capsys.readouterr().err


def test_how_a_training_runs_is_no_part_of_what_it_learns(tiny_overrides: list[str]) -> None:
    def inputs(*more: str) -> dict[str, Any]:
        return train_inputs(load_recipe("smoke", [*tiny_overrides, *more]), "d")

    how = ["workers.count=4", "workers.memory_gib=9", "checkpoint.every_steps=1", "tune.log_every=1"]
    assert inputs(*how) == inputs()
    assert inputs("workers.threads=2") != inputs() and inputs("early_stop={every_steps: 3}") != inputs()
