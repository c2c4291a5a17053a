"""Small pictures for the report, as data URIs: one per medium, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import media, storage
from emollm.evaluate.protocol import Row

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


def make_thumbnails(data: str, rows: Iterable[Row], budget_bytes: int) -> dict[str, Thumbnail]:
    """Thumbnails by sha256 of the medium, for rows in order of importance until `budget_bytes` of URIs are used.

    Rows whose file cannot be read any more get none: a report outlives its data.
    """
    wanted: dict[str, Row] = {}
    for row in rows:
        if row.media_sha256 and row.media_kinds[0] in ("image", "video"):
            wanted.setdefault(row.media_sha256[0], row)
    made: dict[str, Thumbnail] = {}
    used = 0
    media = _read_media(data, list(wanted.values()))
    for sha256, row in wanted.items():
        if row.uid not in media:
            continue
        thumbnail = _thumbnail(media[row.uid], TEXT_CARD_SIDE_PX if row.demonstration else SIDE_PX)
        if used + len(thumbnail.uri) > budget_bytes:
            break
        used += len(thumbnail.uri)
        made[sha256] = thumbnail
    return made


def _read_media(data: str, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The first medium (with its bytes) of each row, by uid."""
    import pyarrow.parquet as pq

    by_path: dict[str, list[Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, []).append(row)
    found: dict[str, dict[str, Any]] = {}
    for path, some in by_path.items():
        full = storage.join(data, path)
        if not storage.exists(full):
            continue
        with storage.open_read(full) as stream:
            table = pq.read_table(stream, columns=["uid", "media"])
        for row in some:
            if row.index < table.num_rows and table["uid"][row.index].as_py() == row.uid:
                found[row.uid] = table["media"][row.index].as_py()[0]
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
