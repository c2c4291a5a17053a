"""MMSD2.0: is the tweet sarcastic? (a picture and its text, labels and texts of MMSD cleaned)

Layout (github.com/JoeYing1019/MMSD2.0): `data/text_json_final/{train,valid,test}.json`, lists of
`{image_id, text, label}`; pictures `data/dataset_image/<image_id>.jpg`. Ids have 18 digits: they are kept as whole
numbers or texts and never pass through a float, which would round them.

`annotation: clean` reads `data/text_json_clean/` instead: MMSD's labels and texts on the same pictures.

The authors' loader passes over rows whose picture is missing without a word; here they are counted as rejects. Some
texts repeat (478 in train, and 83 test rows have a text that train has too); ids are disjoint across splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from dataset_build.labels import YES_NO, yes_no
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "mmsd2"
VERSION = "1"
TITLE = "MMSD2.0: sarcasm in tweets with a picture, cleaned"
LICENCE = "no licence published; tweets and pictures of Twitter users, no redistribution"
CITATION = (
    "Qin et al., MMSD2.0: Towards a Reliable Multi-modal Sarcasm Detection System, Findings of ACL 2023"
)
LIMITS = "The pictures and most texts are MMSD's; train labels come from hashtags, corrected in part."
SIZE = "24,635 tweets (19,816 train, 2,410 val, 2,409 test)"
DOWNLOAD = (
    "github.com/JoeYing1019/MMSD2.0 and the picture archive linked there; root: the folder with data/, or data/ itself, "
    "with text_json_final/ and dataset_image/"
)
EXPECTED = {"train": 19_816, "val": 2_410, "test": 2_409}
SUB_TASKS = ("sarcasm",)
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "tweet"
DEMONSTRATION = False

_FILES = {"train": "train.json", "val": "valid.json", "test": "test.json"}
_RULES = {"final": "mmsd2.0", "clean": "mmsd"}


class Options(base.Options):
    """`annotation`: the labels and texts of MMSD2.0 (final), or MMSD's on the same pictures (clean)."""

    annotation: Literal["final", "clean"] = "final"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    folder = f"text_json_{options.annotation}"
    paths = {
        split: readers.find(root, f"data/{folder}/{name}", f"{folder}/{name}")
        for split, name in _FILES.items()
    }
    pictures = readers.folder(root, "data/dataset_image", "dataset_image")
    for split, path in paths.items():
        for number, row in enumerate(readers.json_value(root, path, list)):
            yield _item(f"{path}, entry {number}", split, number, row, pictures, options)


def _item(where: str, split: str, number: int, row: Any, pictures: str, options: Options) -> Record | Reject:
    tweet = readers.digits(row.get("image_id")) if isinstance(row, dict) else ""
    if not tweet or not isinstance(row.get("text"), str):
        uid = f"{NAME}/{split}/{tweet or f'entry-{number}'}"
        detail = f"{where}: expected {{image_id: digits, text, label: 0 or 1}}, found {row!r:.160}"
        return Reject(uid, NAME, split, "sarcasm", "bad_row", detail)
    uid = f"{NAME}/{split}/{tweet}"
    native = row.get("label")
    label = yes_no(readers.whole(native))
    if label is None:
        detail = f"{where} (tweet {tweet}): label is {native!r:.60}; expected 0 or 1"
        return Reject(uid, NAME, split, "sarcasm", "unknown_label", detail)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="sarcasm",
        split=split,
        media=(MediaRef("image", f"{pictures}/{tweet}.jpg"),),
        label=label,
        native_label=str(native),
        licence_tag="mmsd2-research",
        options=YES_NO,
        text=row["text"],
        label_rule=_RULES[options.annotation],
        group_keys={"tweet": tweet},
    )
