"""One protocol as one rank trains it: model, rows, plan, the stream of its steps, and batches from them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from emollm.config import LoaderConfig, TrainRecipe
from emollm.data.collate import AnyProcessor, Encoded
from emollm.data.emobench import DataError, read_digest
from emollm.data.encoder import Encoder
from emollm.data.features import Features, FeatureStore, compute
from emollm.data.index import RowIndex, make_index, stored_index
from emollm.data.packing import even_fit, pack
from emollm.data.plan import Step, plan_training, planned_rows
from emollm.data.rows import Rows
from emollm.data.stream import Steps, Stream, start_server
from emollm.model.base import EmoLLMBase
from emollm.model.emollm import EmoLLM
from emollm.model.foundations import read_config
from emollm.model.packed_attention import check_packable
from emollm.model.processor import EmoLLMProcessor
from emollm.train.align import align, aligned_rows
from emollm.train.build import initial_model, initial_processor, training_prompt

_LOOK_AT = 8  # rows that a decode worker brings at a time where there are no steps


@dataclass(frozen=True)
class Fold:
    """Everything one rank needs to train one protocol. Rows are spoken of by their number in `index`."""

    recipe: TrainRecipe
    number: int
    model: EmoLLMBase
    processor: AnyProcessor
    index: RowIndex
    rows: Rows
    features: FeatureStore
    steps: list[Step]
    rank: int
    world: int
    validation: RowIndex | None = None  # its validation rows, where the recipe stops early

    def stream(
        self, steps: Sequence[Sequence[Sequence[int]]], start: int = 0, loader: LoaderConfig | None = None
    ) -> Stream:
        """The rows of the micro-batches of `steps`; media come decoded where their features are not kept."""
        decode = np.array([bool(key) and key not in self.features for key in self.index.media_keys])
        return Stream(
            Steps(self.rows, steps, decode, self.index.shortest), loader or self.recipe.loader, start
        )

    def features_of(self, number: int, row: Encoded) -> Features:
        """The features of a row that a stream gave."""
        kept = self.features.get(self.index.media_keys[number])
        return kept or compute(row, self.model, self.processor)

    def look(
        self, batches: Sequence[Sequence[int]], loader: LoaderConfig | None = None
    ) -> Iterator[list[tuple[Encoded, Features]]]:
        """The rows of each batch, with their features."""
        with self.stream([[batch] for batch in batches], loader=loader) as stream:
            for numbers, (rows,) in zip(batches, stream):
                yield [(row, self.features_of(number, row)) for number, row in zip(numbers, rows)]

    def look_here(self, numbers: Sequence[int]) -> list[tuple[Encoded, Features]]:
        """A few rows with their features, read by this process."""
        if not numbers:
            return []
        return next(self.look([numbers], self.recipe.loader.model_copy(update={"decode_workers": 0})))


def row_encoder(recipe: TrainRecipe, processor: AnyProcessor | None = None) -> Encoder:
    """How the recipe's rows become tokens; loads the tokenizer where no `processor` is given."""
    foundation = recipe.foundation
    config = read_config(foundation.mllm or foundation.language, "language model").get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return Encoder(processor or initial_processor(recipe), limit, training_prompt(recipe))


def trainable(index: RowIndex, recipe: TrainRecipe, fold: int) -> RowIndex:
    """The training rows of a protocol. Raises DataError where rows that the recipe takes cannot be encoded."""
    rows = index.of_fold(fold)
    rows.refuse_errors({key for key, amount in recipe.mix.items() if amount == 0})
    return rows


def validating(index: RowIndex, recipe: TrainRecipe, fold: int) -> RowIndex | None:
    """The validation rows of a protocol where the recipe stops early, of what it trains on. Raises DataError where there
    are none, or where one cannot be encoded."""
    if recipe.early_stop is None:
        return None
    left_out = {key for key, amount in recipe.mix.items() if amount == 0}
    try:
        rows = index.of_fold(fold, "val")
    except DataError as error:
        raise DataError(
            f"early_stop: {error}; build it with splits.fold_val=true (or a source that has a val split), or set "
            "early_stop to null"
        ) from error
    rows.refuse_errors(left_out)
    kept = [key not in left_out for key in rows.keys]
    if not any(kept):
        raise DataError(
            f"early_stop: mix leaves out all validation rows of protocol {fold}; set early_stop to null"
        )
    return RowIndex(rows.table.filter(kept), rows.n_folds)


def prepare(recipe: TrainRecipe, fold: int, rank: int, world: int, features: FeatureStore) -> Fold:
    """Model, index, plan and reader of one protocol.

    Raises DataError, and PackingError where the recipe packs samples that its language model cannot tell apart.
    """
    start_server(recipe.loader)
    model, processor = initial_model(recipe, recipe.seed)
    if recipe.tune.packing:
        check_packable(model.get_decoder())
    encoder = row_encoder(recipe, processor)
    whole = shared_index(recipe, encoder, rank, world)
    index = trainable(whole, recipe, fold)
    steps = plan_training(index.keys, index.lengths, recipe, places=index.places, world_size=world, rank=rank)
    if rank == 0:
        print(
            f"fold {fold}: {len(index)} training rows, {len(steps)} steps of {recipe.tune.batch_size} rows",
            flush=True,
        )
        if recipe.rationales:
            said = Counter(index.column("rationale"))
            print(
                f"fold {fold}: rationales {recipe.rationales!r}: {said['used']} rows reason aloud, {said['too_long']} "
                f"left out because the sequence would be longer than {encoder.max_tokens} tokens",
                flush=True,
            )
    rows = Rows(recipe.data, index, encoder, recipe.loader)
    validation = validating(whole, recipe, fold)
    return Fold(recipe, fold, model, processor, index, rows, features, steps, rank, world, validation)


