"""Exports: the same logits from every form, from folds and from checkpoints, and a card that says what is inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emollm.__main__ import main
from emollm.config import FoundationConfig, TrainRecipe
from emollm.data.collate import collate, encode_sample
from emollm.export import ExportError, checkpoint_weights, export
from emollm.model.load import load_model, load_processor
from emollm.train import checkpoint
from emollm.train.build import initial_model
from emollm.train.loop import train_fold
from tests.emollm.train.small_emobench import in_words, sample
from tests.fixtures import tiny_mllms


def saved(recipe: TrainRecipe, folder: Path) -> Path:
    """A model as training leaves it: what it trains has moved."""
    model, processor = initial_model(recipe, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def rows() -> list[dict]:
    pictures = [sample(n, fold=0, split="train", label="joy", frames=3 if n == 2 else 0) for n in range(3)]
    return [*pictures, in_words(sample(3, fold=0, split="train", label="joy"))]


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model, processor = load_model(str(folder)), load_processor(str(folder))
    encoded = [encode_sample(row, processor, supervise=True) for row in rows()]
    return model(**collate(encoded, processor.pad_id)).logits


@pytest.fixture(params=["composed", "qwen2_5_vl", "smolvlm"])
def recipe(request: pytest.FixtureRequest, tiny_recipe: TrainRecipe, tmp_path: Path) -> TrainRecipe:
    if request.param == "composed":
        return tiny_recipe
    tiny_mllms.write(request.param, tmp_path / "mllm")
    foundation = FoundationConfig(family="attached", mllm=str(tmp_path / "mllm"), max_side_px=32)
    return tiny_recipe.model_copy(update={"foundation": foundation})


def test_every_form_gives_the_logits_of_the_fold(recipe: TrainRecipe, tmp_path: Path) -> None:
    fold = saved(recipe, tmp_path / "fold")
    expected = logits(fold)
    for form in ("full", "adapter", "merged"):
        export(str(fold), str(tmp_path / form), form)
        tolerance = 1e-5 if form == "merged" else 0
        torch.testing.assert_close(logits(tmp_path / form), expected, atol=tolerance, rtol=0)
    names = {form: {path.name for path in (tmp_path / form).iterdir()} for form in ("full", "adapter")}
    assert "trained.safetensors" in names["adapter"] and "model.safetensors" in names["full"]
    assert names["full"] | {"lora", "trained.safetensors"} >= names["adapter"]
    assert all("README.md" in found for found in names.values())
    assert json.loads((tmp_path / "full" / "config.json").read_text())["foundations"] is None
    with pytest.raises(ExportError, match="refers to no foundations, so there is no adapter"):
        export(str(tmp_path / "full"), str(tmp_path / "again"), "adapter")
    assert not (tmp_path / "again").exists()


def test_an_export_loads_through_the_auto_classes(recipe: TrainRecipe, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    export(str(saved(recipe, tmp_path / "fold")), str(tmp_path / "full"))
    auto = AutoModelForCausalLM if recipe.foundation.family == "composed" else AutoModelForImageTextToText
    model, processor = (
        auto.from_pretrained(tmp_path / "full"),
        AutoProcessor.from_pretrained(tmp_path / "full"),
    )
    assert type(model) is type(load_model(str(tmp_path / "full")))
    assert processor.settings() == load_processor(str(tmp_path / "full")).settings()


@torch.no_grad()
def test_peft_loads_the_adapters_lora_on_the_foundation_alone(recipe: TrainRecipe, tmp_path: Path) -> None:
    """For words, where MVP takes no part, foundation and LoRA are the whole model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    export(str(saved(recipe, tmp_path / "fold")), str(tmp_path / "adapter"), "adapter")
    if recipe.foundation.family == "composed":
        foundation = AutoModelForCausalLM.from_pretrained(recipe.foundation.language)
    else:
        foundation = AutoModelForImageTextToText.from_pretrained(recipe.foundation.mllm)
    processor = load_processor(str(tmp_path / "adapter"))
    batch = collate([encode_sample(rows()[-1], processor, supervise=False)], processor.pad_id)
    ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    plain = foundation(**ids).logits
    tuned = PeftModel.from_pretrained(foundation, tmp_path / "adapter" / "lora").eval()
    ours = load_model(str(tmp_path / "fold"))(**ids).logits
    torch.testing.assert_close(tuned(**ids).logits, ours, atol=1e-6, rtol=0)
    assert float((plain - ours).abs().max()) > 1e-3


# --- checkpoints -----------------------------------------------------------------------------------------------------


def kept(
    recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: int, precision: str
) -> Path:
    """The last checkpoint of a training, which has the weights of the fold that it leaves."""
    monkeypatch.setattr(checkpoint.Checkpoints, "remove_all", lambda self: None)
    settings = recipe.deepspeed.model_copy(update={"stage": stage, "precision": precision})
    recipe = recipe.model_copy(update={"deepspeed": settings, "out": str(tmp_path / "run")})
    train_fold(recipe, 0, "exported")
    (newest,) = sorted((tmp_path / "run" / "checkpoints").glob("fold-0/step-*"))[-1:]
    return newest


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (3, "bf16")])
def test_a_checkpoint_gives_the_model_that_training_would_have_left(
    tiny_recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    stage: int,
    precision: str,
) -> None:
    newest = kept(tiny_recipe, monkeypatch, tmp_path, stage, precision)
    assert main(["export", str(newest), str(tmp_path / "whole")]) == 0, capsys.readouterr().err
    assert torch.equal(logits(tmp_path / "whole"), logits(tmp_path / "run" / "fold-0"))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert f"checkpoint after step {int(newest.name[5:])}" in card and "drawn" in card
    fold = json.loads((tmp_path / "whole" / "fold.json").read_text())
    assert fold["fold"] == 0 and fold["data_digest"]

    capsys.readouterr()
    victim = next(newest.glob("*model_states.pt"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["export", str(newest), str(tmp_path / "other")]) == 1
    assert f"{victim.name}: missing or not as it was written" in capsys.readouterr().err
    victim.write_bytes(content)

    (newest.parent / "recipe.json").unlink()
    assert main(["export", str(newest), str(tmp_path / "other")]) == 1
    assert "give its recipe with --recipe" in capsys.readouterr().err
    (newest / "checkpoint.json").unlink()
    assert main(["export", str(newest), str(tmp_path / "other")]) == 1
    assert "was not finished" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(
        {"module": {"weight": torch.zeros(1)}, "evil": Evil()}, tmp_path / "mp_rank_00_model_states.pt"
    )
    with pytest.raises(ExportError, match="cannot be read as a DeepSpeed checkpoint"):
        checkpoint_weights(str(tmp_path), "fp32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "DEST"], "no trained model there; give a fold"),
        (["FOLD", "FOLD"], "is there already and not empty"),
        (["FOLD", "DEST", "--evaluation", "/nowhere"], "no results.json there"),
        (["FOLD", "s3://bucket/dest"], "models are written to a local folder"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(
    tiny_recipe: TrainRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    fold = str(saved(tiny_recipe, tmp_path / "fold"))
    places = {"FOLD": fold, "DEST": str(tmp_path / "dest")}
    assert main(["export", *(places.get(word, word) for word in arguments)]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "dest").exists()
