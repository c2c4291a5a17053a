"""The model: identity at step 0, places for pictures, saving and loading, generation."""

from __future__ import annotations

import pytest
import torch

from emollm.config import LoRAConfig, MVPConfig, TrainRecipe
from emollm.data.collate import collate, encode_sample
from emollm.model.emollm import EmoLLM, MediaMismatchError
from emollm.model.foundations import FoundationError
from emollm.model.projector import MVP, average_patches, patch_graph
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import read_rows


def some_rows(recipe: TrainRecipe, count: int = 4) -> list[dict]:
    return read_rows(recipe.data, "train", "test")[2 : count + 2]


def batch_of(recipe: TrainRecipe, processor, side: str = "right") -> dict[str, torch.Tensor]:
    rows = [encode_sample(row, processor, supervise=True) for row in some_rows(recipe)]
    return collate(rows, processor.pad_id, side)  # type: ignore[arg-type]


def perturb(model: EmoLLM) -> None:
    """Give every trained weight a value, as training would."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def test_step_0_with_perspectives_equals_step_0_without(tiny_recipe: TrainRecipe) -> None:
    bare = tiny_recipe.model_copy(
        update={"mvp": tiny_recipe.mvp.model_copy(update={"content": False, "relation": False})}
    )
    full_model, processor = initial_model(tiny_recipe, seed=3)
    bare_model, _ = initial_model(bare, seed=3)
    batch = batch_of(tiny_recipe, processor)
    assert full_model.projector.content is not None and bare_model.projector.content is None
    difference = (full_model(**batch).logits - bare_model(**batch).logits).abs().max()
    assert float(difference) == 0.0
    perturb(full_model)
    assert float((full_model(**batch).logits - bare_model(**batch).logits).abs().max()) > 1e-3


@torch.no_grad()
def test_mvp_around_a_foundation_s_own_projection_changes_nothing_at_step_0() -> None:
    torch.manual_seed(0)
    scene = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 12))
    mvp = MVP(scene, 8, 12, width=8, heads=2, tokens_per_image=16)
    before = [p.clone() for p in scene.parameters()]
    mvp.reset_parameters(lambda name: torch.manual_seed(1), scene_rms=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, scene.parameters()))
    patches = torch.randn(3, 16, 8)
    assert torch.equal(mvp(patches).view(3, 16, 12), scene(patches))
    assert mvp.opened(patches) == {"content": 0.0, "relation": 0.0, "time": 0.0}


@torch.no_grad()
def test_one_perspective_switched_off_leaves_the_others_unchanged() -> None:
    def contributions(**switches: bool):
        mvp = MVP(torch.nn.Linear(8, 12), 8, 12, width=8, heads=2, tokens_per_image=4, **switches)
        mvp.reset_parameters(lambda name: torch.manual_seed(len(name)))
        for name in ("content_out", "relation_out"):
            if getattr(mvp, name) is not None:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(getattr(mvp, name).weight)
        return mvp.perspectives(patches)

    patches = torch.randn(2, 16, 8)
    both = contributions()
    assert torch.equal(both.content_ML, contributions(relation=False).content_ML)  # type: ignore[arg-type]
    assert torch.equal(both.relation_ML, contributions(content=False).relation_ML)  # type: ignore[arg-type]


def test_patch_graph_has_the_neighbours_of_a_grid_and_of_a_video() -> None:
    patches = torch.randn(3, 9, 4)
    edges = patch_graph(patches, neighbours=2, media_frames=[0, 2])
    valid_by_patch = edges.valid_NPE[0, :, :8].sum(-1).tolist()
    assert valid_by_patch == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    centre = sorted(edges.index_NPE[1, 4, :8].tolist())
    assert centre == [9 + i for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    nearest = edges.index_NPE[..., 8:10]
    assert all(set((nearest[n] // 9).flatten().tolist()) == {n} for n in range(3)), (
        "nearest are of the same picture"
    )
    here = torch.arange(27).view(3, 9, 1)
    assert not bool((nearest == here).any())
    before, after = edges.valid_NPE[..., 10], edges.valid_NPE[..., 11]
    assert [bool(x) for x in before[:, 0]] == [False, False, True]
    assert [bool(x) for x in after[:, 0]] == [False, True, False]
    assert edges.index_NPE[1, 4, 11] == 2 * 9 + 4 and edges.index_NPE[2, 4, 10] == 1 * 9 + 4


def test_averaging_keeps_the_reading_order() -> None:
    grid = torch.arange(16.0).view(1, 16, 1)
    assert average_patches(grid, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(ValueError, match="4×4 patches cannot be averaged down to 3×3"):
        average_patches(grid, 9)


def test_pictures_and_places_must_agree(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    batch = batch_of(tiny_recipe, processor)
    places = int((batch["input_ids"] == processor.image_token_id).sum())
    with pytest.raises(MediaMismatchError, match=f"{places} places"):
        model(**{**batch, "pixel_values": None, "media_frames": None})
    fewer = {**batch, "pixel_values": batch["pixel_values"][:1], "media_frames": torch.tensor([0])}
    with pytest.raises(MediaMismatchError, match=f"1 pictures give 16 visual tokens.*{places} places"):
        model(**fewer)
    with pytest.raises(MediaMismatchError, match="describe 7 pictures"):
        model(**{**batch, "media_frames": torch.tensor([7])})


@torch.no_grad()
@pytest.mark.parametrize("lora", [LoRAConfig(rank=2), None])
def test_saved_and_loaded_gives_the_same_logits(
    tiny_recipe: TrainRecipe, tmp_path, lora: LoRAConfig | None
) -> None:
    from transformers import AutoModelForCausalLM, AutoProcessor

    model, processor = initial_model(tiny_recipe.model_copy(update={"lora": lora}), 0)
    perturb(model)
    batch = batch_of(tiny_recipe, processor)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "light")
    processor.save_pretrained(tmp_path / "light")
    assert torch.equal(EmoLLM.from_pretrained(tmp_path / "light")(**batch).logits, expected)
    again = AutoProcessor.from_pretrained(tmp_path / "light")
    assert again.settings() == processor.settings() and again.image_token_id == processor.image_token_id
    assert torch.equal(batch_of(tiny_recipe, again)["input_ids"], batch["input_ids"])

    model.config.foundations = None
    model.save_pretrained(tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert isinstance(whole, EmoLLM)
    assert torch.equal(whole(**batch).logits, expected)
    whole.merge_lora()
    whole.save_pretrained(tmp_path / "merged")
    merged = EmoLLM.from_pretrained(tmp_path / "merged")
    assert merged.config.lora is None
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=0)


def test_a_changed_or_missing_foundation_is_refused(tiny_recipe: TrainRecipe, tmp_path) -> None:
    import shutil

    from tests.fixtures.tiny_models import LANGUAGE, write_tiny_models

    model, processor = initial_model(tiny_recipe, 0)
    model.save_pretrained(tmp_path / "model")
    write_tiny_models(tmp_path / "other", seed=9)
    with pytest.raises(FoundationError, match="not the language foundation the model was trained on"):
        EmoLLM.from_pretrained(tmp_path / "model", language=str(tmp_path / "other" / LANGUAGE))
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(FoundationError, match="is not there"):
        EmoLLM.from_pretrained(tmp_path / "model", language=str(tmp_path / "other" / LANGUAGE))


@torch.no_grad()
def test_padding_side_does_not_change_the_next_token(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    right, left = batch_of(tiny_recipe, processor), batch_of(tiny_recipe, processor, "left")
    last = right["attention_mask"].sum(-1) - 1
    from_right = model(**right).logits[torch.arange(len(last)), last]
    torch.testing.assert_close(model(**left).logits[:, -1], from_right, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_with_a_cache_equals_step_by_step_forward(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    perturb(model)
    row = encode_sample(some_rows(tiny_recipe)[0], processor, supervise=False)
    batch = collate([row], processor.pad_id)
    batch.pop("labels")
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    ids = batch["input_ids"]
    for _ in range(out.shape[1] - ids.shape[1]):
        logits = model(
            input_ids=ids, pixel_values=batch["pixel_values"], media_frames=batch["media_frames"]
        ).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, ids)


@torch.no_grad()
def test_logits_at_supervised_positions_are_those_of_the_full_forward(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    batch = batch_of(tiny_recipe, processor)
    full, few = model(**batch), model(**batch, supervised_only=True)
    chosen = full.logits[:, :-1][batch["labels"][:, 1:] != -100]
    assert few.logits.shape[0] == int((batch["labels"] != -100).sum()) < batch["input_ids"].numel()
    torch.testing.assert_close(few.logits, chosen)
    torch.testing.assert_close(few.loss, full.loss)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
@torch.no_grad()
def test_other_vision_towers_fit(tiny_recipe: TrainRecipe, tmp_path, kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / kind)
    foundation = tiny_recipe.foundation.model_copy(update={"vision": str(tmp_path / kind)})
    recipe = tiny_recipe.model_copy(update={"foundation": foundation, "mvp": MVPConfig(width=16, heads=2)})
    model, processor = initial_model(recipe, 0)
    batch = batch_of(recipe, processor)
    assert torch.isfinite(model(**batch).logits).all()
    assert model.patch_features(batch["pixel_values"]).shape[1:] == (16, 32)


def test_transparent_pictures_are_put_on_white(tiny_recipe: TrainRecipe) -> None:
    import io

    from PIL import Image

    from emollm.train.build import initial_processor

    processor = initial_processor(tiny_recipe)
    stream = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(stream, format="PNG")
    seen = processor.picture(stream.getvalue())
    white = processor.picture(Image.new("RGB", (20, 20), "white"))
    assert torch.equal(seen, white) and seen.shape == (3, 56, 56)
