"""A saved model and its processor, whatever its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emollm.model.base import EmoLLMBase
from emollm.model.emollm import EmoLLM
from emollm.model.processor import EmoLLMProcessor


def load_model(folder: str, **foundations: str) -> EmoLLMBase:
    """The model in a folder that training or `export` wrote, for scoring; see `EmoLLMBase.from_pretrained`."""
    return _classes(folder)[0].from_pretrained(folder, **foundations)


def load_processor(folder: str) -> Any:
    """The processor that was saved with a model."""
    return _classes(folder)[1].from_pretrained(folder)


def _classes(folder: str) -> tuple[type[EmoLLMBase], Any]:
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") == "emollm_attached":
        from emollm.model.attached_model import AttachedEmoLLM
        from emollm.model.attached_processor import AttachedProcessor

        return AttachedEmoLLM, AttachedProcessor
    return EmoLLM, EmoLLMProcessor
