"""What every EmoLLM is, composed or attached: the language model over embedded tokens, the loss, what learns, saving.

A saved folder either holds all weights (`export`), or only the trained ones and a reference to the foundations with
their digests (what training writes; a few megabytes). `from_pretrained` loads both and gives the same logits.

Shape suffixes: B sequences, T tokens, L language width, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from emollm.config import FOUNDATION_PARTS
from emollm.model.light import TRAINED_FILE, find_foundation, load_trained
from emollm.model.lora import merge_lora
from emollm.model.packed_attention import Segments, mask_beside
from emollm.model.projector import ContentPerspective, RelationPerspective

IGNORED = -100  # a label that carries no loss


class MediaMismatchError(ValueError):
    """The pictures of a batch do not fill the places its token ids leave for them."""


class EmoLLMBase(PreTrainedModel, GenerationMixin):
    """A transformers model whose `forward` embeds tokens and media and calls `decode`.

    A family gives `forward`, the embeddings and the decoder (`get_input_embeddings`, `get_output_embeddings`,
    `get_decoder`), `projector_names`, `reset_projector` and `from_parts`.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def from_parts(cls, config: Any, reference: dict[str, Any]) -> EmoLLMBase:
        """A model over the pretrained foundations that a light folder refers to."""
        raise NotImplementedError

    def projector_names(self) -> set[str]:
        """Names of the parameters of the projectors, which have a learning rate of their own."""
        raise NotImplementedError

    def reset_projector(self, seeded: Callable[[str], object], scene_rms: float) -> None:
        """Initialise the projectors, every part from its own seed; see `MVP.reset_parameters`."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContentPerspective):
            nn.init.normal_(module.queries_KC)
        elif isinstance(module, RelationPerspective):
            nn.init.normal_(module.score_HZ)
            nn.init.zeros_(module.edge_bias_QH)

    def checkpoint_activations(self) -> None:
        """Compute the language model's activations again in the backward pass instead of keeping them."""
        decoder: Any = self.get_decoder()
        decoder.gradient_checkpointing_enable({"use_reentrant": False})

    def trained_names(self) -> set[str]:
        """Names of the parameters that learn: those of the projectors and of LoRA."""
        return self.projector_names() | {name for name, _ in self.named_parameters() if ".lora_" in name}

    def freeze_foundations(self) -> None:
        """Only what `trained_names` lists learns."""
        trained = self.trained_names()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

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
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The language model over embedded tokens (B, T, L), and the loss. See `forward`."""
        plain_mask = attention_mask is not None and attention_mask.dim() == 2
        if attention_mask is not None and plain_mask and position_ids is None and past_key_values is None:
            # So that left padding gives the logits of right padding.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if segments is not None:
            if attention_mask is not None or position_ids is None or past_key_values is not None:
                raise ValueError("segments come with position_ids, without attention_mask or past_key_values")
            attention_mask = mask_beside(segments, self.get_decoder(), inputs_embeds)
            kwargs, use_cache = {**kwargs, "segments": segments}, False
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
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> EmoLLMBase:  # type: ignore[override]
        """Load a folder that training or `export` wrote; float32, on the CPU, in evaluation mode.

        `vision`, `language` and `audio` point at the foundations where they have moved. Raises FoundationError where a
        foundation is missing or is not the one the model was trained on.
        """
        given = {part: kwargs.pop(part, None) for part in FOUNDATION_PARTS}
        assert cls.config_class is not None
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

    def merge_lora(self) -> None:
        """Fold LoRA into the language model's weights, in place; the config no longer mentions it."""
        merge_lora(self.get_decoder())
        self.config.lora = None


def close(outs: Sequence[nn.Linear | None]) -> None:
    """Set output projections of perspectives to zero, where there are any: step 0 is the scene alone."""
    for out in outs:
        if out is not None:
            nn.init.zeros_(out.weight)


def _mean_loss(logits_SV: Tensor, targets_S: Tensor, items: Tensor | int | None) -> Tensor:
    total = nn.functional.cross_entropy(logits_SV.float(), targets_S, ignore_index=IGNORED, reduction="sum")
    if items is None:
        items = (targets_S != IGNORED).sum().clamp(min=1)
    return total / items
