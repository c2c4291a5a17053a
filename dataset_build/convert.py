"""One Record → one row of `schema.sample_schema()` plus one row of hashes, or a Reject. Nothing else is decided here.

The split and the fold are decided later, globally, on the hash rows alone (`dataset_build.dedup`,
`dataset_build.splits`), so a converted row is the same whatever else is in the build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import (
    audio,
    cards,
    grey_values,
    hash_columns,
    instructions,
    media,
    provenance,
    quality,
    schema,
    video,
)
from dataset_build.errors import StorageError
from dataset_build.schema import Record, Reject, Sample
from dataset_build.sources.base import Adapter

if TYPE_CHECKING:
    import pyarrow

    from dataset_build.recipe import MediaSettings


class Converted(NamedTuple):
    """A converted record: the sample without split and fold, and what the global decision needs to know of it."""

    sample: Sample
    hashes: dict[str, Any]


def media_digest(settings: MediaSettings) -> str:
    """The digest of everything but the source file that decides what is stored for it."""
    return provenance.sha256_of_json([media.VERSION, cards.VERSION, settings.model_dump(mode="json")])


def convert(
    record: Record,
    root: media.Root,
    adapter: Adapter,
    settings: MediaSettings,
    wording: instructions.Wording | None = None,
) -> Converted | Reject:
    """Read, verify, normalise and hash one record. Never raises for what is wrong with the data.

    Raises StorageError where the root is in a store that does not answer, or this machine has run out of something.
    """
    wrong = quality.check(record)
    if wrong:
        return wrong
    try:
        media_list = _media(record, root, settings)
    except media.MediaError as error:
        return quality.reject(record, error.reason, str(error))
    except (OSError, MemoryError) as error:
        if getattr(error, "errno", None) in media.MACHINE_TROUBLE:
            raise StorageError(
                f"{record.uid}: {error}; that is this machine's trouble and not the row's: mend it, then the same command "
                "goes on"
            ) from error
        paths = ", ".join(ref.path for ref in record.media) or record.uid
        said = getattr(error, "strerror", None) or str(error)  # without the name of a temporary file
        return quality.reject(record, "undecodable", f"{paths}: {type(error).__name__}: {said}")
    asked = instructions.ask(record, [medium.kind for medium in media_list], wording)
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
    hashes = hash_columns.row(
        record,
        adapter.GROUP_KEY,
        [medium.identity for medium in media_list],
        phash=next((medium.phash for medium in media_list if medium.phash), ""),
        n_bytes=sum(len(part) for medium in media_list for part in medium.data),
    )
    return Converted(sample, hashes)


def _media(record: Record, root: media.Root, settings: MediaSettings) -> list[media.Medium]:
    if not record.media:  # a text-only source: its text becomes a picture, and is not in the message
        return [media.picture_from_bytes(cards.render(record.text), record.uid, settings)]
    found: list[media.Medium] = []
    for ref in record.media:
        if ref.pixels is not None and ref.kind == "image":
            found.append(grey_values.read_picture(ref.pixels, ref.path, settings, ref.crop))
        elif ref.pixels is not None:
            raise media.MediaError("bad_row", f"{ref.path}: grey values for a medium of kind {ref.kind}")
        elif ref.kind == "image":
            found.append(media.read_picture(root, ref.path, settings, ref.crop))
        elif ref.kind == "video":
            found += video.read_clip(root, ref, settings)
        elif settings.audio:
            found.append(audio.read_sound(root, ref, settings))
    if not found:
        raise media.MediaError(
            "not_media", f"{record.uid}: it has nothing but sound, and the recipe says media.audio = false"
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


def undivided_schema() -> pyarrow.Schema:
    """`schema.sample_schema()` before splits are drawn."""
    import pyarrow as pa

    return pa.schema([field for field in schema.sample_schema() if field.name not in ("split", "fold")])
