"""Several samples in one sequence, none of which sees another.

First-fit from known lengths; positions start again at 0 for every sample and the model attends to one at a time
(`emollm.model.packed_attention`), so a packed sample has the logits and the loss it has alone.

Shape suffixes: B packed sequences, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emollm.data.collate import Encoded
from emollm.data.masking import IGNORED


def first_fit(
    lengths: Sequence[int], capacity: int, pictures: Sequence[int] = (), most_pictures: int = 0
) -> list[list[int]]:
    """Put each length into the first bin with room, longest first; bins hold positions in `lengths`.

    With `most_pictures`, a bin takes no more than so many of the rows' `pictures` (frames included). What is beyond
    `capacity` or `most_pictures` by itself gets a bin of its own. The same lengths always give the same bins.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    places: list[int] = []
    shown = pictures if most_pictures else [0] * len(lengths)
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length, count = lengths[position], shown[position]
        for number, left in enumerate(room):
            if length <= left and count <= max(0, places[number]):
                bins[number].append(position)
                room[number] -= length
                places[number] -= count
                break
        else:
            bins.append([position])
            room.append(capacity - length)
            places.append(most_pictures - count)
    return bins


def even_fit(
    lengths: Sequence[int], capacity: int, pictures: Sequence[int] = (), most_pictures: int = 0
) -> list[list[int]]:
    """As `first_fit`, with as many bins, but of as even a length as it finds: all are padded to the longest one.

    First fit fills all bins but the last, which may hold a single short row and is then almost only padding.
    """
    bins = first_fit(lengths, capacity, pictures, most_pictures)
    low, high = max(max(lengths), -(-sum(lengths) // len(bins))), capacity
    while low < high:  # the smallest capacity that needs no more bins
        middle = (low + high) // 2
        tried = first_fit(lengths, middle, pictures, most_pictures)
        if len(tried) <= len(bins):
            bins, high = tried, middle
        else:
            low = middle + 1
    return bins


def pack(rows: Sequence[Encoded], bins: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """One batch with a sequence a bin: input_ids, labels (B, T), position_ids (B, T) or (3, B, T), and `segments`: for
    each sequence the lengths of its rows, in order.

    Pictures belong in the order of the bins, then of the rows in them. Padding lies behind the last row of a sequence.
    """
    segments = [[len(rows[i].input_ids) for i in one] for one in bins]
    shape = (len(bins), max(map(sum, segments)))
    input_ids_BT = torch.full(shape, pad_id)
    labels_BT = torch.full(shape, IGNORED)
    # (1, B, T), or (3, B, T) where a foundation counts time, rows and columns
    axes = 3 if any(row.positions for row in rows) else 1
    position_ids_3BT = torch.zeros((axes, *shape), dtype=torch.long)
    for number, one in enumerate(bins):
        start = 0
        for i in one:
            end = start + len(rows[i].input_ids)
            input_ids_BT[number, start:end] = torch.tensor(rows[i].input_ids)
            labels_BT[number, start:end] = torch.tensor(rows[i].labels)
            position_ids_3BT[:, number, start:end] = torch.tensor(
                rows[i].positions or [list(range(end - start))]
            )
            start = end
    return {
        "input_ids": input_ids_BT,
        "labels": labels_BT,
        "position_ids": position_ids_3BT if axes == 3 else position_ids_3BT[0],
        "segments": segments,
    }
