"""Features of the frozen towers, computed once per picture and sound and kept in memory, as far as there is room.

Pictures and sounds go through the tower one at a time, so a feature does not depend on what else is in the batch, on the
number of workers, on whether the run was resumed, or on whether it was kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dataset_build.progress import Progress
from emollm.data.collate import AnyProcessor, Encoded
from emollm.data.emobench import DataError
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
    """Features by `encoder.media_key`; at most `gib` of them are kept. Filled before training, then only read."""

    def __init__(self, gib: float) -> None:
        self.limit_bytes = int(gib * 2**30)
        self.used_bytes = 0
        self._kept: dict[str, Features] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> Features | None:
        return self._kept.get(key)

    def fill(
        self,
        keys: Sequence[str],
        rows: Iterable[Encoded],
        model: EmoLLMBase,
        processor: AnyProcessor,
        rank: int,
        world: int,
    ) -> None:
        """Compute the features of these rows, this rank's share of them, and share them among all; as many as are kept.

        `rows`, with their media decoded, come in the order of their `keys`; only as many are taken as there is room for.
        Raises DataError on all ranks where one of them cannot read its rows.
        """
        if not self.limit_bytes:
            return
        computed: dict[str, Features] = {}
        problem = ""
        room = (self.limit_bytes - self.used_bytes) / world
        with (
            Progress("looking at pictures", total=len(keys), unit="media")
            if keys and rank == 0
            else contextlib.nullcontext()
        ) as progress:
            try:
                for key, row in zip(keys, rows):
                    computed[key] = _owned(compute(row, model, processor))
                    room -= computed[key].n_bytes
                    if progress is not None:
                        progress.advance()
                    if room <= 0:  # more would be computed, sent to all ranks and thrown away
                        break
            except DataError as error:
                problem = str(error)
        shares: list[Any] = [(computed, problem)]
        if world > 1:
            shares = [None] * world
            # Through the memory of the machines, also where ranks have GPUs: NCCL would need room for it in theirs.
            group = dist.new_group(backend="gloo")
            dist.all_gather_object(shares, (computed, problem), group=group)
            dist.destroy_process_group(group)
        if problems := [said for _, said in shares if said]:
            raise DataError("; ".join(problems))
        found = {key: features for share, _ in shares for key, features in share.items()}
        for key, features in sorted(found.items()):
            size = features.n_bytes
            if self.used_bytes + size <= self.limit_bytes:
                self.used_bytes += size
                self._kept[key] = features


def _owned(features: Features) -> Features:
    """Pictures from a decode worker are parts of one block of shared memory: kept, each would keep /dev/shm filled."""
    own = tuple(visual._replace(pixels=visual.pixels.clone()) for visual in features.visuals)
    return features._replace(visuals=own)


@torch.no_grad()
def compute(row: Encoded, model: EmoLLMBase, processor: AnyProcessor) -> Features:
    """Features of a row's decoded pictures and sounds, one forward pass each."""
    if not isinstance(processor, EmoLLMProcessor):
        return Features(None, None, tuple(row.visuals))
    assert isinstance(model, EmoLLM)
    device = model.device
    patches = [model.patch_features(picture.unsqueeze(0).to(device)).cpu() for picture in row.pictures]
    return Features(
        torch.cat(patches) if patches else None, model.heard(row.sounds).cpu() if row.sounds else None
    )
