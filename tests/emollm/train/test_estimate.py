"""Plans: every shipped recipe is planned without its weights, and the arithmetic behind the numbers holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emollm.config import RECIPE_FOLDER, TrainRecipe, load_recipe
from emollm.model.published import PUBLISHED
from emollm.train import estimate
from emollm.train.build import initial_model

LARGE = sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml") if load_recipe(path.stem).workers.gpus)
# Parameters of the published foundations, in billions, as their pages state them.
PUBLISHED_SIZE = {
    "composed_vicuna7b_clip": 7.1,
    "llava15_7b_lora": 7.06,
    "qwen25vl_7b_full": 8.29,
    "qwen25vl_7b_lora": 8.29,
    "smolvlm_2b_lora": 2.25,
}


@pytest.mark.parametrize("name", LARGE)
def test_every_large_recipe_is_planned_without_weights(name: str):
    recipe = load_recipe(name)
    size = estimate.count(recipe)
    assert size.frozen + (0 if recipe.lora else size.trained) == pytest.approx(
        PUBLISHED_SIZE[name] * 1e9, rel=0.02
    )
    assert 0 < size.mvp < 0.02 * size.total
    text = estimate.describe(recipe, size)
    for part in ("parameters:", "memory per worker: about", "GPUs of 80 GiB: at least", "ZeRO"):
        assert part in text
    named = {
        recipe.foundation.vision,
        recipe.foundation.language,
        recipe.foundation.audio,
        recipe.foundation.mllm,
    }
    assert named - {"", None} <= set(PUBLISHED), "planned without asking the hub"


def test_a_full_7b_tuning_is_planned_on_the_command_line_and_needs_several_gpus():
    run = subprocess.run(
        [sys.executable, "-m", "emollm", "train", "qwen25vl_7b_full", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert run.returncode == 0, run.stderr
    assert "GPUs of 80 GiB: at least 2 (ZeRO 2)" in run.stdout
    assert "7.62 B trained" in run.stdout


def test_counted_parameters_are_those_of_the_model(tiny_recipe: TrainRecipe):
    model, _ = initial_model(tiny_recipe, 0)
    size = estimate.count(tiny_recipe)
    assert size.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert size.mvp == sum(p.numel() for p in model.projector.parameters())


def test_zero_stages_divide_what_they_say(tiny_recipe: TrainRecipe):
    size = estimate.Size(trained=4 << 30, frozen=12 << 30, mvp=0, layers=2, hidden=4)
    by_stage = [estimate.memory(tiny_recipe, size, stage, workers=4) for stage in range(4)]
    assert [round(m.weights) for m in by_stage] == [64, 64, 64, 16]
    assert [round(m.gradients) for m in by_stage] == [16, 16, 4, 4]
    assert [round(m.optimizer) for m in by_stage] == [32, 12, 12, 12]
    assert estimate.flops_per_token(size) == 4 * (16 << 30) + 2 * (4 << 30)
