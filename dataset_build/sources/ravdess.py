"""RAVDESS: which emotion does the actor speak or sing with?

Layout (the archives of Zenodo record 1188976, in any folders): `Actor_NN/MM-VV-EE-II-SS-RR-AA.{mp4,wav}`. The name
says everything: modality, speech or song, emotion, intensity, statement, repetition, actor; there is no annotation
file. Files that are neither .mp4 nor .wav are no items; one with another name is a bad row.

One take was published in up to three modalities (picture and sound, picture only, sound only), so the key of a take is
its last six fields, and each take is one record: of the modality that `modality` asks for, or the next one that is
there. Its other files leave by rule. There are two statements and 24 actors, so splits keep actors apart.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Literal

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, emotion_rows, readers

NAME = "ravdess"
VERSION = "1"
TITLE = "RAVDESS: emotions that actors speak and sing"
LICENCE = "CC BY-NC-SA 4.0 as its record is usually quoted (check it when you download); commercial use by separate licence"
CITATION = "Livingstone and Russo, The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS), PLoS ONE 2018"
LIMITS = "24 actors say two sentences in a studio: the emotions are acted, strong and without any context."
SIZE = "7,356 files of 2,452 takes"
DOWNLOAD = (
    "Video_Speech_Actor_NN.zip and Video_Song_Actor_NN.zip of Zenodo record 1188976; root: the folder where they were "
    "unpacked (Actor_NN/ folders at any depth)"
)
EXPECTED = {"all": 7356}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "takes"
SPLIT: base.SplitMode = "folds"
SPLIT_MODES: dict[str, base.SplitMode] = {"folds": "folds", "shares": "shares"}
GROUP_KEY = "actor"
DEMONSTRATION = False

_EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
_LABELS = {code: str(labels.emotion(word)) for code, word in _EMOTIONS.items()}
_CHANNELS = {"01": "speech", "02": "song"}
_STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_MODALITIES = {"audio_video": "01", "silent": "02", "sound": "03"}
_FIELDS = re.compile(r"(0[1-3])-(0[12])-(\d\d)-(0[12])-(0[12])-(\d\d)-(\d\d)")


class Options(base.EmotionOptions):
    """`modality`: which file of a take to use; `channel`: speech, song or both; `split`: k-fold or shares, by actor."""

    modality: Literal["audio_video", "silent", "sound"] = "audio_video"
    channel: Literal["speech", "song", "both"] = "both"
    split: Literal["folds", "shares"] = "folds"


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    files = [path for path in readers.listing(root) if path.lower().endswith((".mp4", ".wav"))]
    if not files:
        raise BuildError(
            f"{root}: no .mp4 or .wav files; set the source's root to the folder that holds Actor_NN/"
        )
    wanted = _MODALITIES[options.modality]
    order = (wanted, *(code for code in ("01", "02", "03") if code != wanted))
    modalities: dict[str, set[str]] = {}
    for path in files:
        if fields := _FIELDS.fullmatch(_stem(path)):
            modalities.setdefault(_stem(path)[3:], set()).add(fields[1])
    kept = {take: min(there, key=order.index) for take, there in modalities.items()}
    for path in files:
        yield from _items(path, kept, options)


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _items(path: str, kept: dict[str, str], options: Options) -> Iterator[Record | Reject]:
    name = _stem(path)
    fields = _FIELDS.fullmatch(name)
    if fields is None:
        detail = f"{path}: expected a name of seven two-digit codes, as 01-01-03-02-01-02-07; remove or rename the file"
        yield from emotion_rows.refused(f"{NAME}/all/{name}", None, options, "bad_row", detail)
        return
    modality, channel, emotion, intensity, statement, _, actor = fields.groups()
    take = name[3:]
    if emotion not in _EMOTIONS:
        detail = f"{path}: emotion code {emotion} is not one of {', '.join(_EMOTIONS)}"
        yield from emotion_rows.refused(f"{NAME}/all/{name}", None, options, "unknown_label", detail)
        return
    if modality != kept[take]:
        detail = f"{path}: the same take as {kept[take]}-{take}, which is used (option modality = {options.modality})"
        yield from emotion_rows.refused(f"{NAME}/all/{name}", None, options, "source_rule", detail)
        return
    if options.channel not in ("both", _CHANNELS[channel]):
        detail = f"{path}: {_CHANNELS[channel]}, left out by option channel = {options.channel}"
        yield from emotion_rows.refused(f"{NAME}/all/{take}", None, options, "source_rule", detail)
        return
    row = Record(
        uid=f"{NAME}/all/{take}",
        source=NAME,
        sub_task="emo_c",
        split=None,
        media=(MediaRef("audio" if modality == "03" else "video", path),),
        label=_LABELS[emotion],
        native_label=_EMOTIONS[emotion],
        licence_tag="CC-BY-NC-SA-4.0",
        options=tuple(_LABELS.values()),
        text=_STATEMENTS[statement],
        group_keys={
            "actor": f"ravdess-{actor}",
            "statement": statement,
            "take": take,
            "channel": _CHANNELS[channel],
            "intensity": "strong" if intensity == "02" else "normal",
        },
    )
    yield from emotion_rows.asked(row, options)
