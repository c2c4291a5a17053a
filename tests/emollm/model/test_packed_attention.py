"""A packed sample has the hidden states and gradients it has alone, in every kind of language model that is packed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModel,
    LlamaConfig,
    MistralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2_5_VLTextConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from emollm.config import TrainRecipe
from emollm.data.collate import collate, encode_sample
from emollm.data.packing import pack
from emollm.model.packed_attention import PackingError, check_packable, mask_beside
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import read_rows

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
WINDOW = 5
# What reads the tokens in the composed recipes and in each attached family.
DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=4),
    "llama, grouped queries (SmolLM2, SmolVLM)": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2 (LLaVA-OneVision)": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen2, second layer with a window": Qwen2Config(
        **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "mistral, all layers with a window": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=WINDOW),
    "qwen2.5-vl, three axes": Qwen2_5_VLTextConfig(
        **SMALL,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    ),
}
LENGTHS = st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=5), min_size=1, max_size=3)


def decoder(kind: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(copy.deepcopy(DECODERS[kind]), attn_implementation=attention)


def positions(kind: str, sample: int, length: int) -> Tensor:
    """(1, N), or for three axes (3, 1, N) that differ, as behind pictures."""
    place_N = torch.arange(length)
    if "three axes" not in kind:
        return place_N[None]
    return torch.stack([place_N, place_N // (2 + sample % 2), place_N % 3])[:, None]


def packed_positions(kind: str, segments: list[list[int]]) -> Tensor:
    longest = max(map(sum, segments))
    rows = []
    for lengths in segments:
        parts = [positions(kind, sample, length) for sample, length in enumerate(lengths)]
        parts.append(torch.zeros_like(parts[0][..., :1]).expand(*parts[0].shape[:-1], longest - sum(lengths)))
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)


def run_packed(model: Any, kind: str, embeds_BTL: Tensor, segments: list[list[int]]) -> Tensor:
    return model(
        inputs_embeds=embeds_BTL,
        attention_mask=mask_beside(segments, model, embeds_BTL),
        position_ids=packed_positions(kind, segments),
        use_cache=False,
        segments=segments,
    ).last_hidden_state


def embedded(segments: list[list[int]], seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(len(segments), max(map(sum, segments)), SMALL["hidden_size"]) * 0.5


def places(segments: list[list[int]]) -> list[tuple[int, int, slice]]:
    """(sequence, number in it, place) of each sample."""
    found = []
    for row, lengths in enumerate(segments):
        for number, length in enumerate(lengths):
            start = sum(lengths[:number])
            found.append((row, number, slice(start, start + length)))
    return found


@pytest.mark.parametrize("kind", DECODERS)
@settings(max_examples=20, deadline=None)
@given(segments=LENGTHS)
def test_a_packed_sample_has_the_states_and_gradients_it_has_alone(
    kind: str, segments: list[list[int]]
) -> None:
    """Alone means one sequence without padding, through transformers' plain (eager) attention."""
    packed, alone = decoder(kind).train(), decoder(kind, "eager").train()
    embeds_BTL = embedded(segments)
    ours, theirs = embeds_BTL.clone().requires_grad_(), embeds_BTL.clone().requires_grad_()
    weight_BTL = torch.randn_like(embeds_BTL)  # so that the sum below has a gradient everywhere
    states_BTL = run_packed(packed, kind, ours, segments)
    assert states_BTL.isfinite().all(), "padding, too"
    loss, naive = torch.zeros(()), torch.zeros(())
    for row, number, place in places(segments):
        one = alone(
            inputs_embeds=theirs[row : row + 1, place],
            position_ids=positions(kind, number, place.stop - place.start),
            use_cache=False,
        ).last_hidden_state[0]
        torch.testing.assert_close(states_BTL[row, place], one, atol=1e-5, rtol=1e-4)
        loss = loss + (states_BTL[row, place] * weight_BTL[row, place]).sum()
        naive = naive + (one * weight_BTL[row, place]).sum()
    loss.backward()
    naive.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    for mine, other in zip(packed.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-4, rtol=1e-4)


SEGMENTS = [[7, 1, 9], [4, 6]]


@pytest.mark.parametrize("kind", DECODERS)
def test_no_sample_depends_on_another_or_on_padding_by_a_single_bit(kind: str) -> None:
    model, embeds_BTL = decoder(kind).eval(), embedded(SEGMENTS)
    with torch.no_grad():
        before_BTL = run_packed(model, kind, embeds_BTL, SEGMENTS)
        other_BTL = embedded(SEGMENTS, seed=2)
        for row, _, place in places(SEGMENTS):
            changed_BTL = other_BTL.clone()
            changed_BTL[row, place] = embeds_BTL[row, place]
            after_BTL = run_packed(model, kind, changed_BTL, SEGMENTS)
            assert torch.equal(after_BTL[row, place], before_BTL[row, place])


@pytest.mark.parametrize("kind", DECODERS)
def test_the_same_batch_gives_the_same_bits_with_and_without_checkpointing(kind: str) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = decoder(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        run_packed(model, kind, embedded(SEGMENTS), SEGMENTS)[:, :10].square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    once, again, checkpointed = gradients(False), gradients(False), gradients(True)
    assert once
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, again, checkpointed))


