"""All pairs of 64-bit hashes that differ in at most a few bits: exact, and fast for hundreds of thousands of them.

Two hashes that differ in at most `bits` bits agree in at least one of `bits + 1` bands of bits (pigeonhole; the first
step of multi-index hashing, Norouzi et al. 2012). So the values are sorted by each band in turn, and only those with
the same band are compared, a bounded number at a time. Values must be distinct: rows that share one are found by
sorting, and thousands of black frames are then a single value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HASH_BITS = 64
# Pairs compared at a time: about 15 MiB of temporary arrays, whatever the data.
_CHUNK_PAIRS = 1 << 18


def pairs(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (i, j), i < j, of all pairs of distinct uint64 `values` that differ in at most `bits` bits, sorted.

    Raises ValueError for values that are not distinct, or a `bits` outside 0 to 63.
    """
    import numpy as np

    if not 0 <= bits < HASH_BITS:
        raise ValueError(f"near_bits {bits} is outside 0 to {HASH_BITS - 1}")
    values = np.ascontiguousarray(values, dtype=np.uint64)
    if len(np.unique(values)) < len(values):
        raise ValueError("the hashes are not distinct; give each value once")
    masks = _band_masks(bits)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for band, mask in enumerate(masks):
        key = values & mask
        order = np.argsort(key, kind="stable").astype(np.int32)
        for one, other in _same_key(key[order]):
            left, right = order[one], order[other]
            differing = values[left] ^ values[right]
            near = np.bitwise_count(differing) <= bits
            for earlier in masks[:band]:  # a pair counts in the first band it agrees in
                near &= (differing & earlier) != 0
            if near.any():
                low, high = np.minimum(left[near], right[near]), np.maximum(left[near], right[near])
                found.append((low, high))
    if not found:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    pair = np.concatenate([low.astype(np.int64) * len(values) + high for low, high in found])
    pair.sort()
    return (pair // len(values)).astype(np.int32), (pair % len(values)).astype(np.int32)


def _band_masks(bits: int) -> list[np.uint64]:
    import numpy as np

    edges = [band * HASH_BITS // (bits + 1) for band in range(bits + 2)]
    return [np.uint64(((1 << (high - low)) - 1) << low) for low, high in zip(edges, edges[1:])]


def _same_key(ordered: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of all pairs with the same key in a sorted array, at most about `_CHUNK_PAIRS` at a time."""
    import numpy as np

    n = len(ordered)
    places = np.arange(n, dtype=np.int64)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    end = last[np.searchsorted(last, places)] + 1  # one behind the last with the same key
    partners = end - places - 1
    total = np.concatenate(([0], np.cumsum(partners)))
    start = 0
    while start < n:
        stop = int(np.searchsorted(total, total[start] + _CHUNK_PAIRS, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        counts = partners[start:stop]
        if n_pairs := int(counts.sum()):
            one = np.repeat(places[start:stop], counts)
            behind = np.arange(n_pairs) - np.repeat(total[start:stop] - total[start], counts)
            yield one, one + 1 + behind
        start = stop
