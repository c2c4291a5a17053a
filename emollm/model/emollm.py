"""EmoLLM: a vision tower, MVP and a causal language model as one transformers model.

A saved folder either holds all weights (`export`), or only the trained ones and a reference to the foundations with
their digests (what training writes; a few megabytes). `EmoLLM.from_pretrained` loads both and gives the same logits.

Shape suffixes: B sequences, T tokens, N pictures, P patches, D vision width, L language width, S supervised tokens,
V vocabulary.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from emollm.config import FOUNDATION_PARTS, FoundationConfig, LoRAConfig, MVPConfig
from emollm.model.audio import Sound, audio_tower_from_config, hear
from emollm.model.foundations import FAMILIES, Parts, check_vision, patch_features
from emollm.model.light import TRAINED_FILE, find_foundation, foundation_reference, load_trained
from emollm.model.lora import inject_lora, merge_lora
from emollm.model.projector import MVP, ContentPerspective, RelationPerspective, SceneProjection

IGNORED = -100  # a label that carries no loss


class MediaMismatchError(ValueError):
    """The pictures of a batch do not fill the places its token ids leave for them."""


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


class EmoLLM(PreTrainedModel, GenerationMixin):
    """Forward: visual tokens are put where `input_ids` holds the image token, then the language model runs."""

    config_class = EmoLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

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
            for out in (module.content_out, module.relation_out, module.time_out):
                if out is not None:
                    nn.init.zeros_(out.weight)
        elif isinstance(module, ContentPerspective):
            nn.init.normal_(module.queries_KC)
        elif isinstance(module, RelationPerspective):
            nn.init.normal_(module.score_HZ)
            nn.init.zeros_(module.edge_bias_QH)

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

    def checkpoint_activations(self) -> None:
        """Compute the language model's activations again in the backward pass instead of keeping them."""
        decoder: Any = self.get_decoder()
        decoder.gradient_checkpointing_enable({"use_reentrant": False})

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

    def trained_names(self) -> set[str]:
        """Names of the parameters that learn: those of the projectors and of LoRA."""
        return self.projector_names() | {name for name, _ in self.named_parameters() if ".lora_" in name}

    def freeze_foundations(self) -> None:
        """Only MVP, the audio projector and LoRA learn."""
        trained = self.trained_names()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

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
        frames. `attention_mask` is (B, T), or (B, 1, T, T) and boolean for packed rows.
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

    def decode(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Any,
        *,
        use_cache: bool | None,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        supervised_only: bool,
        num_items_in_batch: Tensor | int | None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The language model over embedded tokens (B, T, L), and the loss. See `forward`."""
        plain_mask = attention_mask is not None and attention_mask.dim() == 2
        if attention_mask is not None and plain_mask and position_ids is None and past_key_values is None:
            # So that left padding gives the logits of right padding.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if supervised_only and labels is None:
            raise ValueError("supervised_only=True needs labels")
        outputs = self.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=False if supervised_only else use_cache,
            **kwargs,
        )
        hidden_BTL, head = outputs.last_hidden_state, self.get_output_embeddings()
        if supervised_only:
            assert labels is not None
            targets_BT = labels[:, 1:]
            supervised_BT = targets_BT != IGNORED
            logits = head(hidden_BTL[:, :-1][supervised_BT])
            mean = _mean_loss(logits, targets_BT[supervised_BT], num_items_in_batch)
            return CausalLMOutputWithPast(loss=mean, logits=logits)
        if labels is not None:
            logits = head(hidden_BTL)
            loss = _mean_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=head(hidden_BTL[:, kept]), past_key_values=outputs.past_key_values
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

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            for name in (
                "pixel_values",
                "patches",
                "media_frames",
                "visuals",
                "sounds",
                "heard",
            ):  # they went in with the prompt
                inputs.pop(name, None)
        return inputs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the folder: only the trained weights where the config refers to foundations, else all of them."""
        if self.config.foundations is None:
            super().save_pretrained(save_directory, **kwargs)
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = kwargs.get("state_dict") or dict(self.named_parameters())
        trained = {name: state[name].detach().cpu().contiguous() for name in sorted(self.trained_names())}
        save_file(trained, folder / TRAINED_FILE, metadata={"format": "pt"})
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> EmoLLM:  # type: ignore[override]
        """Load a folder that training or `export` wrote; float32, on the CPU, in evaluation mode.

        `vision`, `language` and `audio` point at the foundations where they have moved. Raises FoundationError where a
        foundation is missing or is not the one the model was trained on.
        """
        given = {part: kwargs.pop(part, None) for part in FOUNDATION_PARTS}
        config = kwargs.get("config") or cls.config_class.from_pretrained(pretrained_model_name_or_path)
        if config.foundations is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        reference = dict(config.foundations)
        for part, digest in reference["digests"].items():
            reference[part] = find_foundation(part, given[part] or reference[part], digest)
        model = cls.from_parts(config, reference)
        load_trained(model, folder / TRAINED_FILE)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()

    @classmethod
    def from_parts(cls, config: Any, reference: dict[str, Any]) -> EmoLLM:
        """A model over the pretrained foundations that a light folder refers to."""
        parts = FAMILIES[reference["family"]](
            reference["vision"], reference["language"], reference.get("audio")
        )
        return cls(config, parts)

    def merge_lora(self) -> None:
        """Fold LoRA into the language model's weights, in place; the config no longer mentions it."""
        merge_lora(self.get_decoder())
        self.config.lora = None


def _mean_loss(logits_SV: Tensor, targets_S: Tensor, items: Tensor | int | None) -> Tensor:
    total = nn.functional.cross_entropy(logits_SV.float(), targets_S, ignore_index=IGNORED, reduction="sum")
    if items is None:
        items = (targets_S != IGNORED).sum().clamp(min=1)
    return total / items


AutoConfig.register("emollm", EmoLLMConfig, exist_ok=True)
AutoModelForCausalLM.register(EmoLLMConfig, EmoLLM, exist_ok=True)
