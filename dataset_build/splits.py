"""Splits that keep groups whole: k folds, or test and val shares. Seeded, and independent of the order of the rows.

Three kinds of source (`sources.base.SplitMode`, chosen by the adapter or its options):

official  The split a record brings is kept. Where such a source has no val rows, val is carved from its train rows by
          group (`val_share` of them), never from test.
shares    Test and val shares by group, over all sources with the same group key at once: a text that two sources use
          lies in the same split of both.
folds     K-fold. Where the records bring the source's own folds, those are kept, however many there are; otherwise
          `folds` of them are drawn by group, over all sources with the same group key at once. A row's `fold` says in
          which protocol it is a test row: protocol k tests the rows of fold k and trains on all other rows of these
          sources, plus the train rows of sources without folds. On disk the folders are protocol 0: fold 0 lies in
          test, the others in train. Without `fold_val` folds have no val rows: nothing is selected on them. With it,
          protocol k validates on fold (k + 1) mod n of each source with n folds and trains on the rest, and fold 1 lies
          in the val folder.

A group lies in one place wherever this module draws. Where a source's own split or folds tear a group apart, that is
reported (`straddling`), not mended: scores on it would not be comparable otherwise.

The assignment is greedy over whole groups, the largest first, each to the bin that lacks most of the group's labels
for its share; that is the idea of scikit-learn's StratifiedGroupKFold, without its dependence on the row order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build.errors import BuildError
from dataset_build.schema import SPLITS

if TYPE_CHECKING:
    import numpy as np

    from dataset_build.index import Index

TRAIN, VAL, TEST = (SPLITS.index(name) for name in ("train", "val", "test"))


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
    fold_val: bool = False


@dataclass(frozen=True, eq=False)
class Places:
    """The place of every row: a code of `schema.SPLITS`, a fold (−1 for none); and the number of folds per source.

    `drawn` says of each fold source whether its folds were drawn here, so that its groups are whole.
    """

    split: np.ndarray
    fold: np.ndarray
    n_folds: dict[str, int]
    drawn: dict[str, bool]

    def of(self, row: int) -> Place:
        fold = int(self.fold[row])
        return Place(SPLITS[self.split[row]], None if fold < 0 else fold)

    def codes(self) -> np.ndarray:
        """One number per row, equal for rows in the same place."""
        return (self.fold.astype("int32") + 1) * len(SPLITS) + self.split

    def count(self, index: Index, chosen: np.ndarray) -> Counter[tuple[str, str]]:
        """(source, split) → how many of the chosen rows."""
        import numpy as np

        both = index.source[chosen].astype(np.int64) * len(SPLITS) + self.split[chosen]
        numbers, counts = np.unique(both, return_counts=True)
        return Counter(
            {
                (index.source_names[number // len(SPLITS)], SPLITS[number % len(SPLITS)]): int(count)
                for number, count in zip(numbers.tolist(), counts.tolist())
            }
        )


def assign(index: Index, shares: Shares, tied: Mapping[int, int] | None = None) -> Places:
    """The place of every row. `tied` maps the code of a group to that of the group it must share a fold with.

    Raises BuildError where a source that has official splits, or official folds, leaves a row without one.
    """
    import numpy as np

    split = np.full(len(index), TRAIN, np.int8)
    fold = np.full(len(index), -1, np.int16)
    group = _tied(index.group, tied or {})
    by_mode: dict[tuple[str, str], list[str]] = {}
    n_folds: dict[str, int] = {}
    drawn: dict[str, bool] = {}
    for name in index.source_names:
        mode, key, _ = index.facts[name]
        rows = index.rows_of([name])
        if mode == "official":
            split[rows] = _official(index, name, rows, group, shares)
        elif mode == "folds" and (index.fold[rows] >= 0).any():
            fold[rows], n_folds[name], drawn[name] = *_official_folds(index, name, rows), False
        else:
            by_mode.setdefault((mode, key), []).append(name)
    for (drawn_as, _), names in sorted(by_mode.items()):
        rows = index.rows_of(names)
        if drawn_as == "folds":
            bins = {str(number): 1 / shares.folds for number in range(shares.folds)}
            fold[rows] = [int(name) for name in _drawn(index, rows, group, bins, shares.seed)]
            n_folds |= dict.fromkeys(names, shares.folds)
            drawn |= dict.fromkeys(names, True)
        else:
            bins = {"train": 1 - shares.test_share - shares.val_share, "test": shares.test_share}
            bins |= {"val": shares.val_share} if shares.val_share else {}
            split[rows] = [SPLITS.index(name) for name in _drawn(index, rows, group, bins, shares.seed)]
    split[fold == 0] = TEST
    if shares.fold_val:
        _enough_folds(n_folds)
        split[fold == 1] = VAL
    return Places(split, fold, n_folds, drawn)


def straddling(index: Index, places: Places) -> list[dict[str, Any]]:
    """Groups that a source's own split or folds tear apart: per source, their number and that of their rows."""
    import numpy as np

    found = []
    codes = places.codes()
    for name in sorted(index.source_names):
        mode, key, _ = index.facts[name]
        if mode == "shares" or places.drawn.get(name):
            continue
        rows = index.rows_of([name])
        pairs = np.unique(np.stack([index.group[rows], codes[rows]]), axis=1)
        groups, counts = np.unique(pairs[0], return_counts=True)
        torn = groups[counts > 1]
        if len(torn):
            inside = rows[np.isin(index.group[rows], torn)]
            found.append(
                {
                    "source": name,
                    "group_key": key,
                    "groups": len(torn),
                    "of": len(groups),
                    "rows": len(inside),
                    "split_by": "official folds" if mode == "folds" else "official split",
                }
            )
    return found


