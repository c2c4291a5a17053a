"""Drawn emoji faces: which feeling does the face show? Each picture serves emo_c and emo_o.

Items are the rows of emoji.json in the face and cat-face subgroups, once per vendor that drew them. The label is ours,
from `emoji_table`: clear emoji are kept, unclear ones leave as `source_rule`. All vendors' drawings of an emoji share
the group `emoji`, so an emoji that is tested was never seen in any drawing.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataset_build.labels import EMOJI_FEELINGS
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emoji_files
from dataset_build.sources.emoji_table import CLEAR, FACE_SUBGROUPS, UNCLEAR

NAME = "emoji_pictures"
VERSION = "1"
TITLE = "Emoji faces drawn by three vendors"
LICENCE = "Google Noto: Apache-2.0; Twitter Twemoji: CC-BY-4.0; Microsoft Fluent 3D: MIT"
CITATION = "npm emoji-datasource-google and emoji-datasource-twitter 16.0.0; @lobehub/fluent-emoji-3d 1.1.0"
LIMITS = (
    "Drawings, not photographs; the feeling is our reading of the emoji's name, not an annotator's judgement."
)
SIZE = "119 faces x 3 vendors"
DOWNLOAD = "`make samples` fetches the packages; root: the folder with google/, twitter/ and fluent3d/"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "drawings"
SPLIT: base.SplitMode = "folds"
GROUP_KEY = "emoji"
DEMONSTRATION = False


class Options(base.Options):
    """`vendors` whose drawings are read."""

    vendors: tuple[emoji_files.Vendor, ...] = ("google", "twitter", "fluent3d")


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    emoji_files.check_root(root)
    for vendor in options.vendors:
        for drawing in emoji_files.drawings(root, vendor, FACE_SUBGROUPS, skin_tones=False):
            for sub_task in SUB_TASKS:
                yield _item(drawing, sub_task)


def _item(drawing: emoji_files.Drawing, sub_task: str) -> Record | Reject:
    uid = f"{NAME}/all/{drawing.vendor}-{drawing.native_id}:{sub_task}"
    if drawing.error:
        return Reject(uid, NAME, None, sub_task, "bad_row", f"{drawing.vendor}/emoji.json: {drawing.error}")
    if drawing.left_out:
        return Reject(uid, NAME, None, sub_task, "source_rule", drawing.left_out)
    if drawing.code in UNCLEAR:
        name, why = UNCLEAR[drawing.code]
        return Reject(
            uid, NAME, None, sub_task, "source_rule", f"unclear emoji {drawing.code} ({name}): {why}"
        )
    if drawing.code not in CLEAR:
        detail = f"{drawing.path}: emoji {drawing.code} ({drawing.name}) is in neither table; add it to sources/emoji_table.py"
        return Reject(uid, NAME, None, sub_task, "unknown_label", detail)
    return Record(
        uid=uid,
        source=NAME,
        sub_task=sub_task,
        split=None,
        media=(MediaRef("image", drawing.path),),
        label=CLEAR[drawing.code][1],
        native_label=drawing.name,
        licence_tag=emoji_files.LICENCES[drawing.vendor],
        options=EMOJI_FEELINGS if sub_task == "emo_c" else (),
        label_rule="sources/emoji_table.py",
        group_keys={"emoji": drawing.code, "vendor": drawing.vendor},
    )
