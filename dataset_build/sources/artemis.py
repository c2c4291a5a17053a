"""ArtEmis: which of nine feelings does the painting evoke? (WikiArt)

Layout: `artemis_dataset_release_v0.csv` with `art_style,painting,emotion,utterance,repetition`, one row per annotator
and painting, and the paintings as `wikiart/<art_style>/<painting>.jpg`. Names hold letters beyond ASCII, which disks
write in either Unicode normal form.

**The utterance is not in the prompt.** It is the annotator's own reason for the feeling ("the still water makes me
feel calm"), written after choosing it: with it the question is about the sentence, and the painting need not be seen.

**Label.** At least five people annotated each painting, and they differ. `majority` (the default) asks a painting once,
with the feeling that more annotators chose than any other; its other rows are left out by that rule, and so are all
rows of a painting whose first two feelings tie. `each` keeps every row with its own label; then one picture comes with
contradicting answers, of which nobody could be right about all, and rows with the same painting are the same question:
the build keeps one of them. So `each` is for listing what was annotated, `majority` for scores.
`min_share` asks the majority for a share of the annotations, such as 0.5.

The authors split by (style, painting), 85/5/10, with a shuffle whose result they did not publish as a list; here test
and val are drawn by painting. A painting filed under two styles has the same name in both and stays in one split.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "artemis"
VERSION = "1"
TITLE = "ArtEmis: feelings that paintings evoke"
LICENCE = (
    "annotations for research after a request form; paintings under the terms of WikiArt, no redistribution"
)
CITATION = "Achlioptas et al., ArtEmis: Affective Language for Visual Art, CVPR 2021"
LIMITS = (
    "People differ about art: the label is what most of about five annotators felt, and ties are left out, so the "
    "paintings kept are the clearer ones. The annotators' explanations give the label away and are not shown."
)
SIZE = "454,684 annotations of paintings, several for each"
DOWNLOAD = (
    "artemis_dataset_release_v0.csv from artemisdataset.org after the request form, and the WikiArt pictures; root: "
    "the folder with the CSV file and wikiart/<art_style>/"
)
EXPECTED = {"all": 454_684}
SUB_TASKS = ("emo_c", "emo_o")
ASKS: base.Asks = "evoked"
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "painting"
DEMONSTRATION = False

VOCABULARY = (*labels.MIKELS, "something else")
_CSV = "artemis_dataset_release_v0.csv"
_COLUMNS = ("art_style", "painting", "emotion")
_PICTURE_FOLDERS = ("wikiart", "wiki_art_paintings", "images")


class Options(base.EmotionOptions):
    """`label_rule`: one record per painting (`majority`, at least `min_share` of its annotations) or per row (`each`)."""

    label_rule: Literal["majority", "each"] = "majority"
    min_share: float = Field(0.0, ge=0, le=1)


class Majority(NamedTuple):
    """What the annotators of a painting chose most. `emotion` is empty where no feeling is, and `problem` says why."""

    emotion: str
    share: str
    problem: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, _CSV, f"official_data/{_CSV}")
    folder = next((name for name in _PICTURE_FOLDERS if readers.exists(root, name)), ".")
    majorities = _majorities(root, path, options.min_share) if options.label_rule == "majority" else None
    annotations: Counter[tuple[str, str]] = Counter()
    asked: dict[tuple[str, str], str] = {}  # painting -> the uid of its record
    for row in readers.table(root, path, _COLUMNS):
        style, painting, native = (row.cells.get(name, "") for name in _COLUMNS)
        where = f"{path} row {row.line}"
        if row.problem or not style or not painting:
            detail = f"{where}: {row.problem or 'art_style or painting is empty'}"
            yield from emotion_rows.refused(f"{NAME}/all/row-{row.line}", None, options, "bad_row", detail)
            continue
        key = (style, painting)
        annotations[key] += 1
        uid = f"{NAME}/all/{style}/{painting}#{annotations[key]}"
        label = labels.emotion(native)
        if label not in VOCABULARY:
            detail = f"{where} ({painting}): emotion {native[:60]!r} is not one of {', '.join(VOCABULARY)}"
            yield from emotion_rows.refused(uid, None, options, "unknown_label", detail)
            continue
        left_out = ""
        if majorities is not None:
            most = majorities[key]
            if not most.emotion:
                left_out = most.problem
            elif key in asked:
                left_out = f"the painting is asked once, as {asked[key]}"
            elif label != most.emotion:
                left_out = f"{label} is not what most chose for the painting: {most.emotion}, {most.share}"
        if left_out:
            yield from emotion_rows.refused(
                uid, None, options, "source_rule", f"{where} ({painting}): {left_out}"
            )
            continue
        asked[key] = uid
        yield from emotion_rows.asked(_record(root, folder, key, uid, label, native, options), options)


def _record(
    root: str, folder: str, key: tuple[str, str], uid: str, label: str, native: str, options: Options
) -> Record:
    style, painting = key
    picture = posixpath.normpath(folder) if folder != "." else ""
    picture = posixpath.join(picture, style, f"{painting}.jpg")
    if not picture.isascii():  # ASCII has one form; on an object store every look-up is a request
        picture = readers.same_name(root, picture)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=None,
        media=(MediaRef("image", picture),),
        label=label,
        native_label=native,
        licence_tag="artemis-research",
        options=VOCABULARY,
        label_rule=options.label_rule,
        group_keys={"painting": painting, "art_style": style, "artist": painting.split("_", 1)[0]},
    )


def _majorities(root: str, path: str, min_share: float) -> dict[tuple[str, str], Majority]:
    """What most annotators chose, per (style, painting). Rows without a known emotion do not vote."""
    votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in readers.table(root, path, _COLUMNS):
        style, painting, native = (row.cells.get(name, "") for name in _COLUMNS)
        label = labels.emotion(native)
        if label in VOCABULARY and not row.problem:
            votes[style, painting][label] += 1
    return {key: majority(counts, min_share) for key, counts in votes.items()}


def majority(counts: Counter[str], min_share: float) -> Majority:
    """The feeling with the most votes, if no other has as many and it has at least `min_share` of all of them."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    (first, most), total = ranked[0], counts.total()
    share = f"{most} of {total}"
    tied = [emotion for emotion, count in ranked if count == most]
    if len(tied) > 1:
        return Majority("", share, f"no majority: {' and '.join(tied)} tie at {share}")
    if most < min_share * total:
        return Majority(
            "", share, f"{first} is the most frequent with {share}, less than min_share {min_share:g}"
        )
    return Majority(first, share)
