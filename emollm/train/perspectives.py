"""How far MVP's perspectives have opened in training: each one's contribution relative to the scene's, over training rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emollm.config import MVPConfig
from emollm.model.attached_model import AttachedEmoLLM
from emollm.model.projector import MVP, SceneProjection

if TYPE_CHECKING:
    from emollm.train.fold import Fold


def of_composed(state: Fold, weights: dict[str, Tensor], most: int = 64) -> dict[str, float]:
    """Over up to `most` training rows with pictures, from the whole trained `weights`. Rank 0 calls this."""
    looked = state.look_here(_rows_with_pictures(state, most))
    config = state.model.config
    projector = MVP(
        SceneProjection(config.vision_config.hidden_size, config.text_config.hidden_size),
        config.vision_config.hidden_size,
        config.text_config.hidden_size,
        **MVPConfig(**config.mvp).model_dump(),
    )
    own = "projector."
    projector.load_state_dict(
        {name.removeprefix(own): value for name, value in weights.items() if name.startswith(own)}
    )
    found = [features.patches for _, features in looked if features.patches is not None]
    frames = [count for row, _ in looked for count in row.media_frames]
    return projector.opened(torch.cat(found), frames) if found else {}


def of_attached(state: Fold, most: int = 16) -> dict[str, float]:
    """The mean over the media of up to `most` rows, on the live model. Every rank calls this, on the same rows, because
    under ZeRO 3 each holds a part of the foundation's weights."""
    model = state.model.eval()
    assert isinstance(model, AttachedEmoLLM)
    shares: dict[str, list[float]] = {}
    for _, features in state.look_here(_rows_with_pictures(state, most)):
        for visual in features.visuals:
            opened = model.projector.opened(partial(model.visual_tokens, [visual]))
            for name, share in opened.items():
                shares.setdefault(name, []).append(share)
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _rows_with_pictures(state: Fold, most: int) -> list[int]:
    """At most `most` training rows with pictures, evenly over the index."""
    numbers = [n for n, pictures in enumerate(state.index.pictures) if pictures]
    return numbers[:: max(1, len(numbers) // most)][:most]