@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_not_packed_has_the_same_bits_after_a_packed_batch(kind: str) -> None:
    model, embeds_BTL = decoder(kind).eval(), embedded([[12], [12]])
    mask_BT = torch.ones(2, 12, dtype=torch.long)
    mask_BT[0, :4] = 0

    def unpacked() -> list[Tensor]:
        given: list[Any] = [None, mask_BT]
        return [model(inputs_embeds=embeds_BTL, attention_mask=mask).last_hidden_state for mask in given]

    with torch.no_grad():
        before = unpacked()
        run_packed(model, kind, embedded(SEGMENTS), SEGMENTS)
        assert all(torch.equal(a, b) for a, b in zip(before, unpacked(), strict=True))


def test_language_models_that_would_mix_samples_take_one_a_sequence() -> None:
    embeds_BTL, alone = embedded(SEGMENTS), [[17], [10]]
    with pytest.raises(PackingError, match="with attention 'eager' one would see another; set tune.packing"):
        mask_beside(SEGMENTS, decoder("llama", "eager"), embeds_BTL)
    mixed = decoder("qwen2 (LLaVA-OneVision)")
    mixed.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(
        PackingError, match="'qwen2' language model: with linear_attention one would see another"
    ):
        mask_beside(SEGMENTS, mixed, embeds_BTL)
    with pytest.raises(PackingError, match="linear_attention"):
        check_packable(mixed)
    check_packable(decoder("llama"))
    assert mask_beside(alone, mixed, embeds_BTL).sum(1).tolist() == [17, 10]
    with torch.no_grad():
        expected_BTL = run_packed(decoder("llama").eval(), "llama", embeds_BTL, alone)
        states_BTL = run_packed(decoder("llama", "eager").eval(), "llama", embeds_BTL, alone)
    for row, _, place in places(alone):
        torch.testing.assert_close(states_BTL[row, place], expected_BTL[row, place], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        PhimoeConfig(**SMALL, num_key_value_heads=2, sliding_window=WINDOW, num_local_experts=2),
        Qwen2MoeConfig(
            **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0,
            num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_window_that_attention_is_not_told_is_refused_where_a_sample_is_longer(
    config: PreTrainedConfig,
) -> None:
    model = AutoModel.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    with pytest.raises(PackingError, match=f"more than {WINDOW} tokens cannot be packed for this"):
        run_packed(model, "llama", embedded(SEGMENTS), SEGMENTS)
    assert run_packed(model, "llama", embedded([[5, 2]]), [[5, 2]]).isfinite().all()


def test_segments_that_do_not_fit_are_refused() -> None:
    for segments in ([[7, 1, 9]], [[7, 1, 10], [4, 6]]):
        with pytest.raises(PackingError, match="do not fit 2 sequences of 17 tokens"):
            mask_beside(segments, decoder("llama"), embedded(SEGMENTS))


def test_attention_that_is_not_told_the_segments_fails_instead_of_mixing_samples() -> None:
    model, embeds_BTL = decoder("llama"), embedded(SEGMENTS)
    with pytest.raises(RuntimeError, match="size"):
        model(inputs_embeds=embeds_BTL, attention_mask=mask_beside(SEGMENTS, model, embeds_BTL))


def test_segments_replace_the_mask_and_need_positions(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    rows = [encode_sample(row, processor, supervise=True) for row in read_rows(tiny_recipe.data, "train")[:2]]
    batch = pack(rows, [[0], [1]], processor.pad_id)
    batch["pixel_values"] = torch.stack([picture for row in rows for picture in row.pictures])
    batch["media_frames"] = [frames for row in rows for frames in row.media_frames]
    mask = collate(rows, processor.pad_id)["attention_mask"]
    for wrong in ({"attention_mask": mask}, {"position_ids": None}):
        with pytest.raises(ValueError, match="segments come with position_ids, without attention_mask"):
            model(**{**batch, **wrong})


def test_a_model_trained_on_packed_batches_is_saved_with_no_attention_of_its_own(
    tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    rows = [encode_sample(row, processor, supervise=True) for row in read_rows(tiny_recipe.data, "train")[:3]]
    batch = pack(rows, [[0, 1, 2]], processor.pad_id)
    batch["pixel_values"] = torch.stack([picture for row in rows for picture in row.pictures])
    batch["media_frames"] = [frames for row in rows for frames in row.media_frames]
    with torch.no_grad():
        assert model(**batch).loss.isfinite()
    assert model.get_decoder().config._attn_implementation == "sdpa_per_sample"
    model.save_pretrained(tmp_path / "light")
    model.config.foundations = None
    model.save_pretrained(tmp_path / "whole")
    for folder in ("light", "whole"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert "per_sample" not in json.dumps(config) and "attn_implementation" not in json.dumps(config)
        again = type(model).from_pretrained(tmp_path / folder)
        assert again.get_decoder().config._attn_implementation == "sdpa"
