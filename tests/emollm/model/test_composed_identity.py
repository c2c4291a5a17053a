"""Composed models over every kind of vision tower and language model: the foundation's logits at step 0, and not after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from emollm.config import MVPConfig
from emollm.model.emollm import EmoLLM, EmoLLMConfig

IMAGE = 90
_SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
LANGUAGES = ("llama", "qwen2", "smollm3")
MVP = MVPConfig(width=8, heads=2, content_queries=3, neighbours=2, tokens_per_image=4, tokens_per_frame=1)


def configs(tower: str, language: str, mvp: MVPConfig) -> EmoLLMConfig:
    from transformers import AutoConfig

    text = AutoConfig.for_model(
        language, **_SMALL, num_key_value_heads=1, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )  # fmt: skip
    vision = AutoConfig.for_model(tower, **_SMALL, image_size=32, patch_size=8)
    return EmoLLMConfig(
        vision_config=vision, text_config=text, mvp=mvp.model_dump(), image_token_id=IMAGE, image_size=32
    )


def made(tower: str, language: str, mvp: MVPConfig = MVP) -> EmoLLM:
    """The same foundations for the same kinds, whatever MVP is."""
    torch.manual_seed(0)
    model = EmoLLM(configs(tower, language, mvp))  # the foundations are made first
    model.reset_projector(lambda name: torch.manual_seed(sum(name.encode())), scene_rms=0.02)
    model.freeze_foundations()
    return model.eval()


def batch() -> dict[str, Any]:
    """A still picture and a clip of two frames among words."""
    torch.manual_seed(1)
    row = [5, 6, *[IMAGE] * 4, 7, 8, *[IMAGE] * 2, 9, 10]
    return {
        "input_ids": torch.tensor([row]),
        "pixel_values": torch.randn(3, 3, 32, 32),
        "media_frames": torch.tensor([0, 2]),
    }


@pytest.fixture(params=[(tower, language) for tower in TOWERS for language in LANGUAGES], ids="-".join)
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@torch.no_grad()
def test_words_alone_get_exactly_the_language_models_own_logits(kinds: tuple[str, str]) -> None:
    model = made(*kinds)
    words = torch.tensor([[1, 5, 6, 7, 8, 9]])
    assert torch.equal(model(input_ids=words).logits, model.language_model(input_ids=words).logits)


@torch.no_grad()
def test_step_0_is_exactly_the_scene_projection_and_the_language_model(kinds: tuple[str, str]) -> None:
    model, given = made(*kinds), batch()
    assert model.projector.content is not None and model.projector.relation is not None
    patches = model.patch_features(given["pixel_values"])
    tokens = model.projector.scene(model.projector.pool(patches, [0, 2]))
    embeds = model.get_input_embeddings()(given["input_ids"].clamp(max=99))
    embeds[given["input_ids"] == IMAGE] = tokens
    assert torch.equal(model(**given).logits, model.language_model(inputs_embeds=embeds).logits)


def test_one_training_step_opens_mvp_moves_the_logits_and_leaves_the_foundations_alone(
    kinds: tuple[str, str],
) -> None:
    model, given = made(*kinds), batch()
    before = model(**given).logits.detach()
    words = torch.tensor([[1, 5, 6, 7]])
    said = model(input_ids=words).logits.detach()
    foundations = {
        name: value.clone() for name, value in model.named_parameters() if not name.startswith("projector.")
    }
    labels = given["input_ids"].clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    model(**given, labels=labels).loss.backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(model(**given).logits, before)
        assert torch.equal(model(input_ids=words).logits, said)
        opened = model.projector.opened(model.patch_features(given["pixel_values"]), [0, 2])
    assert set(opened) == {"content", "relation", "time"} and all(share > 0 for share in opened.values())
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in foundations.items())


@torch.no_grad()
@pytest.mark.parametrize("off", ["content", "relation", "time"])
def test_a_perspective_switched_off_leaves_the_others_unchanged(kinds: tuple[str, str], off: str) -> None:
    """A model without it gives the logits of one in which it is there and shut."""
    whole = made(*kinds)
    without = made(*kinds, MVP.model_copy(update={off: False}))
    for name in ("content_out", "relation_out", "time_out"):
        torch.manual_seed(len(name))
        torch.nn.init.normal_(getattr(whole.projector, name).weight, std=0.5)
        if name != f"{off}_out":
            getattr(without.projector, name).weight.copy_(getattr(whole.projector, name).weight)
    open_logits = whole(**batch()).logits
    getattr(whole.projector, f"{off}_out").weight.zero_()
    shut = whole(**batch()).logits
    assert torch.equal(shut, without(**copy.deepcopy(batch())).logits) and not torch.equal(shut, open_logits)
