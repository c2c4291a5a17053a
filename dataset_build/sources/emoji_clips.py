"""Animated emoji faces as short clips: which feeling does the face show? (emo_c, from video frames)

Items are the rows of clips.csv (`code,file`). Labels and the group `emoji` are those of `emoji_pictures`, so the clip
of an emoji is always in the fold of its still drawings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from dataset_build.errors import BuildError
from dataset_build.labels import EMOJI_FEELINGS
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers
from dataset_build.sources.emoji_table import CLEAR, UNCLEAR, bare_code

NAME = "emoji_clips"
VERSION = "1"
TITLE = "Animated emoji faces"
LICENCE = "MIT (Fluent Emoji art)"
CITATION = "npm @lobehub/fluent-emoji-anim-3 1.0.0, converted to mp4"
LIMITS = "Three-second drawn animations without sound; one vendor only."
SIZE = "72 animated faces"
DOWNLOAD = "`make samples` fetches and converts the package; root: the folder with clips.csv and clip/"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c",)
PICTURES: base.Pictures = "drawings"
SPLIT: base.SplitMode = "folds"
GROUP_KEY = "emoji"
DEMONSTRATION = False


class Options(base.Options):
    """No options."""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    text = readers.text(root, "clips.csv")
    rows = csv.DictReader(io.StringIO(text))
    if not {"code", "file"} <= set(rows.fieldnames or ()):
        raise BuildError(f"{root}/clips.csv: expected the columns code,file; found {rows.fieldnames}")
    for number, row in enumerate(rows, start=2):
        yield _item(number, row.get("code"), row.get("file"))


def _item(line: int, code: str | None, file: str | None) -> Record | Reject:
    if not code or not file:
        uid = f"{NAME}/all/line-{line}"
        return Reject(
            uid, NAME, None, "emo_c", "bad_row", f"clips.csv line {line}: code={code!r}, file={file!r}"
        )
    emoji = bare_code(code)
    uid = f"{NAME}/all/{emoji}"
    if emoji in UNCLEAR:
        name, why = UNCLEAR[emoji]
        return Reject(uid, NAME, None, "emo_c", "source_rule", f"unclear emoji {emoji} ({name}): {why}")
    if emoji not in CLEAR:
        detail = f"clips.csv line {line}: emoji {emoji} is in neither table; add it to sources/emoji_table.py"
        return Reject(uid, NAME, None, "emo_c", "unknown_label", detail)
    # The converted clips lie in clip/; a file column with a folder of its own is taken as it is.
    path = file if "/" in file else f"clip/{file}"
    return Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", path),),
        label=CLEAR[emoji][1],
        native_label=CLEAR[emoji][0],
        licence_tag=LICENCE,
        options=EMOJI_FEELINGS,
        label_rule="sources/emoji_table.py",
        group_keys={"emoji": emoji, "vendor": "fluent3d"},
    )
