"""Small pictures for the report, as data URIs: one per medium, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import media, storage
from dataset_build.schema import SPLITS

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_PX = 128
TEXT_CARD_SIDE_PX = 256
FRAME_SIDE_PX = 96
MAX_FRAMES = 4


class Thumbnail(NamedTuple):
    """`frames` > 1: the frames stand side by side, from left to right in time."""

    uri: str
    frames: int


def make_thumbnails(
    data: str, samples: Iterable[Mapping[str, Any]], budget_bytes: int
) -> dict[str, Thumbnail]:
    """Thumbnails by uid, for samples (uid, media_sha256, demonstration) in order of importance, until `budget_bytes` are used.

    Samples of one image share one. Those whose file cannot be read any more get none: a report outlives its data.
    """
    wanted: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        if sample["media_sha256"]:
            wanted.setdefault(sample["media_sha256"][0], []).append(sample)
    # A clip's digest is that of the file it was cut from, so clips are made one by one; images once.
    found = _read_media(data, [sample["uid"] for some in wanted.values() for sample in some])
    made: dict[str, Thumbnail] = {}
    used = 0
    for some in wanted.values():
        of_image: dict[
            bytes, Thumbnail
        ] = {}  # by stored bytes: what was cut from one picture shares its digest
        for sample in some:
            medium = found.get(sample["uid"])
            if medium is None or medium["kind"] not in ("image", "video"):
                continue
            if medium["kind"] == "image" and (known := of_image.get(medium["data"][0])):
                made[sample["uid"]] = known
                continue
            thumbnail = _thumbnail(medium, TEXT_CARD_SIDE_PX if sample["demonstration"] else SIDE_PX)
            if used + len(thumbnail.uri) > budget_bytes:
                return made
            used += len(thumbnail.uri)
            made[sample["uid"]] = thumbnail
            of_image[medium["data"][0]] = thumbnail
    return made


def _read_media(data: str, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The first medium (with its bytes) of each uid that is there. Only row groups that hold one of them are read."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    manifest_path = storage.join(data, "manifest.json")
    if not uids or not storage.exists(manifest_path):
        return {}
    wanted = pa.array(uids, pa.string())
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(storage.read_json(manifest_path)["files"]):
        full = storage.join(data, path)
        if path.split("/")[0] not in SPLITS or not path.endswith(".parquet") or not storage.exists(full):
            continue
        with storage.open_read(full) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                inside = pc.is_in(file.read_row_group(group, columns=["uid"])["uid"], wanted)
                if not pc.any(inside).as_py():
                    continue
                rows = file.read_row_group(group, columns=["uid", "media"]).filter(inside).to_pylist()
                found.update((row["uid"], row["media"][0]) for row in rows if row["media"])
        if len(found) == len(wanted):
            break
    return found


def _thumbnail(medium: dict[str, Any], side_px: int) -> Thumbnail:
    from PIL import Image

    pictures = [media.open_picture(data, draft_px=side_px) for data in medium["data"]]
    if len(pictures) == 1:
        return Thumbnail(_uri(_within(pictures[0], side_px)), 1)
    step = len(pictures) / min(MAX_FRAMES, len(pictures))
    chosen = [pictures[int(place * step)] for place in range(min(MAX_FRAMES, len(pictures)))]
    strip = Image.new("RGBA", (FRAME_SIDE_PX * len(chosen), FRAME_SIDE_PX))
    for place, picture in enumerate(chosen):
        small = _within(picture, FRAME_SIDE_PX)
        left = place * FRAME_SIDE_PX + (FRAME_SIDE_PX - small.width) // 2
        strip.paste(small, (left, (FRAME_SIDE_PX - small.height) // 2))
    return Thumbnail(_uri(strip), len(chosen))


def _within(picture: Image, side_px: int) -> Image:
    from PIL import Image

    small = picture.copy()
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return small


def _uri(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
