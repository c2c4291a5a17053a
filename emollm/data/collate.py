"""One EmoBench row to token ids, labels and pictures; several of them to one padded batch.

Shape suffixes: B rows, T tokens, N pictures of the batch, C channels, H and W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dataset_build.schema import PLACEHOLDERS, answer_text
from emollm.data.masking import IGNORED, answer_labels
from emollm.model.attached_processor import AttachedProcessor
from emollm.model.audio import Sound
from emollm.model.families import Size, Visual
from emollm.model.processor import AUDIO_TOKEN, SOUND, EmoLLMProcessor
from emollm.prompting import PromptStyle, TrainingPrompt, reasoned, scaffolded

AnyProcessor = EmoLLMProcessor | AttachedProcessor
_ANY_PLACEHOLDER = re.compile("|".join(re.escape(token) for token in PLACEHOLDERS.values()))


class SampleError(ValueError):
    """A row that does not fit the schema's promises; the message names uid, field and what was expected."""


class Encoded(NamedTuple):
    """One sample. `pictures` are (3, H, W) each, frames of a video one after the other; `media_frames` has one entry
    for each still picture (0) and video (its number of frames). `n_sounds` is how many `sounds` the sequence has places
    for. An attached foundation takes `visuals` in place of `pictures`, and may count `positions` (3, T). `labels` is all
    -100 where nothing is supervised. `rationale`: whether the answer has one before it, or would have been too long."""

    uid: str
    input_ids: list[int]
    labels: list[int]
    pictures: list[Tensor]
    media_frames: list[int]
    sounds: list[Sound]
    n_sounds: int
    visuals: list[Visual]
    positions: list[list[int]] | None
    rationale: Literal["none", "used", "too_long"] = "none"


def encode_sample(
    sample: dict[str, Any],
    processor: AnyProcessor,
    *,
    supervise: bool,
    withhold_media: bool = False,
    training: TrainingPrompt | None = None,
    aloud: bool = False,
) -> Encoded:
    """Encode a row of EmoBench (a dict with the columns of `sample_schema()`).

    `supervise=False` ends the sequence after `Answer:`. `withhold_media` drops pictures and placeholders (the
    text-only ablation). `training` and `aloud` as for `encode_text`. Raises SampleError or EmptyMaskError naming the uid.
    """
    encoded = encode_text(
        sample, processor, supervise=supervise, withhold_media=withhold_media, training=training, aloud=aloud
    )
    if withhold_media:
        return encoded
    if isinstance(processor, EmoLLMProcessor):
        return encoded._replace(
            pictures=decode_pictures(sample, processor), sounds=decode_sounds(sample, processor)
        )
    return encoded._replace(visuals=decode_visuals(sample, processor))


def encode_text(
    sample: dict[str, Any],
    processor: AnyProcessor,
    *,
    supervise: bool,
    withhold_media: bool = False,
    max_tokens: int | None = None,
    training: TrainingPrompt | None = None,
    aloud: bool = False,
) -> Encoded:
    """`encode_sample` without decoding the media (`pictures` and `sounds` are empty).

    `training` says how a training row is asked, and with which rationale it answers; without it the row is asked in the
    processor's style, `mixed` ones directly. A rationale that would make the sequence longer than `max_tokens` is left
    out, the row is then asked and answered as one without, and `Encoded.rationale` says so. `aloud` asks to reason.
    """
    if training is None:
        return _encode(
            sample, processor, processor.prompt, None, supervise, withhold_media, max_tokens, aloud
        )
    style = training.style_of(sample["uid"])
    rationale = training.rationale_of(sample["uid"]) if supervise else None
    if rationale is not None:
        found = _encode(sample, processor, style, rationale, True, withhold_media, None, True)
        if max_tokens is None or len(found.input_ids) <= max_tokens:
            return found._replace(rationale="used")
    found = _encode(sample, processor, style, None, supervise, withhold_media, max_tokens, aloud)
    return found if rationale is None else found._replace(rationale="too_long")


