"""LoRA (arXiv 2106.09685) in a language model, through peft."""

from __future__ import annotations

from torch import nn

from emollm.config import LoRAConfig


def inject_lora(language_model: nn.Module, lora: LoRAConfig) -> None:
    """Put LoRA into the layers of a language model that `lora.targets` names, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", target_modules=list(lora.targets)
    )
    inject_adapter_in_model(config, language_model)


def merge_lora(language_model: nn.Module) -> None:
    """Fold LoRA into the weights it stands beside, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(language_model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(language_model.get_submodule(parent), child, layer.get_base_layer())
