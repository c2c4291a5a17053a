"""Two baselines that know no model: chance, and the training row whose picture looks most alike.

The neighbour is found by the 64-bit perceptual hashes that EmoBench stores with every picture (of a clip's middle
frame): the fewest differing bits count. It is the same for every model, costs no decoding, and shows what copying
the label of a near-duplicate would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_bytes
from emollm.evaluate.protocol import EvaluationError, Row, is_training_row, protocol_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Pairs of hashes compared at once; bounds memory at 64 MB.
_MAX_PAIRS = 8_000_000


def random_answers(rows: Sequence[Row], asked: Sequence[Row]) -> list[str]:
    """For each asked row one of its options by the hash of its uid; for open questions one of the source's labels."""
    labels: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        labels.setdefault((row.source, row.sub_task), set()).add(row.answer)
    answers = []
    for row in asked:
        choices = row.options or sorted(labels[row.source, row.sub_task])
        draw = int(sha256_of_bytes(f"random baseline\x1f{row.uid}".encode())[:16], 16)
        answers.append(choices[draw % len(choices)])
    return answers


def nearest_neighbour_answers(data: str, rows: Sequence[Row], asked: Sequence[Row]) -> list[str | None]:
    """For each asked row the answer of the most similar training row of its source and sub-task.

    Of equally similar ones the most frequent answer, then the first by name. A source without training rows takes the
    sub-task's; a row without a picture takes the most frequent answer; None where a sub-task has no training rows.
    """
    hash_of = read_hashes(data, rows)
    found: dict[str, str | None] = {}
    groups: dict[tuple[int, str, str], list[Row]] = {}
    for row in asked:
        groups.setdefault((protocol_of(row), row.source, row.sub_task), []).append(row)
    for (protocol, source, sub_task), mine in groups.items():
        of_task = [row for row in rows if row.sub_task == sub_task and is_training_row(row, protocol)]
        train = [row for row in of_task if row.source == source] or of_task
        found.update(zip((row.uid for row in mine), _nearest(mine, train, hash_of), strict=True))
    return [found[row.uid] for row in asked]


def _nearest(asked: Sequence[Row], train: Sequence[Row], hash_of: dict[str, int]) -> list[str | None]:
    import numpy as np

    if not train:
        return [None] * len(asked)
    frequent = _first_by_count(Counter(row.answer for row in train))
    seen = [row for row in train if row.uid in hash_of]
    labels = sorted({row.answer for row in seen})
    place = {label: number for number, label in enumerate(labels)}
    label_N = np.array([place[row.answer] for row in seen], dtype=np.int64)
    hash_N = np.array([hash_of[row.uid] for row in seen], dtype=np.uint64)
    number_of = {row.uid: number for number, row in enumerate(seen)}
    with_hash = [row for row in asked if row.uid in hash_of]
    answers: dict[str, str] = {}
    step = max(1, _MAX_PAIRS // max(1, len(seen)))
    for start in range(0, len(with_hash) if len(seen) else 0, step):
        part = with_hash[start : start + step]
        hash_M = np.array([hash_of[row.uid] for row in part], dtype=np.uint64)
        distance_MN = np.bitwise_count(hash_M[:, None] ^ hash_N[None, :]).astype(np.int16)
        for row, distance_N in zip(part, distance_MN, strict=True):
            if row.uid in number_of:  # asked of the training rows themselves: not of its own picture
                distance_N[number_of[row.uid]] = 999
            answers[row.uid] = _vote(distance_N, label_N, labels)
    return [answers.get(row.uid, frequent) for row in asked]


def _vote(distance_N: NDArray[np.int16], label_N: NDArray[np.int64], labels: Sequence[str]) -> str:
    counts = Counter(int(label) for label in label_N[distance_N == distance_N.min()])
    return _first_by_count(Counter({labels[number]: count for number, count in counts.items()}))


def _first_by_count(counts: Counter[str]) -> str:
    return min(counts, key=lambda label: (-counts[label], label))


def read_hashes(data: str, rows: Sequence[Row]) -> dict[str, int]:
    """The perceptual hash of each row's first picture or clip, by uid; rows without one are left out."""
    import pyarrow.parquet as pq

    found: dict[str, int] = {}
    for path in sorted({row.path for row in rows}):
        with storage.open_read(storage.join(data, path)) as stream:
            columns = ["uid", "media.list.element.phash"]
            values: list[dict[str, Any]] = pq.ParquetFile(stream).read(columns=columns).to_pylist()
        for value in values:
            hashes = [medium["phash"] for medium in value["media"] or () if medium["phash"]]
            if hashes:
                try:
                    found[value["uid"]] = int(hashes[0], 16)
                except ValueError as error:
                    raise EvaluationError(
                        f"{data}/{path}: {value['uid']}: perceptual hash {hashes[0]!r} is not hexadecimal; build it again"
                    ) from error
    return found
