"""Which rank sees which rows in which step: a pure function of the index, the recipe and the world size.

Every row of an epoch is seen exactly once over all ranks, whatever their number; the rows of a step over all ranks
together do not depend on it. A run resumes by starting at the next step. Ranks left without rows by an uneven batch
still take part, with empty micro-batches.

The order of an epoch suits files that are read from one end to the other (S3): rows are mixed only with those of a few
row groups, of a few files, at a time (`in_windows`). A data set that is no larger than one such window is mixed whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from emollm.config import LoaderConfig, TrainRecipe
from emollm.data.emobench import DataError

# Where a row lies: the number of its file, and of the row group in it.
Place = tuple[int, int]


class Step(NamedTuple):
    """What one rank does in one optimizer step: its micro-batches, each a tuple of row numbers, possibly empty."""

    epoch: int
    micro_batches: tuple[tuple[int, ...], ...]


def epoch_rows(
    keys: Sequence[str],
    mix: Mapping[str, Any],
    seed: int,
    epoch: int,
    *,
    places: Sequence[Place] = (),
    loader: LoaderConfig | None = None,
) -> list[int]:
    """The row numbers of one epoch in the order they are seen.

    `mix` says how many rows of a key (`source/sub_task`) an epoch takes. A whole number: so many, at most all. A number
    with a decimal point, w: round(w·n) of the key's n rows; beyond 1.0 rows come more than once. "all": each once.

    The choice walks round a shuffled list of the key's rows and goes on where the last epoch stopped. So with c rows of
    a key in an epoch, each of its n rows is taken ⌊c/n⌋ or ⌈c/n⌉ times in any epoch, and ⌊e·c/n⌋ or ⌈e·c/n⌉ times
    in the first e epochs together: equally often, give or take one.

    With `places` and `loader` many rows are mixed in windows, else all with all (`mixed`).
    Raises DataError where `mix` names a key that is not in the data, or leaves no rows.
    """
    numbers: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, []).append(number)
    if unknown := sorted(set(mix) - set(numbers)):
        raise DataError(f"mix names {', '.join(unknown)}, but the data hold {', '.join(sorted(numbers))}")
    chosen: list[int] = []
    for key in sorted(numbers):
        walk = numbers[key]
        amount = mix.get(key, "all")
        if isinstance(amount, float):
            count = round(amount * len(walk))
        else:
            count = len(walk) if amount == "all" else min(int(amount), len(walk))
        random.Random(f"{seed}/mix/{key}").shuffle(walk)
        chosen += [walk[(epoch * count + i) % len(walk)] for i in range(count)]
    if not chosen:
        raise DataError("mix takes no rows at all; give at least one source/sub_task more than 0")
    return mixed(
        chosen, places, loader or LoaderConfig(shuffle_rows=0), random.Random(f"{seed}/order/{epoch}")
    )


def mixed(
    rows: Sequence[int], places: Sequence[Place], loader: LoaderConfig, shuffle: random.Random
) -> list[int]:
    """The rows in random order: all with all where there are few, or `loader.shuffle_rows` is 0, else in windows."""
    if 0 < loader.shuffle_rows < len(rows):
        return list(in_windows(rows, places, loader.shuffle_rows, loader.shuffle_files, shuffle))
    order = list(rows)
    shuffle.shuffle(order)
    return order


def in_windows(
    rows: Sequence[int], places: Sequence[Place], window_rows: int, window_files: int, shuffle: random.Random
) -> Iterable[int]:
    """The rows in an order in which reading touches few row groups, and few files, at a time.

    Files are shuffled; of `window_files` at a time all row groups are shuffled; and of those as many at a time as
    hold `window_rows` of the rows (the last one whole) have their rows shuffled. Every row comes as often as it is in
    `rows`.
    """
    groups: dict[int, dict[int, list[int]]] = {}
    for row in rows:
        file, group = places[row]
        groups.setdefault(file, {}).setdefault(group, []).append(row)
    files = sorted(groups)
    shuffle.shuffle(files)
    for start in range(0, len(files), window_files):
        together = [
            groups[file][group]
            for file in files[start : start + window_files]
            for group in sorted(groups[file])
        ]
        shuffle.shuffle(together)
        window: list[int] = []
        for number, part in enumerate(together):
            window += part
            if len(window) >= window_rows or number == len(together) - 1:
                shuffle.shuffle(window)
                yield from window
                window = []


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
    recipe: TrainRecipe,
    *,
    places: Sequence[Place],
    world_size: int,
    rank: int,
) -> list[Step]:
    """All steps of `rank`, epoch after epoch; a run that has done s steps goes on at steps[s]."""
    tune = recipe.tune
    return [
        step
        for epoch in range(tune.epochs)
        for step in plan_epoch(
            epoch_rows(keys, recipe.mix, recipe.seed, epoch, places=places, loader=recipe.loader),
            lengths,
            epoch=epoch,
            batch_size=tune.batch_size,
            micro_batch=tune.micro_batch,
            world_size=world_size,
            rank=rank,
        )
    ]


def planned_rows(keys: Sequence[str], recipe: TrainRecipe) -> list[int]:
    """The row numbers that any step of any rank will see, ascending."""
    tune = recipe.tune
    return sorted(
        {row for epoch in range(tune.epochs) for row in epoch_rows(keys, recipe.mix, recipe.seed, epoch)}
    )
