"""One Record → one row of `schema.sample_schema()` plus one row of hashes, or a Reject. Nothing else is decided here.

The split and the fold are decided later, globally, on the hash rows alone (`dataset_build.dedup`,
`dataset_build.splits`), so a converted row is the same whatever else is in the build.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import cards, instructions, media, provenance, quality, schema, video
from dataset_build.schema import Record, Reject, Sample
from dataset_build.sources.base import Adapter

if TYPE_CHECKING:
    import pyarrow

    from dataset_build.recipe import MediaSettings


class Converted(NamedTuple):
    """A converted record: the sample without split and fold, and what the global decision needs to know of it."""

    sample: Sample
    hashes: dict[str, Any]


def index_schema() -> pyarrow.Schema:
    """The hash columns. `media` holds the identity of each medium, `content` that of media and text together."""
    import pyarrow as pa

    text = ("uid", "sub_task", "split", "label", "group", "content", "phash")
    return pa.schema(
        [*((name, pa.string()) for name in text), ("media", pa.list_(pa.string())), ("n_bytes", pa.int64())]
    )


def media_digest(settings: MediaSettings) -> str:
    """The digest of everything but the source file that decides what is stored for it."""
    return provenance.sha256_of_json([media.VERSION, cards.VERSION, settings.model_dump(mode="json")])


def convert(record: Record, root: str, adapter: Adapter, settings: MediaSettings) -> Converted | Reject:
    """Read, verify, normalise and hash one record. Never raises for what is wrong with the data."""
    wrong = quality.check(record)
    if wrong:
        return wrong
    try:
        media_list = _media(record, root, settings)
    except media.MediaError as error:
        return quality.reject(record, error.reason, str(error))
    except (OSError, MemoryError) as error:
        return quality.reject(
            record, "undecodable", f"{record.media or record.uid}: {type(error).__name__}: {error}"
        )
    asked = instructions.ask(record, [medium.kind for medium in media_list])
    sample = {
        "uid": record.uid,
        "source": record.source,
        "sub_task": record.sub_task,
        "messages": [{"role": "user", "content": asked.content}],
        "options": list(asked.options),
        "answer": record.label,
        "other_answers": list(record.other_labels),
        "media": [_medium_row(medium) for medium in media_list],
        "group_keys": sorted(record.group_keys.items()),
        "demonstration": record.demonstration,
        "n_text_tokens": None,
        "provenance": {
            "adapter_version": f"{adapter.NAME}-{adapter.VERSION}",
            "media_settings": media_digest(settings)[:16],
            "template_id": asked.template_id,
            "label_rule": record.label_rule,
            "native_label": record.native_label,
            "licence_tag": record.licence_tag,
        },
    }
    return Converted(sample, _index_row(record, adapter, media_list))


def _media(record: Record, root: str, settings: MediaSettings) -> list[media.Medium]:
    if not record.media:  # a text-only source: its text becomes a picture, and is not in the message
        return [media.picture_from_bytes(cards.render(record.text), record.uid, settings)]
    found: list[media.Medium] = []
    for ref in record.media:
        if ref.kind == "image":
            found.append(media.read_picture(root, ref.path, settings))
        elif ref.kind == "video":
            found += video.read_clip(root, ref, settings)
        else:
            raise media.MediaError(
                "not_media", f"{ref.path}: sound without a picture is not read by this version"
            )
    return found


def _medium_row(medium: media.Medium) -> dict[str, Any]:
    return {
        "kind": medium.kind,
        "data": list(medium.data),
        "sha256": medium.source_sha256,
        "phash": medium.phash,
        "width": medium.width,
        "height": medium.height,
        "duration_s": medium.duration_s,
        "fps": medium.fps,
        "sample_rate": medium.sample_rate,
    }


def _index_row(record: Record, adapter: Adapter, media_list: list[media.Medium]) -> dict[str, Any]:
    identities = [medium.identity for medium in media_list]
    text = [record.text if record.media else "", *(f"{turn.speaker}: {turn.text}" for turn in record.context)]
    return {
        "uid": record.uid,
        "sub_task": record.sub_task,
        "split": record.split,
        "label": record.label,
        "group": record.group_keys.get(adapter.GROUP_KEY) or record.uid,
        "content": hashlib.sha256("\x1f".join(identities + text).encode()).hexdigest(),
        "phash": next((medium.phash for medium in media_list if medium.phash), ""),
        "media": sorted(set(identities)),
        "n_bytes": sum(len(part) for medium in media_list for part in medium.data),
    }


def undivided_schema() -> pyarrow.Schema:
    """`schema.sample_schema()` before splits are drawn."""
    import pyarrow as pa

    return pa.schema([field for field in schema.sample_schema() if field.name not in ("split", "fold")])
