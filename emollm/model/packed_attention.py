"""Attention in packed sequences: each sample attends to itself alone, in a call of its own.

A mask over a packed sequence of T tokens makes SDPA compute all T² scores and throw most of them away; a sample of n tokens
needs n²/2 of them. `PER_SAMPLE` is transformers' own SDPA function, called once for each sample where a forward is given
`segments`, and once as ever where it is not. It is a name of this process: transformers writes no attention function into a
saved config.

Shape suffixes: B sequences, T tokens, H heads, D width of a head, N tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# For each sequence of a batch the lengths of its samples, in order; what is behind them is padding.
Segments = Sequence[Sequence[int]]

PER_SAMPLE = "sdpa_per_sample"
# Layers of other kinds carry more from token to token than keys and values, or cut the sequence by place.
_LAYERS = {"full_attention", "sliding_attention"}


class PackingError(ValueError):
    """A batch or a language model that cannot be packed; the message says why, and the remedy."""


def mask_beside(segments: Segments, decoder: Any, inputs_embeds: Tensor) -> Tensor:
    """The attention mask to give a decoder with `segments`, which it attends by from now on where they come.

    With four dimensions it is passed on as it is, so transformers makes none; being empty, it fails in any attention that
    would look at it instead of at the segments. A decoder that cannot take segments gets the mask of the padding (B, T)
    where each sequence holds one sample. Raises PackingError where it holds several, or where segments do not fit.
    """
    config, (sequences, length) = decoder.config, inputs_embeds.shape[:2]
    if len(segments) != sequences or any(sum(lengths) > length for lengths in segments):
        raise PackingError(f"segments {segments} do not fit {sequences} sequences of {length} tokens")
    if config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(PER_SAMPLE)
    if not _unpackable(config):
        return inputs_embeds.new_empty((sequences, 1, 0, 0), dtype=torch.bool)
    if any(len(lengths) > 1 for lengths in segments):
        check_packable(decoder)
    place_T = torch.arange(length, device=inputs_embeds.device)
    return place_T < torch.tensor(segments, device=inputs_embeds.device)


def check_packable(decoder: Any) -> None:
    """Raises PackingError for a language model in which samples of one sequence would see each other."""
    config = decoder.config
    if found := _unpackable(config):
        raise PackingError(
            f"samples cannot be packed for this {config.model_type!r} language model: with {', '.join(found)} one would "
            f"see another; set tune.packing=false"
        )


def _unpackable(config: Any) -> list[str]:
    """What in a language model does not take segments: its attention function, or kinds of layers."""
    if config._attn_implementation not in ("sdpa", PER_SAMPLE):
        return [f"attention {config._attn_implementation!r}"]
    return sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)


def per_sample_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a language model calls in every layer: (B, H, T, D) of each to (B, T, H, D); zeros at padding.

    Raises PackingError where the language model has a window that it does not tell its attention (PhiMoE, Qwen2-MoE in
    transformers 5.23: their masks alone know it), and a sample is longer than that.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    sequences, heads, length, _ = query.shape
    window, width = kwargs.get("sliding_window"), value.shape[-1]
    untold = None if "sliding_window" in kwargs else getattr(module.config, "sliding_window", None)
    if untold and any(size > untold for lengths in segments for size in lengths):
        raise PackingError(
            f"samples of more than {untold} tokens cannot be packed for this {module.config.model_type!r} language model: "
            "its attention is not told its window; set tune.packing=false"
        )
    sizes, real = [], []
    for lengths in segments:
        for size in (*lengths, length - sum(lengths)):
            sizes.append(size)
            real.append(True)
        real[-1] = False  # the padding
    # One split and one cat for all: the gradient of a slice would be a whole tensor of zeros for each sample.
    parts = (whole.transpose(1, 2).flatten(0, 1).split(sizes) for whole in (query, key, value))
    found = []
    for size, is_sample, *part in zip(sizes, real, *parts):
        if not is_sample:
            found.append(query.new_zeros(size, heads, width))
            continue
        q, k, v = (whole.transpose(0, 1).unsqueeze(0) for whole in part)
        mask = _window_mask(size, window, query.device) if window and size > window else None
        found.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0].squeeze(0))
    return torch.cat(found).unflatten(0, (sequences, length)), None


def _window_mask(size: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, N, N): a token sees itself and the `window` - 1 tokens before it."""
    place_N = torch.arange(size, device=device)
    back_NN = place_N.unsqueeze(1) - place_N
    return ((back_NN >= 0) & (back_NN < window))[None, None]


ALL_ATTENTION_FUNCTIONS.register(PER_SAMPLE, per_sample_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PER_SAMPLE, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
