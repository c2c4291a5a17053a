"""Duplicates and leakage: which rows are twins, which groups must share a fold, which row of two gives way.

Decided once, globally, on hash columns only. Two notions of a twin:

same bytes  the same source file (and the same part of it). Always a twin, whatever the label.
near        perceptual hashes that differ in at most `near_bits` (default 4) of 64 bits.

What a near hash can say depends on how a source's pictures look, which each adapter declares:

photographs  near is near: two such photographs show the same thing.
drawings     emoji faces are variations of one yellow disc, and the hash hardly sees a mouth: at 4 bits it pairs the
             slightly smiling with the slightly frowning face of one vendor, and the imp with the smiling imp at 0.
             So drawings are near twins only if they also have the same sub-task and label: then the pair can give away
             an answer (hushed and astonished face), while a pair with different labels can only mislead.
cards        pictures of text: the hash sees the layout, not the words. Near says nothing; the same text gives the same
             bytes.

What follows from a twin:

* Sources split by fold: the two groups are **tied** into the same fold, before folds are drawn. No row is lost, and a
  tested emoji has no look-alike with its answer in training.
* Twins in different splits: the one nearer to training gives way (test stays before val before train; a row with a
  fold stays before val and train, because it is a test row once). It is listed in duplicates.parquet and leakage.json
  with its twin's uid and the rule. For same bytes this holds across sub-tasks and sources too.
* Twins in the same split: same bytes, text and sub-task → only the first by uid is kept. Near photographs with the
  same label → only the first. Near drawings stay: the vendors' drawings and the skin tones of one emoji are look-alikes
  by design, and keeping them apart from the test side is what matters. The same picture asked by two sub-tasks
  (emo_c and emo_o) is no duplicate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dataset_build.sources.base import Pictures
from dataset_build.splits import Place

_HASH_BITS = 64
_SPLIT_RANK = {"test": 0, "val": 2, "train": 3}
_FOLD_RANK = 1


class Row(NamedTuple):
    """The hash columns of one converted row."""

    uid: str
    source: str
    sub_task: str
    label: str
    group_key: str
    group: str
    pictures: Pictures
    content: str
    media: tuple[str, ...]
    phash: str


class Tie(NamedTuple):
    """Two groups that must share a fold, because of these two rows."""

    group_key: str
    groups: tuple[str, str]
    uids: tuple[str, str]
    rule: str


class Removal(NamedTuple):
    """`uid` gives way to `twin_uid`."""

    uid: str
    twin_uid: str
    rule: str
    across_splits: bool


def near_pairs(rows: Sequence[Row], near_bits: int) -> Iterator[tuple[Row, Row]]:
    """Pairs of rows whose hashes differ in at most `near_bits` bits, each pair once, in the order of `rows`.

    Two such hashes agree in at least one of `near_bits + 1` bands of bits, so only rows with a band in common are
    compared.
    """
    hashed = [(place, int(row.phash, 16)) for place, row in enumerate(rows) if row.phash]
    edges = [band * _HASH_BITS // (near_bits + 1) for band in range(near_bits + 2)]
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    values = dict(hashed)
    for place, value in hashed:
        partners: set[int] = set()
        for band, (low, high) in enumerate(zip(edges, edges[1:])):
            bucket = buckets[band, (value >> low) & ((1 << (high - low)) - 1)]
            partners.update(bucket)
            bucket.append(place)
        for partner in sorted(partners):
            if (values[partner] ^ value).bit_count() <= near_bits:
                yield rows[partner], rows[place]


def is_near_twin(one: Row, other: Row) -> bool:
    """Whether a pair with near hashes counts as a twin (see the module's text)."""
    if "cards" in (one.pictures, other.pictures):
        return False
    if "drawings" in (one.pictures, other.pictures):
        return (one.sub_task, one.label) == (other.sub_task, other.label)
    return True


def ties(rows: Sequence[Row], near_bits: int) -> list[Tie]:
    """The pairs of groups that a twin ties together, among the rows of sources split by fold."""
    rows = sorted(rows)
    found: dict[tuple[str, str, str], Tie] = {}

    def tie(one: Row, other: Row, rule: str) -> None:
        if one.group_key == other.group_key and one.group != other.group:
            low, high = sorted((one.group, other.group))
            found.setdefault(
                (one.group_key, low, high), Tie(one.group_key, (low, high), (one.uid, other.uid), rule)
            )

    for twins in _same_media(rows).values():
        for other in twins[1:]:
            tie(twins[0], other, "same_bytes")
    for one, other in near_pairs(rows, near_bits):
        if is_near_twin(one, other):
            tie(one, other, "near_duplicate")
    return sorted(found.values())


def tied_groups(found: Sequence[Tie]) -> dict[tuple[str, str], str]:
    """(group key, group) → the name of its tied group: the smallest group it is tied to, over any number of steps."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.get(node, node) != node:
            node = parent[node]
        return node

    for tie in found:
        low, high = sorted((root((tie.group_key, tie.groups[0])), root((tie.group_key, tie.groups[1]))))
        parent.setdefault(low, low)
        parent[high] = low
    return {node: root(node)[1] for node in parent}


def removals(rows: Sequence[Row], places: dict[str, Place], near_bits: int) -> list[Removal]:
    """The rows that give way to a twin, at most once each, in the order they are decided."""
    ranked = sorted(rows, key=lambda row: (_rank(places[row.uid]), row.uid))
    gone: dict[str, Removal] = {}
    for twins in _same_media(ranked).values():
        for place, row in enumerate(twins):
            kept = (twin for twin in twins[:place] if twin.uid not in gone)
            verdict = next((found for twin in kept if (found := _same_bytes(row, twin, places))), None)
            if verdict and row.uid not in gone:
                gone[row.uid] = verdict
    for stays, goes in near_pairs(ranked, near_bits):
        if stays.uid not in gone and goes.uid not in gone and is_near_twin(stays, goes):
            found = _near(goes, stays, places)
            if found:
                gone[goes.uid] = found
    return sorted(gone.values())


def _same_bytes(row: Row, twin: Row, places: dict[str, Place]) -> Removal | None:
    if places[row.uid] != places[twin.uid]:
        return Removal(row.uid, twin.uid, "same_bytes_across_splits", True)
    if row.content == twin.content and row.sub_task == twin.sub_task:
        return Removal(row.uid, twin.uid, "same_bytes", False)
    return None


def _near(row: Row, twin: Row, places: dict[str, Place]) -> Removal | None:
    if places[row.uid] != places[twin.uid]:
        return Removal(row.uid, twin.uid, "near_duplicate_across_splits", True)
    same = (row.sub_task, row.label) == (twin.sub_task, twin.label)
    if row.pictures == twin.pictures == "photographs" and same and row.media != twin.media:
        return Removal(row.uid, twin.uid, "near_duplicate", False)
    return None


def _same_media(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for identity in row.media:
            found[identity].append(row)
    return {identity: twins for identity, twins in found.items() if len(twins) > 1}


def _rank(place: Place) -> int:
    return _FOLD_RANK if place.fold is not None else _SPLIT_RANK[place.split]
