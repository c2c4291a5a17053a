"""Sources without an annotation file, whose folders are the labels: `<top>/<label>/<picture>`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import readers

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Labelled(NamedTuple):
    """One file below a label folder. `reason` is a reject reason where it is no item, and `problem` says why."""

    path: str  # relative to the source's root
    folder: str
    name: str
    reason: str = ""
    problem: str = ""


def top(root: str, candidates: Sequence[str], inside: Sequence[str]) -> str:
    """The first of `candidates` ("." is the root) that holds one of the folders `inside`. Raises BuildError."""
    for candidate in candidates:
        if any(readers.exists(root, _below(candidate, folder)) for folder in inside):
            return candidate
    tried = ", ".join(storage.join(root, candidate) for candidate in candidates)
    raise BuildError(
        f"{tried}: none of the folders {', '.join(inside)} is there; set the source's root to the folder that holds them"
    )


def pictures(root: str, folder: str) -> Iterator[Labelled]:
    """All files below the label folders of `folder`, sorted. A file of another kind (a list, a thumbnail data base)
    is left out by rule; a picture that lies in no label folder is a bad row. Other files beside the label folders are
    not looked at."""
    prefix = _below(folder, "")
    for path in readers.listing(root, folder):
        parts = path.removeprefix(prefix).split("/")
        is_picture = path.lower().endswith(PICTURE_SUFFIXES)
        if len(parts) == 2 and is_picture:
            yield Labelled(path, parts[0], parts[1])
        elif len(parts) == 2:
            problem = "not the name of a picture; label folders hold pictures"
            yield Labelled(path, parts[0], parts[1], "source_rule", problem)
        elif is_picture:
            yield Labelled(
                path, "/".join(parts[:-1]), parts[-1], "bad_row", f"expected {prefix}<label>/<picture>"
            )


def _below(folder: str, name: str) -> str:
    return name if folder in (".", "") else f"{folder}/{name}"
