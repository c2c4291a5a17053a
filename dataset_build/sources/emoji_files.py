"""Where emoji.json and the vendors' drawings are; shared by `emoji_pictures` and `gestures`.

ROOT/{google,twitter}/emoji.json, img/<image>.png     emoji-datasource packages
ROOT/fluent3d/img/<code points>.webp                   no annotation of its own: google's emoji.json drives it

What is an item: a row of emoji.json with `has_img_<vendor>` false says that this vendor's drawing does not exist. It
describes no item, so it is no record (and the other vendor's drawing of the emoji is one). Of Fluent 3D emoji.json says
nothing; its emoji that were never drawn are in `FLUENT3D_LACKS`, and each leaves as a reject with reason `source_rule`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from dataset_build.errors import BuildError
from dataset_build.sources import readers
from dataset_build.sources.emoji_table import bare_code

Vendor = Literal["google", "twitter", "fluent3d"]

LICENCES = {
    "google": "Apache-2.0 (Noto Emoji art)",
    "twitter": "CC-BY-4.0 (Twemoji art)",
    "fluent3d": "MIT (Fluent Emoji art)",
}

# Emoji that emoji.json lists and Fluent 3D never drew.
FLUENT3D_LACKS = frozenset({"1fae9", "1f642-200d-2194", "1f642-200d-2195"})


class Drawing(NamedTuple):
    """One vendor's drawing of one emoji in one skin tone.

    `error` says what is wrong with its row, `left_out` why there is no such drawing, if anything.
    """

    vendor: Vendor
    code: str  # bare code points of the emoji without a skin tone
    tone: str  # "none" or 1f3fb … 1f3ff
    name: str  # emoji.json's short name
    path: str  # relative to the source's root
    native_id: str  # unique within the vendor
    error: str = ""
    left_out: str = ""


def drawings(root: str, vendor: Vendor, subgroups: frozenset[str], skin_tones: bool) -> Iterator[Drawing]:
    """The drawings of a vendor in some subgroups, in the order of emoji.json; skin tones follow their emoji."""
    annotation = "google" if vendor == "fluent3d" else vendor
    for number, row in enumerate(readers.json_value(root, f"{annotation}/emoji.json", list)):
        if not isinstance(row, dict):
            yield _bad(vendor, number, f"row {number} is a {type(row).__name__}, expected an object")
            continue
        subgroup = row.get("subcategory")
        if subgroup is not None and not isinstance(subgroup, str):
            yield _bad(vendor, number, f"row {number} ({row.get('short_name')}): subcategory is not a text")
            continue
        if subgroup not in subgroups:
            continue
        tones = row.get("skin_variations", {}) if skin_tones else {}
        variants = [("none", row)]
        if isinstance(tones, dict):
            variants += [(str(tone).lower(), entry) for tone, entry in tones.items()]
        else:
            found = f"skin_variations is a {type(tones).__name__}, expected an object"
            yield _bad(vendor, number, f"row {number} ({row.get('short_name')}): {found}", "skin_variations")
        for tone, entry in variants:
            try:
                drawing = _drawing(root, vendor, row, tone, entry)
            except (KeyError, TypeError, AttributeError) as error:
                yield _bad(
                    vendor,
                    number,
                    f"row {number} ({row.get('short_name')}): field {error} is missing or wrong",
                    tone,
                )
            else:
                if drawing:
                    yield drawing


def _drawing(
    root: str, vendor: Vendor, row: dict[str, Any], tone: str, entry: dict[str, Any]
) -> Drawing | None:
    """The drawing that an entry describes; None where it says that there is none."""
    code = bare_code(row["unified"])
    image = entry["image"]
    if not isinstance(image, str) or not image:
        raise KeyError("image")
    native_id = bare_code(entry["unified"])
    if vendor == "fluent3d":
        if code in FLUENT3D_LACKS:
            why = f"Fluent 3D has no drawing of {code} ({row['short_name']})"
            return Drawing(vendor, code, tone, str(row["short_name"]), "", native_id, left_out=why)
        path = _fluent_path(root, image.removesuffix(".png"))
    elif not entry[f"has_img_{vendor}"]:
        return None
    else:
        path = f"{vendor}/img/{image}"
    return Drawing(vendor, code, tone, str(row["short_name"]), path, native_id)


def _fluent_path(root: str, stem: str) -> str:
    """Fluent writes fe0f into some of its names and not into others: the spelling that is there, else the first."""
    spellings = [stem, bare_code(stem)]
    if os.sep in stem or ".." in stem:
        return f"fluent3d/img/{stem}.webp"
    for spelling in spellings:
        if readers.exists(root, f"fluent3d/img/{spelling}.webp"):
            return f"fluent3d/img/{spelling}.webp"
    return f"fluent3d/img/{stem}.webp"


def _bad(vendor: Vendor, number: int, error: str, tone: str = "none") -> Drawing:
    return Drawing(vendor, "", tone, "", "", f"row-{number}-{tone}", error)


def check_root(root: str) -> None:
    if not readers.exists(root, "."):
        raise BuildError(
            f"{root}: the folder of the emoji pictures is not there; fetch the samples or set its root"
        )
