"""M2H2: is the utterance humorous? (clips of a Hindi situation comedy)

Layout (github.com/declare-lab/M2H2-dataset): `Raw-Text/Ep-<n>.tsv` for 13 episodes, with the columns Scenes, Sl. No.,
Start_time, End_time, Utterance, Label and Speaker; blank rows (tabs only) lie between scenes. A clip per utterance:
`Raw-Visual/<n>/Scene_<k>/<Sl. No.>.mp4`, its sound also in `Raw-Audio/`. Older commits have spaces for hyphens in folder
names, and `ICMI-2021-dataset - Ep-<n>.tsv`. All of it lies below `Main-Dataset/`, `Main Dataset/` or the root itself.

The context is what was said before in the same scene, at most `context_turns` turns. Speaker is
`name,u<Sl. No. that is answered>`. Utterances are Hindi in Devanagari.

No split is published, so episodes are kept whole: drawn by share (default) or into folds.

Known dirt: End_time holds a duration, not a time (no clip is cut by it here); numbers have gaps; some clips are missing;
some rows have no label (`nan`, as pandas writes it, or nothing): they leave by rule and stay in the context of others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.labels import YES_NO
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, readers

NAME = "m2h2"
VERSION = "1"
TITLE = "M2H2: humour in a Hindi situation comedy"
LICENCE = "no licence published; clips of a television show, research use, no redistribution"
CITATION = "Chauhan et al., M2H2: A Multimodal Multiparty Hindi Dataset For Humor Recognition in Conversations, ICMI 2021"
LIMITS = "13 episodes of one show (Shrimaan Shrimati Phir Se), so the same few voices in train and test; Hindi only."
SIZE = "6,191 utterances of 13 episodes"
DOWNLOAD = "clone github.com/declare-lab/M2H2-dataset; root: its folder, or Main-Dataset/ in it, with Raw-Text/ and Raw-Visual/"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("humor",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "shares"
SPLIT_MODES: dict[str, base.SplitMode] = {"shares": "shares", "folds": "folds"}
GROUP_KEY = "episode"
DEMONSTRATION = False

_COLUMNS = ("Scenes", "Sl. No.", "Utterance", "Label", "Speaker")
_EPISODE_FILE = re.compile(r"(?:ICMI-2021-dataset - )?Ep-(\d+)\.tsv")
_SHOW = "shrimaan shrimati phir se"
_LABELS = {"humor": "Yes", "non-humor": "No"}
_UNLABELLED = ("", "nan")
_ABOVE = ("", "Main-Dataset/", "Main Dataset/")


class Options(base.Options):
    """`split`: episodes into shares or folds. `context_turns`: how many turns of the scene come before."""

    split: Literal["shares", "folds"] = "shares"
    context_turns: int = Field(8, ge=0, le=100)


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    texts = readers.find(
        root, *(f"{above}Raw{gap}Text" for above in _ABOVE for gap in "- "), what="folder of annotation files"
    )
    above = texts.rpartition("Raw")[0]
    clips = readers.folder(root, f"{above}Raw-Visual", f"{above}Raw Visual")
    episodes = _episodes(root, texts)
    if not episodes:
        raise BuildError(f"{storage.join(root, texts)}: no Ep-<n>.tsv in it; fetch the source again")
    for episode, path in sorted(episodes.items()):
        context: list[Turn] = []
        scene = ""
        for row in readers.table(root, path, _COLUMNS, delimiter="\t", quoting=False):
            if row.cells.get("Scenes", "").strip() != scene:
                scene, context = row.cells.get("Scenes", "").strip(), []
            before = tuple(context[-options.context_turns :]) if options.context_turns else ()
            yield _item(f"{path}, row {row.line}", str(episode), row, clips, before)
            if not row.problem:
                context.append(Turn(_speaker(row)[0], row.cells["Utterance"].strip()))


def _episodes(root: str, folder: str) -> dict[int, str]:
    """The annotation file of each episode; the newer name where both are there."""
    found: dict[int, str] = {}
    for path in sorted(readers.listing(root, folder), reverse=True):  # ICMI-… before Ep-…
        name = _EPISODE_FILE.fullmatch(path.rpartition("/")[2])
        if name and path == f"{folder}/{name[0]}":
            found[int(name[1])] = path
    return found


def _speaker(row: readers.Row) -> tuple[str, str]:
    """Name and the number of the utterance that is answered ("" for none) of `name,u12`."""
    name, _, answered = row.cells["Speaker"].partition(",")
    answered = answered.strip().removeprefix("u")
    return name.strip(), "" if answered == "-" else answered


def _item(
    where: str, episode: str, row: readers.Row, clips: str, context: tuple[Turn, ...]
) -> Record | Reject:
    scene, number, text = (row.cells.get(name, "").strip() for name in ("Scenes", "Sl. No.", "Utterance"))
    uid = f"{NAME}/all/{episode}/{scene or 'no-scene'}/{number or f'row-{row.line}'}"
    if row.problem or not (scene and number and text):
        problem = (
            row.problem or f"Scenes {scene!r}, Sl. No. {number!r}, Utterance {text!r:.60}; none may be empty"
        )
        return Reject(uid, NAME, None, "humor", "bad_row", f"{where}: {problem}")
    # Scenes are called Scene_3, in some episodes only 3.
    folder = scene if scene.lower().startswith("scene") else f"Scene_{scene}"
    native = row.cells["Label"].strip()
    label = _LABELS.get(native.lower())
    if native.lower() in _UNLABELLED:
        detail = f"{where}: without a label (Label is {native!r})"
        return Reject(uid, NAME, None, "humor", "source_rule", detail)
    if label is None:
        detail = f"{where}: Label is {native!r:.60}; expected one of {', '.join(_LABELS)}"
        return Reject(uid, NAME, None, "humor", "unknown_label", detail)
    speaker, answered = _speaker(row)
    groups = {"episode": f"{_SHOW}/{episode}", "show": _SHOW, "scene": f"{_SHOW}/{episode}/{folder}"}
    if speaker:
        groups["speaker"] = f"{_SHOW}/{speaker.lower()}"
    if answered:
        groups["answers"] = f"{_SHOW}/{episode}/{answered}"
    return Record(
        uid=uid,
        source=NAME,
        sub_task="humor",
        split=None,
        media=(MediaRef("video", f"{clips}/{episode}/{folder}/{number}.mp4"),),
        label=label,
        native_label=native,
        licence_tag="m2h2-research",
        options=YES_NO,
        text=text,
        speaker=speaker,
        context=context,
        group_keys=groups,
    )
