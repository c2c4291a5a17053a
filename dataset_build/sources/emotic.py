"""EMOTIC: what does a person in a picture of everyday life feel? (26 categories, several at once)

Layout: `Annotations/Annotations.mat` with the structs `train`, `val` and `test`, one element per picture, and the
pictures as `emotic/<folder>/<filename>`, folder being `mscoco/images`, `framesdb/images`, `emodb_small/images` or
`ade20k/images`. Each of the people in a picture has a body box and categories: one annotator's in train, those of
several annotators and their union (`combined_categories`) in val and test. One record per person.

**Label.** All categories count as right: `label` is one of them, `other_labels` are the rest. Which one is `label`
(option `label_rule`): `votes` takes the category that most annotators chose, and where several have as many, as always
in train, draws one of them by a hash of the uid. `first` takes the first of the official order, which is the alphabet:
then Affection is the label whenever it is there, and Yearning only when nothing else is.

**View.** `both` (the default) shows the person cut out and then the whole picture; `person` and `scene` one of them.
The person comes first because the whole picture, being the same for all its people, does not say who is meant. With
`scene` the people of a picture are one question with several answers, and the build keeps one of them.

Known dirt: people for whom nobody chose a category (they leave by rule), boxes that leave the picture (clamped), one
corrupt and some absent pictures, valence, arousal and dominance that are not numbers (these three are not read, nor are
gender and age).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, matlab, readers

NAME = "emotic"
VERSION = "1"
TITLE = "EMOTIC: feelings of people in context"
LICENCE = "non-commercial research after a request form; pictures of third parties, no redistribution"
CITATION = "Kosti et al., Context Based Emotion Recognition using EMOTIC Dataset, IEEE TPAMI 2020"
LIMITS = (
    "Pre-training exposed: pictures of MS-COCO and ADE20K, which are in it, are in the training data of most vision "
    "models. Annotators guess what a stranger feels and differ; the categories are many and overlap."
)
SIZE = "about 34,000 people in 23,600 pictures"
DOWNLOAD = (
    "emotic.zip and Annotations.zip from the authors after the request form; root: the folder with emotic/ and "
    "Annotations/"
)
# What is published is the number of people after a loader's own filter (23,266 / 3,315 / 7,203), not that of the rows.
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

# The official order; "Doubt/Confusion" has its slash in the source.
CATEGORIES = {
    "Affection": "affection", "Anger": "anger", "Annoyance": "annoyance", "Anticipation": "anticipation",
    "Aversion": "aversion", "Confidence": "confidence", "Disapproval": "disapproval",
    "Disconnection": "disconnection", "Disquietment": "disquietment", "Doubt/Confusion": "doubt or confusion",
    "Embarrassment": "embarrassment", "Engagement": "engagement", "Esteem": "esteem", "Excitement": "excitement",
    "Fatigue": "fatigue", "Fear": "fear", "Happiness": "joy", "Pain": "pain", "Peace": "peace",
    "Pleasure": "pleasure", "Sadness": "sadness", "Sensitivity": "sensitivity", "Suffering": "suffering",
    "Surprise": "surprise", "Sympathy": "sympathy", "Yearning": "yearning",
}  # fmt: skip
VOCABULARY = tuple(CATEGORIES.values())
_NATIVE = {label: native for native, label in CATEGORIES.items()}


class Options(base.EmotionOptions):
    """`view`: what is shown of the person; `label_rule`: which category is the label. See the module's text."""

    view: Literal["both", "scene", "person"] = "both"
    label_rule: Literal["votes", "first"] = "votes"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, "Annotations/Annotations.mat", "annotations/Annotations.mat", "Annotations.mat")
    top = "emotic/" if readers.exists(root, "emotic") else ""
    seen: Counter[str] = (
        Counter()
    )  # people so far, by split and picture: a picture may be listed again with others
    for split in ("train", "val", "test"):
        for number, picture in enumerate(matlab.structs(root, path, split), 1):
            yield from _picture(f"{path} {split}({number})", top, split, number, picture, seen, options)


