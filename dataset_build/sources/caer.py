"""CAER: which emotion does the person on screen show? (clips of television shows)

Layout: `{train,validation,test}/{Anger,Disgust,Fear,Happy,Neutral,Sad,Surprise}/NNNN.avi`. There is no annotation
file: the folder is the label. Numbers start again in every folder, so the id of a clip is split, folder and number.
Some copies spell a folder `Angry`, and a copy may call the second split `val`.

Files that are no videos by their name (lists, thumbnails) are no items. The show and the actors of a clip are not
published, so nothing is known about shows that occur in two splits. The pictures of CAER-S were cut from these clips.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "caer"
VERSION = "1"
TITLE = "CAER: emotions in clips of television shows"
LICENCE = "research use only, by the authors' request form; clips of television shows, no redistribution"
CITATION = "Lee et al., Context-Aware Emotion Recognition Networks, ICCV 2019"
LIMITS = (
    "Acted emotions of television shows. Shows and actors are not named, so the same show and the same face can be in "
    "training and in test. CAER-S is made of frames of these clips: never train on one and test on the other."
)
SIZE = "about 13,200 clips of 79 television shows"
DOWNLOAD = "CAER (not CAER-S) after the form at caer-dataset.github.io; root: the folder with train/, validation/ and test/"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "clip"
DEMONSTRATION = False

Options = base.EmotionOptions

_FOLDERS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
_VIDEOS = (".avi", ".mp4", ".mkv", ".mov", ".webm")


def read(root: str, options: base.EmotionOptions) -> Iterator[Record | Reject]:
    tops = ("", "CAER/")
    folders = {
        split: readers.find(
            root, *(top + name for top in tops for name in names), what=f"folder of {split} clips"
        )
        for split, names in _FOLDERS.items()
    }
    found = False
    for split, folder in folders.items():
        for path in readers.listing(root, folder):
            if path.lower().endswith(_VIDEOS):
                found = True
                yield from _items(path, split, folder, options)
    if not found:
        raise BuildError(
            f"{root}: no clips below {', '.join(folders.values())}; unpack the source's archives there"
        )


def _items(path: str, split: str, folder: str, options: base.EmotionOptions) -> Iterator[Record | Reject]:
    inner = path.removeprefix(folder + "/")
    clip_id = inner.rsplit(".", 1)[0]
    uid = f"{NAME}/{split}/{clip_id}"
    native, _, number = clip_id.partition("/")
    if not number or "/" in number:
        detail = f"{path}: expected {folder}/EMOTION/NUMBER.avi; move the clip to the folder of its emotion"
        yield from emotion_rows.refused(uid, split, options, "bad_row", detail)
        return
    label = labels.emotion(native)
    if label not in labels.EKMAN_NEUTRAL:
        detail = (
            f"{path}: folder {native!r} is not one of {', '.join(labels.EKMAN_NEUTRAL)} in a known spelling"
        )
        yield from emotion_rows.refused(uid, split, options, "unknown_label", detail)
        return
    row = Record(
        uid=uid,
        source=NAME,
        sub_task="emo_c",
        split=split,
        media=(MediaRef("video", path),),
        label=label,
        native_label=native,
        licence_tag="caer-research",
        options=labels.EKMAN_NEUTRAL,
        group_keys={"clip": f"caer/{split}/{clip_id}"},
    )
    yield from emotion_rows.asked(row, options)
