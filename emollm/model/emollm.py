"""EmoLLM composed of a vision tower, MVP, a causal language model and, if it hears, a Whisper encoder.

Shape suffixes: B sequences, T tokens, N pictures, P patches, D width of a tower, L language width, A sounds, K tokens of
one sound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from emollm.config import FoundationConfig, LoRAConfig, MVPConfig
from emollm.model.audio import Sound, audio_tower_from_config, hear
from emollm.model.base import EmoLLMBase, MediaMismatchError, close
from emollm.model.foundations import FAMILIES, Parts, check_vision, patch_features
from emollm.model.light import foundation_reference
from emollm.model.lora import inject_lora
from emollm.model.projector import MVP, SceneProjection


@strict
class EmoLLMConfig(PreTrainedConfig):
    """Configs of the two foundations, of MVP and LoRA, and how pictures enter the token sequence.

    `foundations` is None where the folder holds all weights; otherwise {family, vision, language, audio, digests}.
    """

    model_type = "emollm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a PreTrainedConfig once the config is made
    text_config: Any = None
    mvp: dict | None = None
    lora: dict | None = None
    image_token_id: int = -1
    image_size: int = 112
    audio_config: dict | None = None  # of the Whisper encoder; None for a model that does not hear
    audio_token_id: int = -1
    tokens_per_audio: int = 16
    foundations: dict | None = None


class EmoLLM(EmoLLMBase):
    """A composed model. Forward: visual tokens are put where `input_ids` holds the image token, then the language model runs."""

    config_class = EmoLLMConfig

    def __init__(self, config: EmoLLMConfig, parts: Parts | None = None) -> None:
        """With `parts`, pretrained foundations are taken in; without, everything is made from the config."""
        super().__init__(config)
        check_vision(config.vision_config)
        if parts is None:
            vision_width, width = config.vision_config.hidden_size, config.text_config.hidden_size
            parts = Parts(
                AutoModel.from_config(config.vision_config),
                AutoModelForCausalLM.from_config(config.text_config),
                SceneProjection(vision_width, width),
                audio_tower_from_config(config.audio_config) if config.audio_config else None,
            )
        self.vision_tower = parts.vision_tower
        self.language_model = parts.language_model
        mvp = MVPConfig(**(config.mvp or {}))
        self.projector = MVP(
            parts.scene, config.vision_config.hidden_size, config.text_config.hidden_size, **mvp.model_dump()
        )
        self.audio_tower = parts.audio_tower
        self.audio_projector = (
            SceneProjection(parts.audio_tower.config.d_model, config.text_config.hidden_size)
            if parts.audio_tower is not None
            else None
        )
        self.post_init()
        if config.lora is not None:
            inject_lora(self.language_model, LoRAConfig(**config.lora))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MVP):
            close([module.content_out, module.relation_out, module.time_out])

    @classmethod
    def composed(
        cls,
        foundation: FoundationConfig,
        mvp: MVPConfig,
        lora: LoRAConfig | None,
        image_token_id: int,
        audio_token_id: int = -1,
    ) -> EmoLLM:
        """A model from pretrained foundations. MVP and LoRA are as torch's current seed makes them."""
        parts = FAMILIES[foundation.family](foundation.vision, foundation.language, foundation.audio)
        config = EmoLLMConfig(
            # Copies: PreTrainedModel resets the attention implementation in the configs it is given.
            vision_config=copy.deepcopy(parts.vision_tower.config),
            text_config=copy.deepcopy(parts.language_model.config),
            mvp=mvp.model_dump(),
            lora=lora.model_dump(mode="json") if lora else None,
            image_token_id=image_token_id,
            image_size=foundation.image_size,
            audio_config=parts.audio_tower.config.to_diff_dict() if parts.audio_tower is not None else None,
            audio_token_id=audio_token_id,
            tokens_per_audio=foundation.tokens_per_audio,
            foundations=foundation_reference(foundation),
        )
        model = cls(config, parts)
        model.generation_config = parts.language_model.generation_config
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """Features (N, P, D) of pictures (N, 3, side, side) from the vision tower; training may keep them."""
        return patch_features(self.vision_tower, pixel_values)

    @torch.no_grad()
    def heard(self, sounds: list[Sound]) -> Tensor:
        """Pooled frames (A, K, D) of sounds from the frozen audio tower; training may keep them."""
        if self.audio_tower is None:
            raise MediaMismatchError("sounds came, but this model has no audio tower")
        return hear(self.audio_tower, sounds, self.config.tokens_per_audio)

    def reset_projector(self, seeded: Callable[[str], object], scene_rms: float) -> None:
        """Initialise the projectors, every part from its own seed; see `MVP.reset_parameters`."""
        self.projector.reset_parameters(seeded, scene_rms)
        if self.audio_projector is not None:
            seeded("audio")
            self.audio_projector.reset_parameters(scene_rms)

    def projector_names(self) -> set[str]:
        """Names of the parameters of MVP and the audio projector, which have a learning rate of their own."""
        own = ("projector.", "audio_projector.")
        return {name for name, _ in self.named_parameters() if name.startswith(own)}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        media_frames: Tensor | Sequence[int] | None = None,
        patches: Tensor | None = None,
        sounds: list[Sound] | None = None,
        heard: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        supervised_only: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean loss over supervised tokens where `labels` (not shifted; -100 is ignored) are given.

        `pixel_values` (N, 3, side, side) holds all pictures and frames of the batch in order of appearance, or
        `patches` (N, P, D) their features. `media_frames` has one entry a medium: 0 for a still picture, n for a video
        of n frames; None means stills only. `sounds` are those of the batch in order, or `heard` (A, K, D) their pooled
        frames. `attention_mask` is (B, T). Packed rows come with `segments` in its place: for each sequence the lengths
        of its rows, in order, each of which attends to itself alone; their `position_ids` start again at 0.
        With `supervised_only` the logits are those that predict a supervised token, (S, V), and no others are
        computed. `num_items_in_batch` divides the loss in place of the number of supervised tokens of this batch.
        Raises MediaMismatchError where pictures and places differ.
        """
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, pixel_values, patches, media_frames)
            inputs_embeds = self._embed_sounds(input_ids, inputs_embeds, sounds, heard)
        return self.decode(
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache=use_cache,
            labels=labels,
            logits_to_keep=logits_to_keep,
            supervised_only=supervised_only,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )

    def _embed(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        patches: Tensor | None,
        media_frames: Tensor | Sequence[int] | None,
    ) -> Tensor:
        if input_ids is None:
            raise ValueError("give input_ids or inputs_embeds")
        place_BT = input_ids == self.config.image_token_id
        # The image token has no embedding of its own (its id may lie beyond the table).
        other_BT = place_BT | (input_ids == self.config.audio_token_id)
        embeds_BTL = self.get_input_embeddings()(input_ids.masked_fill(other_BT, 0))
        places = int(place_BT.sum())
        if patches is None and pixel_values is not None and len(pixel_values):
            patches = self.patch_features(pixel_values)
        if patches is None or not len(patches):
            if places:
                raise MediaMismatchError(
                    f"input_ids leave {places} places for visual tokens, but no pictures came"
                )
            if self.training:
                # Other ranks may have pictures: each must take part in gathering weights and in summing gradients.
                shape = (1, self.projector.tokens_per_image, self.config.vision_config.hidden_size)
                embeds_BTL = embeds_BTL + 0 * self.projector(embeds_BTL.new_zeros(shape)).sum()
            return embeds_BTL
        frames = [int(count) for count in media_frames] if media_frames is not None else [0] * len(patches)
        if sum(max(1, count) for count in frames) != len(patches):
            raise MediaMismatchError(
                f"media_frames {frames} describe {sum(max(1, count) for count in frames)} pictures, "
                f"but {len(patches)} came"
            )
        visual_ML = self.projector(patches.to(embeds_BTL.dtype), frames)
        if len(visual_ML) != places:
            raise MediaMismatchError(
                f"{len(patches)} pictures give {len(visual_ML)} visual tokens, but input_ids leave {places} places"
            )
        return embeds_BTL.masked_scatter(place_BT.unsqueeze(-1), visual_ML.to(embeds_BTL.dtype))

    def _embed_sounds(
        self, input_ids: Tensor | None, embeds_BTL: Tensor, sounds: list[Sound] | None, heard: Tensor | None
    ) -> Tensor:
        if self.audio_projector is None:
            return embeds_BTL
        assert input_ids is not None
        place_BT = input_ids == self.config.audio_token_id
        if heard is None and sounds:
            heard = self.heard(sounds)
        if heard is not None:
            tokens_XL = self.audio_projector(heard.to(embeds_BTL.dtype)).flatten(0, 1)
        else:
            tokens_XL = embeds_BTL[:0, 0]
            if self.training and self.audio_tower is not None:  # as in `_embed`
                nothing = embeds_BTL.new_zeros(1, self.audio_tower.config.d_model)
                embeds_BTL = embeds_BTL + 0 * self.audio_projector(nothing).sum()
        if len(tokens_XL) != int(place_BT.sum()):
            raise MediaMismatchError(
                f"the sounds give {len(tokens_XL)} tokens, but input_ids leave {int(place_BT.sum())} places"
            )
        return embeds_BTL.masked_scatter(place_BT.unsqueeze(-1), tokens_XL.to(embeds_BTL.dtype))

    @classmethod
    def from_parts(cls, config: Any, reference: dict[str, Any]) -> EmoLLM:
        """A model over the pretrained foundations that a light folder refers to."""
        parts = FAMILIES[reference["family"]](
            reference["vision"], reference["language"], reference.get("audio")
        )
        return cls(config, parts)


AutoConfig.register("emollm", EmoLLMConfig, exist_ok=True)
AutoModelForCausalLM.register(EmoLLMConfig, EmoLLM, exist_ok=True)
