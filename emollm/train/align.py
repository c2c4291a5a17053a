"""Stage 1: bring visual tokens near the words for what they show. Supervised, and without a language-model forward.

Only the scene projection is trained here; content and relation stay closed until stage 2. The mean visual token of a sample is pulled towards the language model's input embedding of its label word and away
from those of the other labels of its sub-task: cross-entropy over cosine similarities divided by a temperature. It
uses the labels of the training rows only. Without this stage a small language model learns nothing from the pictures
in a short run.

Shape suffixes: B rows of a batch, L width of the language model, K labels of a sub-task.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from emollm.config import LoaderConfig, TrainRecipe
from emollm.data.collate import Encoded
from emollm.data.features import Features
from emollm.data.index import RowIndex
from emollm.data.plan import mixed
from emollm.model.emollm import EmoLLM
from emollm.model.processor import EmoLLMProcessor


def align(
    model: EmoLLM,
    processor: EmoLLMProcessor,
    index: RowIndex,
    look: Callable[[list[list[int]]], Iterator[list[tuple[Encoded, Features]]]],
    recipe: TrainRecipe,
) -> list[float]:
    """Train MVP in place; returns the loss of every step. Deterministic: every rank gets the same weights.

    `look` gives the rows of each batch of row numbers, with their features.
    """
    config, answers, keys = recipe.align, index.column("answer"), index.keys
    rows = aligned_rows(index, recipe)
    if not rows or config.steps == 0:
        return []
    labels = {key: sorted({answers[n] for n in rows if keys[n] == key}) for key in {keys[n] for n in rows}}
    words = {word: word_embedding(model, processor, word) for group in labels.values() for word in group}
    tables = {key: torch.stack([words[word] for word in group]) for key, group in labels.items()}
    centre_L = torch.stack(list(words.values())).mean(0)
    scene = model.projector.scene
    optimizer = torch.optim.AdamW(
        scene.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    order = _endless(rows, index, recipe.loader, recipe.seed)
    batches = [[next(order) for _ in range(min(config.batch_size, len(rows)))] for _ in range(config.steps)]
    losses = []
    for step, (batch, found) in enumerate(zip(batches, look(batches))):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(
                1.0, (step + 1) / 10, (config.steps - step) / (config.steps * 0.5)
            )
        pooled = [_pooled_patches(model, row, features) for row, features in found]
        sizes = [len(part) for part in pooled]
        visual_ML = scene(torch.cat(pooled))
        mean_BL = torch.stack([part.mean(0) for part in visual_ML.split(sizes)])
        terms = []
        for position, number in enumerate(batch):
            key = keys[number]
            target = labels[key].index(answers[number])
            # Word embeddings share a large common direction; without it the cosines tell the words apart.
            cosine_K = nn.functional.cosine_similarity(
                mean_BL[position] - centre_L, tables[key] - centre_L, dim=-1
            )
            terms.append(nn.functional.cross_entropy(cosine_K / config.temperature, torch.tensor(target)))
        loss = torch.stack(terms).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(scene.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
    return losses


def aligned_rows(index: RowIndex, recipe: TrainRecipe) -> list[int]:
    """The rows with pictures of the aligned sub-tasks, without those that `mix` leaves out of the training."""
    left_out = {key for key, amount in recipe.mix.items() if amount == 0}
    tasks, keys = index.column("sub_task"), index.keys
    return [
        n
        for n, task in enumerate(tasks)
        if task in recipe.align.sub_tasks and index.pictures[n] and keys[n] not in left_out
    ]


@torch.no_grad()
def word_embedding(model: EmoLLM, processor: EmoLLMProcessor, word: str) -> Tensor:
    """The mean input embedding (L) of the tokens of a label word, as it stands in an answer."""
    ids = processor.answer_ids(word)[:-1]
    return model.get_input_embeddings()(torch.tensor(ids)).float().mean(0)


@torch.no_grad()
def _pooled_patches(model: EmoLLM, row: Encoded, features: Features) -> Tensor:
    """A row's patch features as the scene projection takes them: averaged to its visual tokens. (M, vision width)"""
    assert features.patches is not None, "only rows with pictures are aligned"
    return model.projector.pool(features.patches, row.media_frames)


def _endless(rows: Sequence[int], index: RowIndex, loader: LoaderConfig, seed: int) -> Iterator[int]:
    for turn in itertools.count():
        yield from mixed(rows, index.places, loader, random.Random(f"{seed}/align/{turn}"))
