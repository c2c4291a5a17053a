"""Foundations: the pretrained parts an EmoLLM is made of. One function per family.

*composed*: any transformers vision tower and any causal language model, with a fresh scene projection between them.
*attached*: an existing multimodal model whose own projector MVP wraps (`emollm.model.attached`, `emollm.model.families`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import CHAT_TEMPLATE_FILE, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file, logging

from emollm.model.audio import load_audio_tower
from emollm.model.projector import SceneProjection


class FoundationError(ValueError):
    """A foundation that is not there or of no known kind; the message names it and the remedy."""


class Parts(NamedTuple):
    """Pretrained parts in float32. `scene` maps (N, P, vision width) to (N, P, language width); `audio_tower` is a
    Whisper encoder, or None for a model that does not hear."""

    vision_tower: PreTrainedModel
    language_model: PreTrainedModel
    scene: nn.Module
    audio_tower: PreTrainedModel | None = None


class PictureSettings(NamedTuple):
    """How the vision tower wants its pictures: channel means and deviations of RGB in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def composed(vision: str, language: str, audio: str | None = None) -> Parts:
    """A vision tower, a causal language model and, if named, a Whisper encoder from transformers folders or hub names."""
    vision_config = read_config(vision, "vision tower")
    vision_config = getattr(vision_config, "vision_config", vision_config)
    check_vision(vision_config)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log it is a line for every step of the bar
    tower = AutoModel.from_pretrained(_there(vision), config=vision_config, dtype=torch.float32)
    language_model = AutoModelForCausalLM.from_pretrained(_there(language), dtype=torch.float32)
    scene = SceneProjection(vision_config.hidden_size, language_model.config.hidden_size)
    return Parts(tower, language_model, scene, load_audio_tower(_there(audio)) if audio else None)


def load_mllm(path: str) -> Any:
    """A foundation MLLM from a transformers folder or hub name, in float32. Raises FoundationError."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return AutoModelForImageTextToText.from_pretrained(_there(path), dtype=torch.float32)
    except (OSError, ValueError) as error:
        if isinstance(error, FoundationError):
            raise
        raise FoundationError(f"{path}: not a foundation MLLM: {error}") from error


def load_mllm_tokenizer(path: str) -> Any:
    """The tokenizer of a foundation MLLM with the chat template that takes pictures.

    The llava-hf checkpoints keep it in `chat_template.json`, which is read for a processor only; their tokenizer has the
    language model's own template, or none.
    """
    tokenizer = AutoTokenizer.from_pretrained(_there(path))
    template, legacy = (
        cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for name in (CHAT_TEMPLATE_FILE, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE)
    )
    if legacy and not template:  # with both, the tokenizer has read the newer one
        tokenizer.chat_template = json.loads(Path(legacy).read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


FAMILIES: dict[str, Callable[[str, str, str | None], Parts]] = {"composed": composed}


def read_config(path: str, role: str) -> Any:
    """The transformers config of a foundation, in a folder or on the hub. Raises FoundationError where there is none."""
    try:
        return AutoConfig.from_pretrained(_there(path))
    except (OSError, ValueError) as error:
        if isinstance(error, FoundationError):
            raise
        raise FoundationError(f"{path}: not a transformers model for the {role}: {error}") from error


def _there(path: str) -> str:
    looks_local = path.startswith((".", "/")) or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise FoundationError(
            f"{path}: no such folder (working directory {Path.cwd()}); fetch the models first, "
            f"or point foundation.vision and foundation.language at them"
        )
    return path


def _dinov2_patches(tower: PreTrainedModel, pixels_NCHW: Tensor) -> Tensor:
    return tower(pixel_values=pixels_NCHW).last_hidden_state[:, 1:]  # without the class token


def _clip_patches(tower: PreTrainedModel, pixels_NCHW: Tensor) -> Tensor:
    outputs = tower(pixel_values=pixels_NCHW, output_hidden_states=True, interpolate_pos_encoding=True)
    return outputs.hidden_states[-2][:, 1:]  # the last but one layer, as in LLaVA-1.5


def _siglip_patches(tower: PreTrainedModel, pixels_NCHW: Tensor) -> Tensor:
    return tower(pixel_values=pixels_NCHW, interpolate_pos_encoding=True).last_hidden_state


# How to get patch tokens (N, P, D), in reading order, out of each kind of vision tower.
PATCHES: dict[str, Callable[[PreTrainedModel, Tensor], Tensor]] = {
    "dinov2": _dinov2_patches,
    "clip_vision_model": _clip_patches,
    "siglip_vision_model": _siglip_patches,
}

_IMAGENET = PictureSettings((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = PictureSettings((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = PictureSettings((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PICTURES: dict[str, PictureSettings] = {
    "dinov2": _IMAGENET,
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _HALF,
}


def check_vision(vision_config: Any) -> None:
    kind = vision_config.model_type
    if kind not in PATCHES:
        raise FoundationError(
            f"a vision tower of type {kind!r} is not known; known are: {', '.join(PATCHES)}"
        )


def patch_features(tower: PreTrainedModel, pixels_NCHW: Tensor) -> Tensor:
    """Patch tokens (N, P, D) of pictures (N, 3, side, side)."""
    return PATCHES[tower.config.model_type](tower, pixels_NCHW)