def _encode(
    sample: dict[str, Any],
    processor: AnyProcessor,
    style: PromptStyle,
    rationale: str | None,
    supervise: bool,
    withhold_media: bool,
    max_tokens: int | None,
    aloud: bool,
) -> Encoded:
    uid = sample["uid"]
    media = media_order(sample, processor.hears)
    messages = scaffolded(sample["messages"], sample["sub_task"], style, aloud=aloud)
    if not processor.hears:
        messages = [{**turn, "content": turn["content"].replace(AUDIO_TOKEN, "")} for turn in messages]
    if withhold_media:
        media = []
        messages = [
            {**turn, "content": _ANY_PLACEHOLDER.sub("", turn["content"]).rstrip()} for turn in messages
        ]
    try:
        answer = answer_text(sample) if supervise and sample["answer"] is not None else None
        said = reasoned(rationale, answer) if rationale is not None and answer is not None else answer
        turns = processor.render(messages, said, media)
    except ValueError as error:
        raise SampleError(f"{uid}: messages and media do not fit: {error}") from error
    labels = answer_labels(turns, uid, max_tokens) if supervise else [IGNORED] * len(turns.input_ids)
    frames = [medium.frames for medium in media if medium != SOUND]
    positions = processor.positions(turns.input_ids, media)
    return Encoded(uid, turns.input_ids, labels, [], frames, [], media.count(SOUND), [], positions)


def media_order(sample: dict[str, Any], hears: bool) -> list[Size]:
    """One entry a medium; sounds only if they are heard."""
    order = []
    for medium in sample["media"] or []:
        if medium["kind"] not in PLACEHOLDERS:
            raise SampleError(f"{sample['uid']}: media of kind {medium['kind']!r} are not known")
        if not medium["data"]:
            raise SampleError(f"{sample['uid']}: {medium['kind']} without data")
        if medium["kind"] != "audio":
            frames = 0 if medium["kind"] == "image" else len(medium["data"])
            order.append(Size(frames, medium.get("width") or 0, medium.get("height") or 0))
        elif hears:
            order.append(SOUND)
    return order


def decode_pictures(sample: dict[str, Any], processor: EmoLLMProcessor) -> list[Tensor]:
    """All pictures and frames of a row in order, each (3, H, W). Raises SampleError naming the uid."""
    pictures = []
    for position, medium in enumerate(sample["media"] or []):
        if medium["kind"] == "audio":
            continue
        for data in medium["data"][:1] if medium["kind"] == "image" else medium["data"]:
            try:
                pictures.append(processor.picture(data))
            except (OSError, ValueError) as error:
                raise SampleError(f"{sample['uid']}: media[{position}] cannot be decoded: {error}") from error
    return pictures


def decode_visuals(sample: dict[str, Any], processor: AttachedProcessor) -> list[Visual]:
    """All pictures and clips of a row in order, as an attached foundation takes them. Raises SampleError."""
    visuals = []
    for position, medium in enumerate(sample["media"] or []):
        if medium["kind"] == "audio":
            continue
        is_video = medium["kind"] == "video"
        try:
            data = medium["data"] if is_video else medium["data"][:1]
            stated = (medium.get("width") or 0, medium.get("height") or 0)
            visuals.append(processor.visual(data, is_video, stated))
        except (OSError, ValueError) as error:
            raise SampleError(f"{sample['uid']}: media[{position}] cannot be decoded: {error}") from error
    return visuals


def decode_sounds(sample: dict[str, Any], processor: EmoLLMProcessor) -> list[Sound]:
    """All sounds of a row in order; none for a model that does not hear. Raises SampleError naming the uid."""
    if processor.sound is None:
        return []
    sounds = []
    for position, medium in enumerate(sample["media"] or []):
        if medium["kind"] == "audio":
            try:
                sounds.append(processor.sound(medium["data"][0]))
            except ValueError as error:
                raise SampleError(f"{sample['uid']}: media[{position}] cannot be decoded: {error}") from error
    return sounds


def collate(
    rows: Sequence[Encoded], pad_id: int, padding_side: Literal["right", "left"] = "right"
) -> dict[str, Any]:
    """Pad rows to one batch: input_ids, attention_mask and labels (B, T); pixel_values (N, 3, H, W) and media_frames
    where there are pictures; the list `sounds` where there are any."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (longest - len(values))
        return values + padding if padding_side == "right" else padding + values

    batch: dict[str, Any] = {
        "input_ids": torch.tensor([padded(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        "labels": torch.tensor([padded(row.labels, IGNORED) for row in rows]),
    }
    if any(row.positions for row in rows):
        batch["position_ids"] = torch.tensor(
            [[padded((row.positions or _counted(row))[axis], 0) for row in rows] for axis in range(3)]
        )
    if visuals := [visual for row in rows for visual in row.visuals]:
        batch["visuals"] = visuals
    pictures = [picture for row in rows for picture in row.pictures]
    if pictures:
        batch["pixel_values"] = torch.stack(pictures)
        batch["media_frames"] = torch.tensor([frames for row in rows for frames in row.media_frames])
    if sounds := [sound for row in rows for sound in row.sounds]:
        batch["sounds"] = sounds
    return batch


def _counted(row: Encoded) -> list[list[int]]:
    """Positions of a row without media among rows that have three each."""
    return [list(range(len(row.input_ids)))] * 3
