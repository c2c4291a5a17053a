"""EmoLLM on a foundation MLLM (LLaVA-1.5, LLaVA-OneVision, Qwen2.5-VL, SmolVLM) whose weights are kept.

The foundation's own vision tower and projector give the visual tokens, MVP adds to them, the foundation's language model
reads on. Saving, loading and loss are those of every EmoLLM (`base`). At step 0 the logits are the foundation's.

Shape suffixes: B sequences, T tokens, M visual tokens of the batch, L language width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from emollm.config import FoundationConfig, LoRAConfig, MVPConfig
from emollm.model.attached import AttachedMVP, SquareLayout, attach
from emollm.model.base import EmoLLMBase, MediaMismatchError, close
from emollm.model.families import Visual, blank, make_family
from emollm.model.foundations import load_mllm
from emollm.model.light import foundation_reference
from emollm.model.lora import inject_lora


@strict
class AttachedConfig(PreTrainedConfig):
    """The foundation's config as a dict with its `model_type`, MVP, LoRA; `foundations` as in `EmoLLMConfig`."""

    model_type = "emollm_attached"

    foundation_config: dict | None = None
    mvp: dict | None = None
    lora: dict | None = None
    full_language: bool = False
    max_side_px: int | None = None
    foundations: dict | None = None

    def foundation(self) -> Any:
        """The foundation's own config."""
        values = dict(self.foundation_config or {"model_type": "llava"})
        return AutoConfig.for_model(values.pop("model_type"), **values)

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        return self.foundation().get_text_config()


class AttachedEmoLLM(EmoLLMBase):
    """Forward: `visuals` (pictures and clips in the order of their places) fill the foundation's visual tokens."""

    config_class = AttachedConfig

    def __init__(self, config: AttachedConfig, foundation: PreTrainedModel | None = None) -> None:
        """With `foundation`, a pretrained one is taken in; without, one is made from the config."""
        super().__init__(config)
        own = config.foundation()
        made: Any = foundation if foundation is not None else AutoModelForImageTextToText.from_config(own)
        self.family = make_family(own, config.max_side_px)
        # In a list, because it is registered inside the foundation.
        self._mvp = [attach(made, MVPConfig(**(config.mvp or {})))]
        self.foundation = made
        self.place_ids = [own.image_token_id, getattr(own, "video_token_id", None)]
        self.post_init()
        if config.lora is not None:
            inject_lora(self.get_decoder(), LoRAConfig(**config.lora))

    @property
    def projector(self) -> AttachedMVP:
        """MVP, where it sits inside the foundation."""
        return self._mvp[0]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttachedMVP):
            close([module.content_out, module.relation_out])

    @classmethod
    def attached(
        cls, foundation: FoundationConfig, mvp: MVPConfig, lora: LoRAConfig | None, full_language: bool
    ) -> AttachedEmoLLM:
        """A model on a pretrained foundation. MVP and LoRA are as torch's current seed makes them."""
        made = load_mllm(foundation.mllm)
        config = AttachedConfig(
            foundation_config=made.config.to_dict(),
            mvp=mvp.model_dump(),
            lora=lora.model_dump(mode="json") if lora else None,
            full_language=full_language,
            max_side_px=foundation.max_side_px,
            foundations=foundation_reference(foundation),
        )
        model = cls(config, made)
        model.generation_config = made.generation_config
        return model

    @classmethod
    def from_parts(cls, config: Any, reference: dict[str, Any]) -> AttachedEmoLLM:
        return cls(config, load_mllm(reference["mllm"]))

    def get_input_embeddings(self) -> nn.Module:
        return self.foundation.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.foundation.lm_head

    def get_decoder(self) -> Any:
        return getattr(self.foundation.model, "language_model", None) or self.foundation.model.text_model

    def reset_projector(self, seeded: Callable[[str], object], scene_rms: float) -> None:
        """Initialise MVP's perspectives; the foundation's projection is left alone."""
        self.projector.reset_parameters(seeded)

    def projector_names(self) -> set[str]:
        """Names of MVP's own parameters, without the foundation's projection."""
        own = {id(p) for name, p in self.projector.named_parameters() if not name.startswith("scene.")}
        return {name for name, p in self.named_parameters() if id(p) in own}

    def trained_names(self) -> set[str]:
        """MVP's own parameters and LoRA's; with `full_language` all of the language model's."""
        names = super().trained_names()
        if self.config.full_language:
            parts = (self.get_decoder(), self.get_output_embeddings())
            language = {id(p) for part in parts for p in part.parameters()}
            names |= {name for name, p in self.named_parameters() if id(p) in language}
        return names

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visuals: Sequence[Visual] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        supervised_only: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `EmoLLM.forward`, with `visuals` for pictures. `position_ids` is (B, T), or (3, B, T) where the foundation
        counts time, rows and columns. Raises MediaMismatchError where visuals and places differ, and ValueError where
        the foundation counts rows and columns of visuals and `position_ids` does not."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self._with_visuals(input_ids, visuals or ())
        if self.family.needs_positions and visuals and (position_ids is None or position_ids.dim() == 2):
            raise ValueError(
                "with pictures this foundation needs position_ids (3, B, T), as the processor gives"
            )
        if self.family.needs_positions and position_ids is not None and position_ids.dim() == 2:
            position_ids = position_ids.expand(
                3, *position_ids.shape
            )  # behind the media all three go on alike
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

    def _with_visuals(self, input_ids: Tensor, visuals: Sequence[Visual]) -> Tensor:
        place_BT = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in self.place_ids:
            if token is not None:
                place_BT |= input_ids == token
        embeds_BTL = self.get_input_embeddings()(input_ids.masked_fill(place_BT, 0))
        places = int(place_BT.sum())
        tokens = torch.cat(self.visual_tokens(visuals)) if visuals else embeds_BTL[:0, 0]
        if not visuals and self.training:
            # Other ranks may have pictures: each must take part in gathering weights and in summing gradients.
            unseen = torch.cat(self.visual_tokens([blank(self.family)]))
            embeds_BTL = embeds_BTL + 0 * unseen.sum().to(embeds_BTL.dtype)
        if len(tokens) != places:
            raise MediaMismatchError(
                f"{len(visuals)} pictures and clips give {len(tokens)} visual tokens, but input_ids leave {places} places"
            )
        return embeds_BTL.masked_scatter(place_BT.unsqueeze(-1), tokens.to(embeds_BTL.dtype))

    def frozen_features(self, visuals: Sequence[Visual]) -> Any:
        """The mean of the foundation's own visual tokens of a sample, without MVP, as a NumPy vector (L)."""
        with self.projector.closed():
            tokens = torch.cat(self.family.tokens(self.foundation, visuals))
        return tokens.float().mean(0).cpu().numpy()

    def visual_tokens(self, visuals: Sequence[Visual]) -> list[Tensor]:
        """The visual tokens (M, L) of each picture or clip, MVP's part in them."""
        layout = self.projector.layout
        if not isinstance(layout, SquareLayout):
            return self.family.tokens(self.foundation, visuals)
        # The tower takes frames as pictures: only MVP knows which of them follow one another.
        layout.media = tuple(len(v.pixels) if v.kind == "video" else 0 for v in visuals)
        try:
            return self.family.tokens(self.foundation, visuals)
        finally:
            layout.media = ()


AutoConfig.register("emollm_attached", AttachedConfig, exist_ok=True)
AutoModelForImageTextToText.register(AttachedConfig, AttachedEmoLLM, exist_ok=True)
