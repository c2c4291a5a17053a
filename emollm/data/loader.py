"""The rows of a protocol, and the plan that says which rank sees which of them in which step.

The plan is a pure function of (rows, seed, epoch, world size): every row of an epoch is seen exactly once over all
ranks, whatever their number, and a run resumes by starting at the next step. Ranks left without rows by an uneven
batch still take part, with empty micro-batches.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import storage
from dataset_build.schema import SPLITS
from emollm.data import folds
from emollm.data.collate import Encoded, encode_text

if TYPE_CHECKING:
    import pyarrow

    from emollm.model.processor import EmoLLMProcessor
    from emollm.prompting import TrainingPrompt


class DataError(ValueError):
    """An EmoBench folder that cannot be trained on; the message names file and remedy."""


class Step(NamedTuple):
    """What one rank does in one optimizer step: its micro-batches, each a tuple of row numbers, possibly empty."""

    epoch: int
    micro_batches: tuple[tuple[int, ...], ...]


class Corpus:
    """Training rows of one protocol in a fixed order (by uid), with their texts encoded; media stay encoded bytes."""

    def __init__(
        self,
        table: pyarrow.Table,
        processor: EmoLLMProcessor,
        max_tokens: int | None = None,
        training: TrainingPrompt | None = None,
    ) -> None:
        self.table = table
        self.keys = [
            f"{source}/{task}" for source, task in zip(_column(table, "source"), _column(table, "sub_task"))
        ]
        light = table.drop_columns(["media"])
        kinds = table.column("media").to_pylist()
        self.encoded: list[Encoded] = []
        for row, media in zip(light.to_pylist(), kinds):
            self.encoded.append(
                encode_text(
                    {**row, "media": media},
                    processor,
                    supervise=True,
                    max_tokens=max_tokens,
                    training=training,
                )
            )
        self.lengths = [len(row.input_ids) for row in self.encoded]

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, number: int) -> dict[str, Any]:
        """One row as a plain dict, media included."""
        return self.table.slice(number, 1).to_pylist()[0]


def _column(table: pyarrow.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def read_digest(data: str) -> str:
    """The digest of a finished EmoBench. Raises DataError where there is none."""
    path = storage.join(data, "manifest.json")
    if not storage.exists(path):
        raise DataError(f"{path}: not there, so {data} is no finished EmoBench; build it first")
    digest = storage.read_json(path).get("digest")
    if not isinstance(digest, str):
        raise DataError(f"{path}: has no digest; build EmoBench again")
    return digest


def read_table(data: str, splits: Sequence[str], columns: Sequence[str] | None = None) -> pyarrow.Table:
    """The rows of these splits, sorted by uid."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for split in splits:
        for name in storage.list_files(storage.join(data, split)):
            if name.endswith(".parquet"):
                with storage.open_read(storage.join(data, split, name)) as stream:
                    tables.append(pq.read_table(stream, columns=list(columns) if columns else None))
    if not tables:
        raise DataError(f"{data}: holds no Parquet files in {', '.join(splits)}; build EmoBench first")
    return pa.concat_tables(tables).sort_by("uid")


def available_folds(data: str) -> list[int]:
    """The protocols this EmoBench has: 0..K-1 where sources are cross-validated, else just 0."""
    found = {fold for fold in _column(read_table(data, SPLITS, ["uid", "fold"]), "fold") if fold is not None}
    return sorted(found) or [0]


def training_table(data: str, fold: int, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """The training rows of protocol `fold`: rows of other folds, and of split train where a row has no fold.

    Where this EmoBench validates on folds (`emollm.data.folds`), the protocol's validation fold is left out too.
    """
    wanted = list(dict.fromkeys([*columns, "uid", "source", "fold", "split"])) if columns else None
    table = read_table(data, SPLITS, wanted)
    manifest = storage.join(data, "manifest.json")
    n_folds = folds.validating_folds(storage.read_json(manifest)) if storage.exists(manifest) else {}
    keep = [
        folds.part(fold, split, row_fold, n_folds.get(source)) == "train"
        for source, row_fold, split in zip(
            _column(table, "source"), _column(table, "fold"), _column(table, "split")
        )
    ]
    chosen = table.filter(keep)
    if chosen.num_rows == 0:
        raise DataError(f"{data}: protocol {fold} has no training rows")
    return chosen


def epoch_rows(keys: Sequence[str], mix: Mapping[str, Any], seed: int, epoch: int) -> list[int]:
    """The row numbers of one epoch in the order they are seen.

    `mix` says how many rows of a key an epoch takes (a number, a share, or "all"). The choice walks through a shuffled
    list and goes on where the last epoch stopped, so over the epochs all rows are taken equally often, give or take one.
    Raises DataError where `mix` names a key that is not in the data.
    """
    if unknown := sorted(set(mix) - set(keys)):
        raise DataError(f"mix names {', '.join(unknown)}, but the data hold {', '.join(sorted(set(keys)))}")
    chosen: list[int] = []
    for key in sorted(set(keys)):
        rows = [number for number, other in enumerate(keys) if other == key]
        amount = mix.get(key, "all")
        if isinstance(amount, float):
            amount = round(amount * len(rows))
        count = len(rows) if amount == "all" else min(int(amount), len(rows))
        walk = list(rows)
        random.Random(f"{seed}/mix/{key}").shuffle(walk)
        chosen += [walk[(epoch * count + i) % len(walk)] for i in range(count)]
    random.Random(f"{seed}/order/{epoch}").shuffle(chosen)
    return chosen


def plan_epoch(
    rows: Sequence[int],
    lengths: Sequence[int],
    *,
    epoch: int,
    batch_size: int,
    micro_batch: int,
    world_size: int,
    rank: int,
) -> list[Step]:
    """The steps of `rank` in one epoch. Step s of all ranks together holds rows[s·batch_size : (s+1)·batch_size].

    Inside a step rows are dealt to the ranks by length, back and forth, so that all have about the same work and their
    numbers of rows differ by at most one. Every rank has the same number of micro-batches in every step.
    """
    per_rank = -(-batch_size // world_size)
    count = -(-per_rank // micro_batch)
    steps = []
    for start in range(0, len(rows), batch_size):
        by_length = sorted(rows[start : start + batch_size], key=lambda number: (-lengths[number], number))
        mine = [number for place, number in enumerate(by_length) if _dealt_to(place, world_size) == rank]
        batches = tuple(tuple(mine[i * micro_batch : (i + 1) * micro_batch]) for i in range(count))
        steps.append(Step(epoch, batches))
    return steps


def _dealt_to(place: int, world_size: int) -> int:
    """Back and forth: 0 1 2 2 1 0 0 1 2 ..."""
    turn, seat = divmod(place, world_size)
    return seat if turn % 2 == 0 else world_size - 1 - seat


def plan_training(
    keys: Sequence[str],
    lengths: Sequence[int],
    *,
    mix: Mapping[str, Any],
    seed: int,
    epochs: int,
    batch_size: int,
    micro_batch: int,
    world_size: int,
    rank: int,
) -> list[Step]:
    """All steps of `rank`, epoch after epoch; a run that has done s steps goes on at steps[s]."""
    return [
        step
        for epoch in range(epochs)
        for step in plan_epoch(
            epoch_rows(keys, mix, seed, epoch),
            lengths,
            epoch=epoch,
            batch_size=batch_size,
            micro_batch=micro_batch,
            world_size=world_size,
            rank=rank,
        )
    ]