def _picture(
    where: str,
    top: str,
    split: str,
    number: int,
    picture: dict[str, Any],
    seen: Counter[str],
    options: Options,
) -> Iterator[Record | Reject]:
    folder, name, people = (picture.get(field) for field in ("folder", "filename", "person"))
    if (
        not (isinstance(folder, str) and folder and isinstance(name, str) and name)
        or not isinstance(people, list)
        or not people
    ):
        detail = f"{where}: expected a struct with filename, folder and at least one person, found {sorted(picture)}"
        yield from emotion_rows.refused(f"{NAME}/{split}/row-{number}", split, options, "bad_row", detail)
        return
    native_id = f"{folder}/{name}"
    for person in people:
        seen[f"{split}/{native_id}"] += 1
        uid = f"{NAME}/{split}/{native_id}#{seen[f'{split}/{native_id}']}"
        yield from _person(where, uid, split, top, native_id, person, options)


def _person(
    where: str, uid: str, split: str, top: str, native_id: str, person: Any, options: Options
) -> Iterator[Record | Reject]:
    fields = person if isinstance(person, dict) else {}
    box: Any = fields.get("body_bbox")
    annotators = _annotators(fields.get("annotations_categories"))
    combined = _texts(fields.get("combined_categories"))
    chosen = combined or [category for annotator in annotators for category in annotator]
    where = f"{where} ({uid.rsplit('/', 1)[-1]})"
    problem = ""
    if not _is_rectangle(box):
        problem = f"body_bbox is {box!r:.80}, expected x1 y1 x2 y2 of a rectangle"
    elif not chosen and not isinstance(fields.get("annotations_categories"), list):
        problem = "annotations_categories is missing or no struct array"
    if problem:
        yield from emotion_rows.refused(uid, split, options, "bad_row", f"{where}: {problem}")
        return
    if not chosen:
        detail = f"{where}: no annotator chose a category; users of the set leave such people out"
        yield from emotion_rows.refused(uid, split, options, "source_rule", detail)
        return
    unknown = [category for category in chosen if category not in CATEGORIES]
    if unknown:
        detail = f"{where}: category {unknown[0][:60]!r} is not one of the 26 of EMOTIC"
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    gold = [label for native, label in CATEGORIES.items() if native in chosen]
    label = gold[0] if options.label_rule == "first" else _most_votes(gold, annotators, uid)
    whole = MediaRef("image", f"{top}{native_id}")
    cut = MediaRef("image", f"{top}{native_id}", crop=Crop(box[0], box[1], box[2], box[3]))
    record = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media={"both": (cut, whole), "person": (cut,), "scene": (whole,)}[options.view],
        label=label,
        native_label=_NATIVE[label],
        other_labels=tuple(other for other in gold if other != label),
        licence_tag="emotic-noncommercial",
        options=VOCABULARY,
        label_rule=options.label_rule,
        group_keys={"picture": native_id, "origin": native_id.split("/")[0]},
    )
    yield from emotion_rows.asked(record, options)


def _most_votes(gold: list[str], annotators: list[list[str]], uid: str) -> str:
    """The gold label that most annotators chose; among several with as many, one drawn by the uid."""
    votes = Counter(
        CATEGORIES[category] for annotator in annotators for category in set(annotator) & CATEGORIES.keys()
    )
    most = max(votes[label] for label in gold)
    tied = [label for label in gold if votes[label] == most]
    draw = int.from_bytes(hashlib.sha256(f"label\x1f{uid}".encode()).digest()[:8], "big")
    return tied[draw % len(tied)]


def _is_rectangle(box: Any) -> bool:
    """Whether it is four finite numbers x1 y1 x2 y2 with something between them."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, float) for side in box)
    return numbers and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]


def _annotators(value: Any) -> list[list[str]]:
    """The categories that each annotator chose: a struct array with the one field `categories`."""
    elements = value if isinstance(value, list) else []
    return [_texts(next(iter(element.values()), None)) for element in elements if isinstance(element, dict)]


def _texts(value: Any) -> list[str]:
    """The texts of a cell array, of cells within cells too."""
    if isinstance(value, str):
        return [value] if value else []
    return [text for element in value for text in _texts(element)] if isinstance(value, list) else []
