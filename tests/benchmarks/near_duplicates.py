"""Near-duplicate search over perceptual hashes: time and exactness, beside brute force in NumPy.

    python tests/benchmarks/near_duplicates.py

Three kinds of hashes: of pictures that have nothing to do with each other, with a share of planted near-duplicates;
skewed ones, as DCT hashes of real pictures are (the low bits of real ones agree far more often than chance); and rows of
which many share one hash (black frames). Brute force compares every pair, on a subset, and must find the same pairs there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dataset_build import dedup, near
from dataset_build.index import SourceFacts
from dataset_build.splits import Shares, assign
from tests.fixtures.index_rows import Row, from_rows


def independent(rows: int, draw: np.random.Generator) -> np.ndarray:
    """Random hashes; one in twenty is a near-duplicate of another one, in up to 4 bits."""
    values = draw.integers(0, 2**64, rows, dtype=np.uint64)
    return _with_company(values, draw)


def skewed(rows: int, draw: np.random.Generator) -> np.ndarray:
    """Hashes whose bits are mostly decided by one of 200 scenes, so that bands of bits repeat a lot."""
    scenes = draw.integers(0, 2**64, 200, dtype=np.uint64)
    noise = draw.integers(0, 2**64, (3, rows), dtype=np.uint64)
    values = scenes[draw.integers(0, len(scenes), rows)] ^ (
        noise[0] & noise[1]
    )  # a quarter of the bits differ
    return _with_company(values, draw)


def _with_company(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    chosen, models = draw.choice(len(values), (2, len(values) // 20), replace=False)
    values[chosen] = values[models]
    for _ in range(4):
        values[chosen] ^= np.uint64(1) << draw.integers(0, 64, len(chosen)).astype(np.uint64)
    return values


def brute_force(values: np.ndarray, bits: int) -> set[tuple[int, int]]:
    """All pairs within `bits`, one row against all behind it at a time."""
    found: set[tuple[int, int]] = set()
    for place in range(len(values) - 1):
        behind = np.flatnonzero(np.bitwise_count(values[place + 1 :] ^ values[place]) <= bits)
        found.update((place, place + 1 + int(other)) for other in behind)
    return found


def black_frames(rows: int) -> float:
    """Seconds of deciding on rows that all have one hash, half of them in test."""
    facts = {"s": SourceFacts("official", "k", "photographs")}
    listed = [
        Row(f"u{n}", split=("train", "test")[n % 2], media=(str(n),), phash="0" * 16) for n in range(rows)
    ]
    index = from_rows(listed, facts)
    places = assign(index, Shares(4, 0.3, 0, 1))
    started = time.perf_counter()
    removed = dedup.verdicts(index, places, dedup.Rules()).removed
    assert len(removed) == rows // 2
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--subset", type=int, default=20_000, help="rows that brute force compares")
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    print(f"{'hashes':<14}{'rows':>9}{'pairs':>10}{'seconds':>9}  brute force on {options.subset} rows")
    for kind in (independent, skewed):
        draw = np.random.default_rng(7)
        values = np.unique(kind(options.rows, draw))
        started = time.perf_counter()
        one, _ = near.pairs(values, options.bits)
        seconds = time.perf_counter() - started
        subset = draw.permutation(values)[: options.subset]
        started = time.perf_counter()
        ours = set(zip(*(side.tolist() for side in near.pairs(subset, options.bits))))
        middle = time.perf_counter()
        expected = brute_force(subset, options.bits)
        ended = time.perf_counter()
        if ours != expected:
            raise SystemExit(f"{kind.__name__}: {len(ours)} pairs, brute force finds {len(expected)}")
        print(
            f"{kind.__name__:<14}{len(values):>9}{len(one):>10}{seconds:>9.2f}  same {len(expected)} pairs, "
            f"{ended - middle:.2f} s against {middle - started:.3f} s: {(ended - middle) / (middle - started):.0f} x"
        )
    print(
        f"{'one hash':<14}{options.rows:>9}{'–':>10}{black_frames(options.rows):>9.2f}  rows decided one by one"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
