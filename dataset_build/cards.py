"""Text cards: a short text as a picture, black on white, the same bytes on each machine.

The font is the one Pillow carries (Aileron), laid out by Pillow's basic engine: no system font, no system library.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

from dataset_build.media import MediaError

if TYPE_CHECKING:
    from PIL import ImageFont

# Raise it when the same text gives another picture.
VERSION = "1"
SIDE_PX = 256
_MARGIN_PX = 12
_FONT_SIZES = (30, 27, 24, 21, 18, 16, 14)
_LINE_SPACING = 1.25


def render(text: str) -> bytes:
    """A 256 x 256 grey PNG with `text` in the largest size that fits. Raises MediaError (bad_row, too_large)."""
    from PIL import Image, ImageDraw

    words = text.split()
    if not words:
        raise MediaError("bad_row", "the text of the card is empty")
    for size in _FONT_SIZES:
        font = _font(size)
        lines = _wrapped(words, font)
        height = round(size * _LINE_SPACING)
        if lines is not None and len(lines) * height <= SIDE_PX - 2 * _MARGIN_PX:
            break
    else:
        raise MediaError("too_large", f"{len(text)} characters do not fit on a card at {_FONT_SIZES[-1]} px")
    card = Image.new("L", (SIDE_PX, SIDE_PX), 255)
    draw = ImageDraw.Draw(card)
    top = (SIDE_PX - len(lines) * height) // 2
    for number, line in enumerate(lines):
        draw.text((_MARGIN_PX, top + number * height), line, fill=0, font=font)
    buffer = io.BytesIO()
    card.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install the pinned wheel")
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _wrapped(words: list[str], font: ImageFont.FreeTypeFont) -> list[str] | None:
    """The words in lines that fit the card's width; None if one word alone does not."""
    width = SIDE_PX - 2 * _MARGIN_PX
    lines = [""]
    for word in words:
        if font.getlength(word) > width:
            return None
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
