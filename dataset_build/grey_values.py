"""Pictures that are written out in their table as grey values, as FER2013's are."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from dataset_build import media, schema
from dataset_build.media import MediaError, Medium

if TYPE_CHECKING:
    from dataset_build.recipe import MediaSettings

# The longest side of such a picture (FER2013's have 48).
_MAX_SIDE = 512


def read_picture(pixels: str, name: str, settings: MediaSettings, crop: schema.Crop | None = None) -> Medium:
    """A square picture from the grey values that `schema.MediaRef.pixels` holds, stored as PNG. Raises MediaError.

    Its identity and `source_sha256` are those of the values, however a table spells them and PNG packs them.
    """
    from PIL import Image

    longest = 4 * _MAX_SIDE**2  # three digits and a space each
    values = pixels.split() if len(pixels) <= longest and pixels.isascii() else []
    side = math.isqrt(len(values))
    if not 0 < side <= _MAX_SIDE or side * side != len(values):
        raise MediaError(
            "bad_row",
            f"{name}: {len(values) or len(pixels)} {'grey values' if values else 'characters of pixels'}; expected the "
            f"values of a square picture with sides of at most {_MAX_SIDE}",
        )
    for place, value in enumerate(values):
        if not (value.isdigit() and len(value) <= 3 and int(value) <= 255):
            raise MediaError(
                "bad_row", f"{name}: grey value {place} is {value[:20]!r}; expected a number 0 to 255"
            )
    grey = bytes(map(int, values))
    buffer = io.BytesIO()
    Image.frombytes("L", (side, side), grey).save(buffer, "PNG", compress_level=6)
    medium = media.picture_from_bytes(buffer.getvalue(), name, settings, crop)
    digest = identity = hashlib.sha256(f"grey:{side}:".encode() + grey).hexdigest()
    if medium.identity != medium.source_sha256:
        identity = hashlib.sha256(f"{digest}:{medium.identity}".encode()).hexdigest()
    return replace(medium, source_sha256=digest, identity=identity)
