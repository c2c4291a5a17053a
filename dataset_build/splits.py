"""Splits that keep groups whole: k folds, or test and val shares. Seeded, and independent of the order of the rows.

Three kinds of source (`sources.base.SplitMode`):

official  The split a record brings is kept. Where such a source has no val rows, val is carved from its train rows by
          group (`val_share` of them).
shares    Test and val shares by group, over all sources with the same group key at once: a text that two sources use
          lies in the same split of both.
folds     K-fold by group, over all sources with the same group key at once. A row's `fold` says in which protocol it
          is a test row: protocol k tests the rows of fold k and trains on all other rows of these sources, plus the
          train rows of sources without folds. On disk the folders are protocol 0: fold 0 lies in test, the others in
          train. Folds have no val rows: nothing is selected on them.

The assignment is greedy over whole groups, the largest first, each to the bin that lacks most of the group's labels
for its share; that is the idea of scikit-learn's StratifiedGroupKFold, without its dependence on the row order.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dataset_build.errors import BuildError
from dataset_build.sources.base import SplitMode


class Row(NamedTuple):
    """What a split needs to know of a row. `group` is already the tied group where groups were tied together."""

    uid: str
    source: str
    mode: SplitMode
    split: str | None  # the official one
    group_key: str
    group: str
    label: str  # "sub_task/label": what the bins are balanced over


class Place(NamedTuple):
    """Where a row goes."""

    split: str
    fold: int | None = None


class Shares(NamedTuple):
    """The split section of the recipe, with its seed."""

    folds: int
    test_share: float
    val_share: float
    seed: int


def assign(rows: Sequence[Row], shares: Shares) -> dict[str, Place]:
    """The place of every row, by uid. Raises BuildError where an official source names no split."""
    places: dict[str, Place] = {}
    for key in sorted({row.group_key for row in rows if row.mode == "folds"}):
        chosen = [row for row in rows if row.mode == "folds" and row.group_key == key]
        bins = {str(fold): 1 / shares.folds for fold in range(shares.folds)}
        fold_of = distribute(chosen, bins, shares.seed)
        for row in chosen:
            fold = int(fold_of[row.group])
            places[row.uid] = Place("test" if fold == 0 else "train", fold)
    for key in sorted({row.group_key for row in rows if row.mode == "shares"}):
        chosen = [row for row in rows if row.mode == "shares" and row.group_key == key]
        bins = {"train": 1 - shares.test_share - shares.val_share, "test": shares.test_share}
        bins |= {"val": shares.val_share} if shares.val_share else {}
        split_of = distribute(chosen, bins, shares.seed)
        places |= {row.uid: Place(split_of[row.group]) for row in chosen}
    for source in sorted({row.source for row in rows if row.mode == "official"}):
        places |= _official([row for row in rows if row.source == source], shares)
    return places


def _official(rows: Sequence[Row], shares: Shares) -> dict[str, Place]:
    without = next((row for row in rows if row.split is None), None)
    if without is not None:
        raise BuildError(
            f"{without.uid}: its source has official splits, but the record names none; mend the adapter"
        )
    places = {row.uid: Place(str(row.split)) for row in rows}
    train = [row for row in rows if row.split == "train"]
    if shares.val_share and train and not any(row.split == "val" for row in rows):
        split_of = distribute(train, {"train": 1 - shares.val_share, "val": shares.val_share}, shares.seed)
        places |= {row.uid: Place(split_of[row.group]) for row in train}
    return places


def distribute(rows: Iterable[Row], bins: Mapping[str, float], seed: int) -> dict[str, str]:
    """The bin of each group, so that each bin gets about its share of each label. `bins` maps names to shares."""
    labels_of: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        labels_of[row.group][row.label] += 1
    total: Counter[str] = Counter()
    for counts in labels_of.values():
        total.update(counts)
    filled: dict[str, Counter[str]] = {name: Counter() for name in bins}
    chosen: dict[str, str] = {}

    def lack(name: str, group: str) -> tuple[float, float, bytes]:
        """How much of the group's labels the bin still lacks; then of everything; then a seeded coin."""
        own = sum(
            count * (bins[name] - filled[name][label] / total[label]) / total[label]
            for label, count in labels_of[group].items()
        )
        everything = bins[name] * total.total() - filled[name].total()
        return round(own, 12), round(everything / (bins[name] or 1), 9), _coin(seed, group, name)

    for group in sorted(labels_of, key=lambda group: (-labels_of[group].total(), _coin(seed, group, ""))):
        best = max(bins, key=lambda name: lack(name, group))
        chosen[group] = best
        filled[best].update(labels_of[group])
    return chosen


def _coin(seed: int, group: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{name}\x1f{group}".encode()).digest()
