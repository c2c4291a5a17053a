"""FI (Flickr and Instagram): which of eight emotions does the picture evoke? (web pictures)

Layout: `emotion_dataset/<emotion>/<picture>.jpg`; the folder is the label. There is no official split, so test and val
are drawn by picture, seeded. Links of the published list have died over the years: copies hold different numbers of
pictures, and a result on one is a result on that copy. Pictures may also be in other sets drawn from Flickr (EmoSet,
Emotion6); what is the same picture there is found by its hash.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, folders

NAME = "fi"
VERSION = "1"
TITLE = "FI: emotions that pictures of Flickr and Instagram evoke"
LICENCE = "research use on request to the authors; pictures of third parties, no redistribution"
CITATION = "You et al., Building a Large Scale Dataset for Image Emotion Recognition, AAAI 2016"
LIMITS = (
    "A picture counts where three of five workers confirmed the emotion it had been searched by: they did not choose "
    "among eight. Copies differ in the pictures that could still be fetched."
)
SIZE = "23,308 pictures"
DOWNLOAD = (
    "from the authors on request; root: the folder with emotion_dataset/, or the one with the eight emotions"
)
EXPECTED = {"all": 23_308}
SUB_TASKS = ("emo_c", "emo_o")
ASKS: base.Asks = "evoked"
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "picture"
DEMONSTRATION = False

Options = base.EmotionOptions


def read(root: str, options: base.EmotionOptions) -> Iterator[Record | Reject]:
    top = folders.top(root, ("emotion_dataset", "."), labels.MIKELS)
    for picture in folders.pictures(root, top):
        uid = f"{NAME}/all/{picture.folder}/{picture.name}"
        label = labels.emotion(picture.folder)
        if picture.reason:
            yield from emotion_rows.refused(
                uid, None, options, picture.reason, f"{picture.path}: {picture.problem}"
            )
        elif label not in labels.MIKELS:
            detail = f"{picture.path}: folder {picture.folder!r} is not one of {', '.join(labels.MIKELS)}"
            yield from emotion_rows.refused(uid, None, options, "unknown_label", detail)
        else:
            record = Record(
                uid=uid,
                source=NAME,
                sub_task="emo_c",
                split=None,
                media=(MediaRef("image", picture.path),),
                label=label,
                native_label=picture.folder,
                licence_tag="fi-research",
                options=labels.MIKELS,
                group_keys={"picture": f"{NAME}/{picture.folder}/{picture.name}"},
            )
            yield from emotion_rows.asked(record, options)
