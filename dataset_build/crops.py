"""Which pixels of a picture an annotation's rectangle means."""

from __future__ import annotations

import math
from typing import NamedTuple

from dataset_build import schema
from dataset_build.errors import MediaError

# What a corner may be off because it was computed in floating point.
_EPSILON_PX = 1e-6


class Box(NamedTuple):
    """Whole pixels of a picture: left and top belong to it, right and bottom no more."""

    left: int
    top: int
    right: int
    bottom: int


def box_of(crop: schema.Crop, width: int, height: int, name: str) -> Box | None:
    """The pixels that a crop touches, clamped to the upright picture; None where that is the whole picture.

    A crop that holds no pixel is a `bad_row`: the file is good, the annotation names a part that it does not have.
    """
    check_crop(crop, name)
    across, down = (width, height) if crop.unit == "share" else (1, 1)
    box = Box(
        math.floor(min(max(crop.left * across + _EPSILON_PX, 0), width)),
        math.floor(min(max(crop.top * down + _EPSILON_PX, 0), height)),
        math.ceil(min(max(crop.right * across - _EPSILON_PX, 0), width)),
        math.ceil(min(max(crop.bottom * down - _EPSILON_PX, 0), height)),
    )
    if box.left >= box.right or box.top >= box.bottom:
        raise MediaError("bad_row", f"{empty_crop(crop, name)}; the picture has {width}x{height} pixels")
    return None if box == (0, 0, width, height) else box


def check_crop(crop: schema.Crop, name: str) -> None:
    """Raises MediaError (bad_row) for a crop that no picture has."""
    corners = (crop.left, crop.top, crop.right, crop.bottom)
    if crop.unit not in ("px", "share") or not all(
        isinstance(corner, (int, float)) and math.isfinite(corner) for corner in corners
    ):
        raise MediaError("bad_row", f"{name}: crop {corners} {crop.unit}: expected four finite numbers")
    if crop.left >= crop.right or crop.top >= crop.bottom:
        raise MediaError("bad_row", empty_crop(crop, name))


def empty_crop(crop: schema.Crop, name: str) -> str:
    corners = f"left {crop.left:g}, top {crop.top:g}, right {crop.right:g}, bottom {crop.bottom:g}"
    return f"{name}: the crop {corners} ({crop.unit}) holds no part of the picture"
