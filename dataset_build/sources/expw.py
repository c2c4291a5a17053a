"""ExpW (Expression in the Wild): which of seven emotions does a face in the picture show? (web pictures)

Layout: `ExpW/label/label.lst`, one face a line, `name face-id top left right bottom confidence label` with spaces
between (right before bottom), and `ExpW/image/origin/<name>`; in some unpackings both lie in `data/`. A picture may
hold several faces; its faces stay in one split, which is drawn, since the source has none.

Known dirt: lines that repeat an earlier one word for word. They are left out as source_rule (users of the list drop
them; they hold nothing new), while another line about the same face of a picture is a duplicate_id.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from typing import Literal

from dataset_build import labels
from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "expw"
VERSION = "1"
TITLE = "ExpW: seven emotions in faces from web pictures"
LICENCE = "research use; pictures of third parties, no redistribution"
CITATION = "Zhang et al., From Facial Expression Recognition to Interpersonal Relation Prediction, IJCV 2018"
LIMITS = (
    "Faces come from a detector over pictures searched by emotion keyword; neutral and joy are most of them."
)
SIZE = "91,793 faces"
DOWNLOAD = (
    "ExpW from the project page (mmlab.ie.cuhk.edu.hk/projects/socialrelation), its image parts joined and unpacked; "
    "root: the folder with ExpW/, or the one with label/ and image/"
)
EXPECTED = {"all": 91_793}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "picture"
DEMONSTRATION = False

CODES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


class Options(base.EmotionOptions):
    """`view`: the face cut out, or the whole picture, in which the label may be that of one face of several."""

    view: Literal["face", "picture"] = "face"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    tops = ("", "ExpW/", "data/", "ExpW/data/")
    path = readers.find(root, *(f"{top}label/label.lst" for top in tops), "label.lst")
    top = path.removesuffix("label.lst").removesuffix("label/")
    folder = posixpath.join(top, "image/origin")
    seen: dict[str, int] = {}  # a line -> its number
    for number, line in enumerate(readers.text(root, path).split("\n"), 1):
        if line.strip():
            yield from _items(f"{path} line {number}", folder, number, line.strip(), seen, options)


def _items(
    where: str, folder: str, number: int, line: str, seen: dict[str, int], options: Options
) -> Iterator[Record | Reject]:
    cells = line.rsplit(maxsplit=7)  # from the right: a name may hold spaces
    if len(cells) != 8:
        detail = f"{where}: expected name, face id, top, left, right, bottom, confidence, label; found {line[:160]!r}"
        yield from emotion_rows.refused(f"{NAME}/all/line-{number}", None, options, "bad_row", detail)
        return
    name, face, code = cells[0], cells[1], readers.whole(cells[7])
    uid = f"{NAME}/all/{name}#{face}"
    if line in seen:
        detail = f"{where} ({name}): repeats line {seen[line]} word for word"
        yield from emotion_rows.refused(f"{uid}~{number}", None, options, "source_rule", detail)
        return
    seen[line] = number
    sides = [readers.number(cell) for cell in cells[2:6]]
    top, left, right, bottom = (math.nan if side is None else side for side in sides)
    if not (left < right and top < bottom):
        detail = f"{where} ({name}): top, left, right, bottom = {' '.join(cells[2:6])[:100]} is no rectangle"
        yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
    elif code is None or not 0 <= code < len(CODES):
        detail = f"{where} ({name}): label {cells[7][:40]!r} is not one of 0 to 6"
        yield from emotion_rows.refused(uid, None, options, "unknown_label", detail)
    else:
        crop = Crop(left, top, right, bottom) if options.view == "face" else None
        record = Record(
            uid=uid,
            source=NAME,
            sub_task="emo_c",
            split=None,
            media=(MediaRef("image", f"{folder}/{name}", crop=crop),),
            label=CODES[code],
            native_label=cells[7],
            licence_tag="expw-research",
            options=labels.EKMAN_NEUTRAL,
            group_keys={"picture": f"{NAME}/{name}"},
        )
        yield from emotion_rows.asked(record, options)
