"""Plans: every shipped recipe is planned without its weights, and the arithmetic behind the numbers holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from emollm.config import RECIPE_FOLDER, FoundationConfig, TrainRecipe, load_recipe
from emollm.data.collate import collate, encode_sample
from emollm.model.published import PUBLISHED
from emollm.train import cost, estimate
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import sample
from tests.fixtures import tiny_mllms

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
    made = estimate.plan(recipe)
    size = made.size
    assert size.frozen + (0 if recipe.lora else size.trained) == pytest.approx(
        PUBLISHED_SIZE[name] * 1e9, rel=0.02
    )
    assert 0 < size.mvp < 0.02 * size.total and size.mvp < size.projector
    # MVP is to be cheap: what it adds to the way from pixels to visual tokens, and to a training step.
    assert 0 < made.forward.mvp < 0.03 * (made.forward.tower + made.forward.projector)
    assert 0 < made.training.mvp < 0.005 * made.training.total
    text = estimate.describe(recipe, made)
    for part in ("parameters:", "visual tokens), forward: tower", "a picture are kept for the backward pass"):
        assert part in text
    for part in ("memory per worker: about", "GPUs of 80 GiB: at least", "ZeRO"):
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
    size = estimate.plan(tiny_recipe).size
    assert size.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert size.mvp + size.projector == sum(p.numel() for p in model.projector.parameters())
    assert size.projector == sum(p.numel() for p in model.projector.scene.parameters())


def test_zero_stages_divide_what_they_say(tiny_recipe: TrainRecipe):
    size = estimate.Size(trained=4 << 30, frozen=12 << 30, mvp=0, projector=0, layers=2, hidden=4)
    by_stage = [estimate.memory(tiny_recipe, size, stage, workers=4) for stage in range(4)]
    assert [round(m.weights) for m in by_stage] == [64, 64, 64, 16]
    assert [round(m.gradients) for m in by_stage] == [16, 16, 4, 4]
    assert [round(m.optimizer) for m in by_stage] == [32, 12, 12, 12]


# --- arithmetic ------------------------------------------------------------------------------------------------------

TOWERS = ("dinov2-small", "clip_vision_model", "siglip_vision_model")


def tiny(kind: str, recipe: TrainRecipe, folder: Path) -> TrainRecipe:
    """A recipe over random foundations of a kind: a vision tower of the composed family, or a multimodal family."""
    if kind in tiny_mllms.MLLMS:
        tiny_mllms.write(kind, folder / kind)
        foundation = FoundationConfig(family="attached", mllm=str(folder / kind), max_side_px=32)
        return recipe.model_copy(update={"foundation": foundation})
    if kind == "dinov2-small":
        return recipe
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **tower, image_size=56, patch_size=14)
    AutoModel.from_config(config).save_pretrained(folder / kind)
    foundation = recipe.foundation.model_copy(update={"vision": str(folder / kind)})
    return recipe.model_copy(update={"foundation": foundation})


@pytest.mark.parametrize("kind", [*TOWERS, *sorted(tiny_mllms.MLLMS)])
def test_flops_are_exactly_those_that_torch_counts(
    kind: str, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    """Tower, projector, MVP and language model, each against `torch.utils.flop_counter` over a real forward."""
    recipe = tiny(kind, tiny_recipe, tmp_path)
    model, processor = initial_model(recipe, 0)
    row = encode_sample(sample(1, fold=0, split="train", label="joy"), processor, supervise=True)
    batch = collate([row], processor.pad_id)
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's fused attention: let torch write it as the matrix products that it is.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**batch, supervised_only=True)
    names = {id(module): name for name, module in model.named_modules()}

    def counted(module: torch.nn.Module) -> float:
        by_operator = counter.get_flop_counts()[f"{type(model).__name__}.{names[id(module)]}"]
        return float(sum(by_operator.values()))

    projector, scene = counted(model.projector), counted(model.projector.scene)
    tower = counted(cost.tower_of(model)) - (
        projector if kind == "qwen2_5_vl" else 0
    )  # MVP sits in that tower
    language = counted(model.get_decoder()) + counted(model.get_output_embeddings())
    supervised = sum(label != -100 for label in row.labels[1:])
    made = cost.forward(model, recipe)
    assert (made.tower, made.projector, made.mvp) == (tower, scene, projector - scene)
    assert cost.language_flops(model, len(row.input_ids), supervised) == language


def test_a_training_step_costs_what_the_rule_says(tiny_recipe: TrainRecipe) -> None:
    """Trained weights 3 forwards, frozen ones that the gradient goes through 2, the frozen tower 1: as torch counts it."""
    model, processor = initial_model(tiny_recipe, 0)
    row = encode_sample(sample(1, fold=0, split="train", label="joy"), processor, supervise=True)
    batch = collate([row], processor.pad_id)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch, supervised_only=True).loss.backward()
    words = len(row.input_ids) - cost.picture_shape(model, tiny_recipe).visual
    supervised = sum(label != -100 for label in row.labels[1:])
    told = cost.training(model, tiny_recipe, words, supervised).total
    # MVP's first matrices want no gradient of their input, and the head none of its weight: the rule says a little more.
    assert told == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_what_mvp_keeps_for_the_backward_pass_is_what_torch_saves(tiny_recipe: TrainRecipe) -> None:
    model, _ = initial_model(tiny_recipe, 0)
    shape = cost.picture_shape(model, tiny_recipe)
    told = cost.kept_bytes(model.to("meta"), shape, width=4)
    projector = initial_model(tiny_recipe, 0)[0].projector
    saved: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in projector.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    projector.scene.requires_grad_(False)
    patches = torch.randn(1, shape.patches, model.config.vision_config.hidden_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        views = projector.perspectives(patches)
    assert views.content_ML is not None
    # The real pass also keeps its averages over patches and, on the CPU, what the fused attention wants.
    assert told == pytest.approx(sum(t.untyped_storage().nbytes() for t in saved.values()), rel=0.15)
