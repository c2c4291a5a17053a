"""The model at step 0, the same for the same seed."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from emollm.config import TrainRecipe
from emollm.data.emobench import read_digest
from emollm.model.base import EmoLLMBase
from emollm.model.emollm import EmoLLM
from emollm.model.foundations import PICTURES, load_mllm_tokenizer, read_config
from emollm.model.processor import EmoLLMProcessor
from emollm.prompting import TrainingPrompt
from emollm.rationales.store import accepted


def initial_processor(recipe: TrainRecipe) -> Any:
    """The processor that fits the recipe's foundations and prompt style."""
    from transformers import AutoTokenizer

    if recipe.foundation.family == "attached":
        from emollm.model.attached_processor import AttachedProcessor

        return AttachedProcessor(
            load_mllm_tokenizer(recipe.foundation.mllm),
            read_config(recipe.foundation.mllm, "foundation MLLM"),
            max_side_px=recipe.foundation.max_side_px,
            prompt=recipe.prompt,
        )
    vision_config = read_config(recipe.foundation.vision, "vision tower")
    settings = PICTURES[getattr(vision_config, "vision_config", vision_config).model_type]
    sound = {}
    if recipe.foundation.audio:
        audio_config = read_config(recipe.foundation.audio, "audio encoder")
        sound = {
            "tokens_per_audio": recipe.foundation.tokens_per_audio,
            "mel_bins": audio_config.num_mel_bins,
            "audio_window_frames": audio_config.max_source_positions,
        }
    return EmoLLMProcessor(
        AutoTokenizer.from_pretrained(recipe.foundation.language),
        image_size=recipe.foundation.image_size,
        image_mean=settings.mean,
        image_std=settings.std,
        tokens_per_image=recipe.mvp.tokens_per_image,
        tokens_per_frame=recipe.mvp.tokens_per_frame,
        prompt=recipe.prompt,
        chat=recipe.foundation.chat,
        **sound,
    )


def training_prompt(recipe: TrainRecipe) -> TrainingPrompt:
    """How the recipe's training rows are asked, with the rationales they say. Raises RationalesError."""
    rationales = (
        accepted(recipe.data, recipe.rationales, read_digest(recipe.data)) if recipe.rationales else {}
    )
    return TrainingPrompt(recipe.prompt, recipe.mixed_share, rationales)


def initial_model(recipe: TrainRecipe, seed: int) -> tuple[EmoLLMBase, Any]:
    """Foundations with fresh MVP and LoRA, before any alignment: the `untrained` baseline.

    The foundations are frozen. Every part has its own seed, so that ablating one perspective leaves the others alone.
    """
    processor = initial_processor(recipe)
    if recipe.foundation.family == "attached":
        from emollm.model.attached_model import AttachedEmoLLM

        model: EmoLLMBase = AttachedEmoLLM.attached(
            recipe.foundation, recipe.mvp, recipe.lora, recipe.full_language
        )
    else:
        model = EmoLLM.composed(
            recipe.foundation, recipe.mvp, recipe.lora, processor.image_token_id, processor.audio_token_id
        )
    model.generation_config.eos_token_id = processor.end_id
    model.generation_config.pad_token_id = processor.pad_id
    with torch.random.fork_rng(devices=[]):
        embeddings_VL: torch.Tensor = model.get_input_embeddings().weight.data  # type: ignore[assignment]
        scene_rms = float(embeddings_VL.float().pow(2).mean().sqrt())
        model.reset_projector(lambda name: torch.manual_seed(part_seed(seed, name)), scene_rms)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                torch.manual_seed(part_seed(seed, name))
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
    model.freeze_foundations()
    return model.eval(), processor


def part_seed(seed: int, name: str) -> int:
    """A seed for one named part, far from those of its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")