def shared_index(recipe: TrainRecipe, encoder: Encoder, rank: int, world: int) -> RowIndex:
    """The index in OUT, which rank 0 makes if nobody has. Raises DataError on all ranks where it cannot."""
    digest = read_digest(recipe.data)
    problem: list[Any] = [None]
    if rank == 0:
        try:
            make_index(recipe.data, recipe.out, encoder, digest)
        except (ValueError, OSError) as error:
            problem = [str(error)]
    if world > 1:
        dist.broadcast_object_list(problem, src=0)
    if problem[0]:
        raise DataError(problem[0])
    found = stored_index(recipe.data, recipe.out, encoder, digest)
    if found is None:
        raise DataError(
            f"{recipe.out}/index: rank {rank} does not find the index that rank 0 made; do all workers see this folder, "
            f"and the same tokenizer?"
        )
    return found


def look_at_pictures(state: Fold) -> None:
    """Compute the features of all media that the fold will see, shared among the ranks, as many as are kept."""
    look_at(state, _rows_looked_at(state))


def look_at(state: Fold, numbers: Sequence[int]) -> None:
    """The same for the media of these rows."""
    if state.features.limit_bytes:
        _fill(state, numbers)
    refuse_uneven_towers(state, numbers)


def _fill(state: Fold, numbers: Sequence[int]) -> None:
    first: dict[str, int] = {}
    for number in numbers:
        first.setdefault(state.index.media_keys[number], number)
    wanted = state.rows.in_reading_order(
        [number for key, number in first.items() if key and key not in state.features]
    )
    mine = wanted[state.rank :: state.world]
    batches = [mine[start : start + _LOOK_AT] for start in range(0, len(mine), _LOOK_AT)]
    with state.stream([[batch] for batch in batches]) as stream:
        state.features.fill(
            [state.index.media_keys[number] for number in mine],
            (row for (rows,) in stream for row in rows),
            state.model,
            state.processor,
            state.rank,
            state.world,
        )


def refuse_uneven_towers(state: Fold, numbers: Sequence[int]) -> None:
    """Raise DataError where a frozen tower would run over these rows in a step although its weights are spread over the ranks.

    Under ZeRO 3 every run of it gathers weights from all ranks, which have different numbers of pictures: they would
    wait for each other for ever. An attached foundation's tower runs once a batch on every rank.
    """
    recipe, keys = state.recipe, state.index.media_keys
    if recipe.foundation.family == "attached" or recipe.deepspeed.stage < 3 or state.world == 1:
        return
    unseen = sum(bool(keys[row]) and keys[row] not in state.features for row in numbers)
    if unseen:
        raise DataError(
            f"deepspeed.stage 3 with a composed foundation keeps the features of all media, but those of {unseen} rows do "
            f"not fit into tune.cache_gib {recipe.tune.cache_gib:g}; raise it, or use stage 2"
        )


def _rows_looked_at(state: Fold) -> list[int]:
    """Rows that any rank will see in either stage."""
    aligned = set(aligned_rows(state.index, state.recipe))
    return sorted(aligned.union(planned_rows(state.index.keys, state.recipe), [state.index.shortest]))


def align_fold(state: Fold) -> list[float]:
    """Stage 1; the loss of every step. An attached foundation's projector is aligned already."""
    if state.recipe.foundation.family == "attached":
        return []
    started = time.monotonic()
    model, processor = state.model, state.processor
    assert isinstance(model, EmoLLM) and isinstance(processor, EmoLLMProcessor)
    losses = align(model, processor, state.index, state.look, state.recipe)
    if losses and state.rank == 0:
        print(
            f"fold {state.number}: aligned pictures with label words in {len(losses)} steps, "
            f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {time.monotonic() - started:.1f} s",
            flush=True,
        )
    return losses


def make_batch(state: Fold, numbers: Sequence[int], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """The batch of some rows as a stream gave them, packed. `numbers` is empty where a filler stands in."""
    numbers = numbers or [state.index.shortest]
    tune = state.recipe.tune
    bins = even_fit(
        [len(row.input_ids) for row in encoded],
        tune.pack_tokens if tune.packing else 0,
        [state.index.pictures[number] for number in numbers],
        tune.pack_pictures,
    )
    batch = pack(encoded, bins, state.processor.pad_id)
    order = [i for one in bins for i in one]
    found = [state.features_of(numbers[i], encoded[i]) for i in order]
    if patches := [features.patches for features in found if features.patches is not None]:
        batch["patches"] = torch.cat(patches)
        batch["media_frames"] = [frames for i in order for frames in encoded[i].media_frames]
    if visuals := [visual for features in found for visual in features.visuals]:
        batch["visuals"] = visuals
    if heard := [features.heard for features in found if features.heard is not None]:
        batch["heard"] = torch.cat(heard)
    return {
        name: value.to(state.model.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
