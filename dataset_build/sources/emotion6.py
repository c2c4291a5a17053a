"""Emotion6: which emotion does the picture evoke in most people? (Flickr pictures)

Layout: `Emotion6/images/<keyword>/<n>.jpg` and the tab-separated `Emotion6/ground_truth.txt`, one row per picture with
the share of workers who chose each of six emotions or neutral. The folder is the keyword that the picture was searched
by, **not** its label: the label is the emotion with the largest share. Valence and arousal are not read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Literal

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "emotion6"
VERSION = "1"
TITLE = "Emotion6: how people distribute over seven emotions at a picture"
LICENCE = "academic use only; pictures of third parties, no redistribution"
CITATION = (
    "Peng et al., A Mixed Bag of Emotions: Model, Predict, and Transfer Emotion Distributions, CVPR 2015"
)
LIMITS = "The set publishes distributions; one label a picture hides how divided its viewers were."
SIZE = "1,980 pictures"
DOWNLOAD = (
    "Emotion6.zip from the authors' page; root: the folder with ground_truth.txt and images/, or its parent"
)
EXPECTED = {"all": 1_980}
SUB_TASKS = ("emo_c", "emo_o")
ASKS: base.Asks = "evoked"
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "picture"
DEMONSTRATION = False

_FILE = "[image_filename]"
_SHARES = {emotion: f"[prob. {emotion}]" for emotion in labels.EKMAN_NEUTRAL}


class Options(base.EmotionOptions):
    """`label_rule`: `argmax` takes the emotion with the largest share and leaves pictures with a tie out;
    `over_half` also leaves those out where the largest share is not more than a half."""

    label_rule: Literal["argmax", "over_half"] = "argmax"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, "ground_truth.txt", "Emotion6/ground_truth.txt")
    pictures = posixpath.join(posixpath.dirname(path), "images")
    for row in readers.table(root, path, (_FILE, *_SHARES.values()), delimiter="\t", quoting=False):
        yield from _items(path, pictures, row, options)


def _items(path: str, pictures: str, row: readers.Row, options: Options) -> Iterator[Record | Reject]:
    where = f"{path} row {row.line}"
    name = row.cells.get(_FILE, "").strip()
    if row.problem or not name:
        detail = f"{where}: {row.problem or f'{_FILE} is empty'}"
        yield from emotion_rows.refused(f"{NAME}/all/row-{row.line}", None, options, "bad_row", detail)
        return
    uid = f"{NAME}/all/{name}"
    shares: dict[str, float] = {}
    for emotion, column in _SHARES.items():
        share = readers.number(row.cells[column])
        if share is None or not 0 <= share <= 1:
            detail = f"{where} ({name}): {column} = {row.cells[column][:40]!r}, expected a share from 0 to 1"
            yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
            return
        shares[emotion] = share
    most = max(shares.values())
    best = [emotion for emotion, share in shares.items() if share == most]
    if most == 0:
        detail = f"{where} ({name}): all shares are 0; expected shares that sum to 1"
        yield from emotion_rows.refused(uid, None, options, "bad_row", detail)
    elif len(best) > 1:
        detail = f"{where} ({name}): {' and '.join(best)} tie at {most:g}, so it has no single label"
        yield from emotion_rows.refused(uid, None, options, "source_rule", detail)
    elif options.label_rule == "over_half" and most <= 0.5:
        detail = f"{where} ({name}): the largest share, of {best[0]}, is {most:g}, not more than a half"
        yield from emotion_rows.refused(uid, None, options, "source_rule", detail)
    else:
        record = Record(
            uid=uid,
            source=NAME,
            sub_task="emo_c",
            split=None,
            media=(MediaRef("image", posixpath.join(pictures, name)),),
            label=best[0],
            native_label=best[0],
            licence_tag="emotion6-academic",
            options=labels.EKMAN_NEUTRAL,
            label_rule=options.label_rule,
            group_keys={"picture": f"{NAME}/{name}", "keyword": name.split("/")[0]},
        )
        yield from emotion_rows.asked(record, options)
