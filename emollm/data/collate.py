"""One EmoBench row to token ids, labels and pictures; several of them to one padded batch.

Shape suffixes: B rows, T tokens, N pictures of the batch, C channels, H and W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dataset_build.schema import PLACEHOLDERS
from emollm.data.masking import IGNORED, answer_labels
from emollm.model.processor import EmoLLMProcessor
from emollm.prompting import scaffolded

_ANY_PLACEHOLDER = re.compile("|".join(re.escape(token) for token in PLACEHOLDERS.values()))


class SampleError(ValueError):
    """A row that does not fit the schema's promises; the message names uid, field and what was expected."""


class Encoded(NamedTuple):
    """One sample. `pictures` are (3, H, W) each, frames of a video one after the other; `media_frames` has one entry
    a medium: 0 for a still picture, n for a video of n frames. `labels` is all -100 where nothing is supervised."""

    uid: str
    input_ids: list[int]
    labels: list[int]
    pictures: list[Tensor]
    media_frames: list[int]


def encode_sample(
    sample: dict[str, Any], processor: EmoLLMProcessor, *, supervise: bool, withhold_media: bool = False
) -> Encoded:
    """Encode a row of EmoBench (a dict with the columns of `sample_schema()`).

    `supervise=False` ends the sequence after `Answer:`. `withhold_media` drops pictures and placeholders (the
    text-only ablation). Raises SampleError or EmptyMaskError naming the uid.
    """
    encoded = encode_text(sample, processor, supervise=supervise, withhold_media=withhold_media)
    return encoded if withhold_media else encoded._replace(pictures=decode_pictures(sample, processor))


def encode_text(
    sample: dict[str, Any],
    processor: EmoLLMProcessor,
    *,
    supervise: bool,
    withhold_media: bool = False,
    max_tokens: int | None = None,
) -> Encoded:
    """`encode_sample` without decoding the pictures (`pictures` is empty)."""
    uid = sample["uid"]
    frames = media_frames(sample)
    messages = scaffolded(sample["messages"], sample["sub_task"], processor.prompt)
    if withhold_media:
        frames = []
        messages = [
            {**turn, "content": _ANY_PLACEHOLDER.sub("", turn["content"]).rstrip()} for turn in messages
        ]
    answer = sample["answer"] if supervise else None
    try:
        turns = processor.render(messages, answer, frames)
    except ValueError as error:
        raise SampleError(f"{uid}: messages and media do not fit: {error}") from error
    labels = answer_labels(turns, uid, max_tokens) if supervise else [IGNORED] * len(turns.input_ids)
    return Encoded(uid, turns.input_ids, labels, [], frames)


def media_frames(sample: dict[str, Any]) -> list[int]:
    """One entry a medium: 0 for a still picture, the number of frames for a video."""
    frames = []
    for medium in sample["media"] or []:
        if medium["kind"] not in ("image", "video"):
            raise SampleError(
                f"{sample['uid']}: media of kind {medium['kind']!r} are not supported by this model"
            )
        if not medium["data"]:
            raise SampleError(f"{sample['uid']}: a {medium['kind']} has no data")
        frames.append(0 if medium["kind"] == "image" else len(medium["data"]))
    return frames


def decode_pictures(sample: dict[str, Any], processor: EmoLLMProcessor) -> list[Tensor]:
    """All pictures and frames of a row in order, each (3, H, W). Raises SampleError naming the uid."""
    pictures = []
    for position, medium in enumerate(sample["media"] or []):
        for data in medium["data"][:1] if medium["kind"] == "image" else medium["data"]:
            try:
                pictures.append(processor.picture(data))
            except (OSError, ValueError) as error:
                raise SampleError(f"{sample['uid']}: media[{position}] cannot be decoded: {error}") from error
    return pictures


def collate(
    rows: Sequence[Encoded], pad_id: int, padding_side: Literal["right", "left"] = "right"
) -> dict[str, Tensor]:
    """Pad rows to one batch: input_ids, attention_mask and labels (B, T); pixel_values (N, 3, H, W) and media_frames
    where there are pictures."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (longest - len(values))
        return values + padding if padding_side == "right" else padding + values

    batch = {
        "input_ids": torch.tensor([padded(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        "labels": torch.tensor([padded(row.labels, IGNORED) for row in rows]),
    }
    pictures = [picture for row in rows for picture in row.pictures]
    if pictures:
        batch["pixel_values"] = torch.stack(pictures)
        batch["media_frames"] = torch.tensor([frames for row in rows for frames in row.media_frames])
    return batch
