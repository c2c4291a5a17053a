"""Lines of television dialogues: mending misread characters, and which scenes belong together.

Shared by `mustard` and `mustard_pp`, whose texts have the same origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Mac Roman's quotation marks (bytes D2 to D5), read as Latin-1. No English line holds these letters.
_MAC_QUOTES = str.maketrans("ÒÓÔÕ", "“”‘’")
# The three bytes of a UTF-8 dash, quotation mark or ellipsis (E2 80 xx), read as Windows-1252 (â€™) or -1257 (ā€™).
_MISREAD = re.compile("[âā]€(.)")

# Shorter lines ("What are you doing?") are said in many scenes.
_TELLING_WORDS = 6


class Scene(NamedTuple):
    """A scene's id and lines; `part_of` is a larger unit that it is known to belong to (an episode), or ""."""

    scene: str
    show: str
    lines: Sequence[str]
    part_of: str = ""


def mend(text: str) -> str:
    """The text with its punctuation restored where it was read in another character set."""
    return _MISREAD.sub(_punctuation, text).translate(_MAC_QUOTES)


def _punctuation(found: re.Match[str]) -> str:
    for encoding in ("cp1252", "cp1257"):
        try:
            return (b"\xe2\x80" + found[1].encode(encoding)).decode()
        except UnicodeError:
            continue
    return found[0]


def dialogues(scenes: Iterable[Scene]) -> dict[str, str]:
    """Scene id → name of its dialogue: `show/first scene`, one for all scenes of a show that share a line or an episode.

    In these sources the line that is asked about is often context of the next item, so that scenes drawn apart into
    train and test would show the answer's scene in training. A shared line has at least `_TELLING_WORDS` words.
    """
    parent: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}
    shows: dict[str, str] = {}
    for scene in scenes:
        parent.setdefault(scene.scene, scene.scene)
        shows.setdefault(scene.scene, scene.show.lower())
        marks = [f"episode {scene.part_of}"] if scene.part_of else []
        for line in scene.lines:
            words = re.findall(r"\w+", line.lower())
            if len(words) >= _TELLING_WORDS:
                marks.append(" ".join(words))
        for mark in marks:
            one = _top(parent, first.setdefault((scene.show, mark), scene.scene))
            parent[_top(parent, scene.scene)] = one
    return {scene: f"{shows[scene]}/{_top(parent, scene)}" for scene in parent}


def _top(parent: dict[str, str], scene: str) -> str:
    while parent[scene] != scene:
        parent[scene] = parent[parent[scene]]  # halve the way for the next one
        scene = parent[scene]
    return scene
