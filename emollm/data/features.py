"""Features of the frozen towers, computed once per picture and sound and kept in memory.

Pictures and sounds go through the tower one at a time, so a feature does not depend on what else is in the batch, on the number
of workers, or on whether the run was resumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dataset_build.progress import Progress
from dataset_build.provenance import sha256_of_bytes
from emollm.data.collate import AnyProcessor, decode_pictures, decode_sounds, decode_visuals
from emollm.data.loader import Corpus
from emollm.model.base import EmoLLMBase
from emollm.model.emollm import EmoLLM
from emollm.model.families import Visual
from emollm.model.processor import EmoLLMProcessor


class Features(NamedTuple):
    """What the frozen towers make of a row's media: patch features (frames, P, D), pooled sounds (A, K, D); or None.

    For an attached foundation, whose tower runs with the model, `visuals` are the pictures as the tower takes them.
    """

    patches: Tensor | None
    heard: Tensor | None
    visuals: tuple[Visual, ...] = ()

    @property
    def n_bytes(self) -> int:
        tensors = [part for part in (self.patches, self.heard) if part is not None]
        own = sum(part.numel() * part.element_size() for part in tensors)
        return own + sum(visual.n_bytes for visual in self.visuals)


class FeatureStore:
    """Features by the digests of a row's media; at most `gib` of them are kept."""

    def __init__(self, gib: float) -> None:
        self.limit_bytes = int(gib * 2**30)
        self.used_bytes = 0
        self._kept: dict[str, Features] = {}

    def row(self, corpus: Corpus, number: int, model: EmoLLMBase, processor: AnyProcessor) -> Features:
        """Features of all media of a row, in order."""
        row = corpus.row(number)
        key = media_key(row)
        if not key:
            return Features(None, None)
        if key not in self._kept:
            features = compute(row, model, processor)
            if not self._keep(key, features):
                return features
        return self._kept[key]

    def fill(
        self,
        corpus: Corpus,
        numbers: Sequence[int],
        model: EmoLLMBase,
        processor: AnyProcessor,
        rank: int,
        world: int,
    ) -> None:
        """Compute the features of these rows, each on one rank, and share them among all ranks; as many as are kept."""
        if not self.limit_bytes:
            return
        first: dict[str, int] = {}
        for number in numbers:
            first.setdefault(media_key(corpus.row(number)), number)
        wanted = [(key, number) for key, number in sorted(first.items()) if key and key not in self._kept]
        mine = wanted[rank::world]
        computed: dict[str, Features] = {}
        room = (self.limit_bytes - self.used_bytes) / world
        with (
            Progress("looking at pictures", total=len(mine), unit="media")
            if mine and rank == 0
            else (contextlib.nullcontext()) as progress
        ):
            for key, number in mine:
                if room <= 0:  # more would be computed, sent to all ranks and thrown away
                    break
                computed[key] = compute(corpus.row(number), model, processor)
                room -= computed[key].n_bytes
                if progress is not None:
                    progress.advance()
        shares: list[Any] = [computed]
        if world > 1:
            shares = [None] * world
            dist.all_gather_object(shares, computed)
        for key, features in sorted(
            (pair for share in shares for pair in share.items()), key=lambda pair: pair[0]
        ):
            self._keep(key, features)

    def _keep(self, key: str, features: Features) -> bool:
        size = features.n_bytes
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        self._kept[key] = features
        return True


def media_key(row: dict[str, Any]) -> str:
    """What identifies a row's media: kind and digest of the stored bytes (clips of one file differ); empty without."""
    return "|".join(
        f"{medium['kind']}:{sha256_of_bytes(b''.join(medium['data']))}" for medium in row["media"] or []
    )


@torch.no_grad()
def compute(row: dict[str, Any], model: EmoLLMBase, processor: AnyProcessor) -> Features:
    """Features of a row's pictures and sounds, one forward pass each."""
    if not isinstance(processor, EmoLLMProcessor):
        return Features(None, None, tuple(decode_visuals(row, processor)))
    assert isinstance(model, EmoLLM)
    device = model.device
    patches = [
        model.patch_features(picture.unsqueeze(0).to(device)).cpu()
        for picture in decode_pictures(row, processor)
    ]
    sounds = decode_sounds(row, processor)
    return Features(torch.cat(patches) if patches else None, model.heard(sounds).cpu() if sounds else None)
