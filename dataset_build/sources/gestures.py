"""Drawn people making a gesture: what do they want to say? (intent)

Items are the rows of emoji.json in the subgroup person-gesture, once per vendor and skin tone. The drawings of men are
the test split; those of women and of persons train, so a tested figure was never seen, though its vendor's style was.
Frowning shows a feeling, not an intent, and the deaf-person sign says who somebody is: both leave as `source_rule`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dataset_build.labels import GESTURE_INTENTS
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emoji_files

NAME = "gestures"
VERSION = "1"
TITLE = "Person-gesture emoji drawn by three vendors"
LICENCE = "Google Noto: Apache-2.0; Twitter Twemoji: CC-BY-4.0; Microsoft Fluent 3D: MIT"
CITATION = "npm emoji-datasource-google and emoji-datasource-twitter 16.0.0; @lobehub/fluent-emoji-3d 1.1.0"
LIMITS = (
    "Eight gestures, one per intent: a test score says whether a gesture is recognised on another figure of a vendor "
    "seen in training, not whether intent is understood. Only eight independent groups stand behind it."
)
SIZE = "10 gestures x figures x skin tones x 3 vendors"
DOWNLOAD = "`make samples` fetches the packages; root: the folder with google/, twitter/ and fluent3d/"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("intent",)
PICTURES: base.Pictures = "drawings"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "drawing"
DEMONSTRATION = False

INTENTS = {
    # code: (gesture, intent)
    "1f647": ("bowing", "Apologise"),
    "1f937": ("shrugging", "Doubt"),
    "1f926": ("facepalming", "Criticize"),
    "1f64b": ("raising a hand", "Ask for help"),
    "1f645": ("gesturing no", "Refuse"),
    "1f646": ("gesturing ok", "Agree"),
    "1f64e": ("pouting", "Complain"),
    "1f481": ("tipping a hand", "Inform"),
}
LEFT_OUT = {
    "1f64d": "frowning shows a feeling, not an intent",
    "1f9cf": "the deaf sign says who somebody is, not what they intend",
}
_SUBGROUP = frozenset({"person-gesture"})
_FIGURES = {"200d-2640": "woman", "200d-2642": "man"}
Tone = Literal["none", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"]


class Options(base.Options):
    """`vendors` whose drawings are read; drawings in another skin tone than `tones` leave as `source_rule`."""

    vendors: tuple[emoji_files.Vendor, ...] = ("google", "twitter", "fluent3d")
    tones: tuple[Tone, ...] = ("none", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    emoji_files.check_root(root)
    for vendor in options.vendors:
        for drawing in emoji_files.drawings(root, vendor, _SUBGROUP, skin_tones=True):
            yield _item(drawing, options)


def _item(drawing: emoji_files.Drawing, options: Options) -> Record | Reject:
    gesture, _, suffix = drawing.code.partition("-")
    figure = _FIGURES.get(suffix, "person")
    split = "test" if figure == "man" else "train"
    uid = f"{NAME}/{split}/{drawing.vendor}-{drawing.native_id}"
    if drawing.error:
        return Reject(
            uid, NAME, "train", "intent", "bad_row", f"{drawing.vendor}/emoji.json: {drawing.error}"
        )
    if drawing.left_out:
        return Reject(uid, NAME, split, "intent", "source_rule", drawing.left_out)
    if gesture in LEFT_OUT:
        return Reject(uid, NAME, split, "intent", "source_rule", f"{drawing.name}: {LEFT_OUT[gesture]}")
    if gesture not in INTENTS:
        detail = (
            f"{drawing.path}: gesture {gesture} ({drawing.name}) has no intent; add it to sources/gestures.py"
        )
        return Reject(uid, NAME, split, "intent", "unknown_label", detail)
    if drawing.tone not in options.tones:
        detail = f"skin tone {drawing.tone} is not among the recipe's tones {', '.join(options.tones)}"
        return Reject(uid, NAME, split, "intent", "source_rule", detail)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="intent",
        split=split,
        media=(MediaRef("image", drawing.path),),
        label=INTENTS[gesture][1],
        native_label=drawing.name,
        licence_tag=emoji_files.LICENCES[drawing.vendor],
        options=GESTURE_INTENTS,
        label_rule="sources/gestures.py",
        group_keys={
            "emoji": gesture,
            "drawing": f"{drawing.vendor}/{gesture}/{figure}",  # its skin tones stay together
            "vendor": drawing.vendor,
            "figure": figure,
        },
    )