def distribute(
    labels_of: Mapping[str, Mapping[str, int]], bins: Mapping[str, float], seed: int
) -> dict[str, str]:
    """The bin of each group, so that each bin gets about its share of each label.

    `labels_of` counts the labels of each group's rows; `bins` maps names to shares.
    """
    total: Counter[str] = Counter()
    for counts in labels_of.values():
        total.update(counts)
    filled: dict[str, Counter[str]] = {name: Counter() for name in bins}
    chosen: dict[str, str] = {}

    def lack(name: str, group: str) -> tuple[float, float, bytes]:
        """How much of the group's labels the bin still lacks; then of everything; then a seeded coin."""
        own = sum(
            count * (bins[name] - filled[name][label] / total[label]) / total[label]
            for label, count in sorted(labels_of[group].items())
        )
        everything = bins[name] * total.total() - filled[name].total()
        return round(own, 12), round(everything / (bins[name] or 1), 9), _coin(seed, group, name)

    sizes = {group: sum(counts.values()) for group, counts in labels_of.items()}
    for group in sorted(labels_of, key=lambda group: (-sizes[group], _coin(seed, group, ""))):
        best = max(bins, key=lambda name: lack(name, group))
        chosen[group] = best
        filled[best].update(labels_of[group])
    return chosen


def _official(index: Index, name: str, rows: np.ndarray, group: np.ndarray, shares: Shares) -> np.ndarray:
    import numpy as np

    split = index.split[rows]
    without = np.flatnonzero(split < 0)
    if len(without):
        raise BuildError(
            f"{index.uid(rows[without[0]])}: its source has official splits, but the record names none; mend the adapter"
        )
    train = np.flatnonzero(split == TRAIN)
    if shares.val_share and len(train) and not (split == VAL).any():
        bins = {"train": 1 - shares.val_share, "val": shares.val_share}
        split = split.copy()
        split[train] = [SPLITS.index(name) for name in _drawn(index, rows[train], group, bins, shares.seed)]
    return split


def _official_folds(index: Index, name: str, rows: np.ndarray) -> tuple[np.ndarray, int]:
    import numpy as np

    fold = index.fold[rows]
    without = np.flatnonzero(fold < 0)
    if len(without):
        raise BuildError(
            f"{index.uid(rows[without[0]])}: {name} publishes folds, but the record names none; mend the adapter (a row "
            "outside the published folds is a reject with reason source_rule)"
        )
    n_folds = int(fold.max()) + 1
    if n_folds < 2:
        raise BuildError(f"{name}: all its records name fold 0; with one fold there is nothing to train on")
    return fold, n_folds


def _enough_folds(n_folds: Mapping[str, int]) -> None:
    """With validation folds, two folds leave nothing to train on."""
    few = sorted(name for name, n in n_folds.items() if n < 3)
    if few:
        raise BuildError(
            f"splits.fold_val: {', '.join(few)} has 2 folds, one to test and one to validate on, and none to train on; "
            "set splits.fold_val=false"
        )


def _drawn(
    index: Index, rows: np.ndarray, group: np.ndarray, bins: Mapping[str, float], seed: int
) -> list[str]:
    """The bin of each of the rows, whole groups in one bin."""
    import numpy as np
    import pyarrow as pa

    pairs, counts = np.unique(np.stack([group[rows], index.label[rows]]), axis=1, return_counts=True)
    names = dict(zip(pairs[0].tolist(), index.group_names.take(pa.array(pairs[0])).to_pylist()))
    labels_of: dict[str, dict[str, int]] = {}
    for code, label, count in zip(*pairs.tolist(), counts.tolist()):
        labels_of.setdefault(names[code], {})[index.labels[label]] = count
    bin_of = distribute(labels_of, bins, seed)
    return [bin_of[names[code]] for code in group[rows].tolist()]


def _tied(group: np.ndarray, tied: Mapping[int, int]) -> np.ndarray:
    """The group codes with tied ones replaced."""
    import numpy as np

    if not tied:
        return group
    table = np.arange(int(group.max()) + 1, dtype=group.dtype)
    table[list(tied)] = list(tied.values())
    return table[group]


def _coin(seed: int, group: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{name}\x1f{group}".encode()).digest()
