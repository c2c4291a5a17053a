"""What every source module offers, and the few readers they share.

An adapter is a module, not a class: constants that describe the set, an `Options` model, and `read`. It drives from
the annotation file, never from a directory listing, opens no media, and yields every row that describes an item: as a
`Record` (one per sub-task it serves) or as a `Reject` that says why not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from dataset_build.errors import BuildError
from dataset_build.schema import Record, Reject

# An annotation file larger than this is not one of ours.
MAX_ANNOTATION_BYTES = 1 << 30

# How pictures of a source look, which decides what a perceptual hash can say about them (`dataset_build.dedup`).
Pictures = Literal["photographs", "drawings", "cards"]

# official: records carry their split (val is carved from train where the source has none);
# folds: k-fold by group; shares: test and val shares by group.
SplitMode = Literal["official", "folds", "shares"]


class Options(BaseModel):
    """The options of an adapter; a source without any uses this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Adapter(Protocol):
    """A source module."""

    NAME: str
    VERSION: str  # raise it when `read` gives other records for the same files
    TITLE: str
    LICENCE: str
    CITATION: str
    LIMITS: str  # what these data cannot show; printed in the dataset card
    SUB_TASKS: tuple[str, ...]
    PICTURES: Pictures
    SPLIT: SplitMode
    GROUP_KEY: str  # the key of Record.group_keys whose groups never straddle two splits
    DEMONSTRATION: bool
    Options: type[BaseModel]

    def read(self, root: str, options: Any) -> Iterator[Record | Reject]:
        """All items of the source, lazily and in the annotation's order. Raises BuildError without an annotation."""
        ...


def annotation_bytes(root: str, path: str) -> bytes:
    """The bytes of an annotation file. Raises BuildError naming it where it is missing or absurdly large."""
    full = os.path.join(root, path)
    try:
        size = os.path.getsize(full)
        if size > MAX_ANNOTATION_BYTES:
            raise BuildError(
                f"{full}: {size} bytes is too large for an annotation file; is it the right file?"
            )
        with open(full, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise BuildError(
            f"{full}: the annotation file cannot be read ({error.strerror}); fetch the source"
        ) from error


def annotation_json(root: str, path: str, kind: type) -> Any:
    """The JSON value of an annotation file, which must be a `kind` (list or dict)."""
    try:
        value = json.loads(annotation_bytes(root, path))
    except ValueError as error:
        if isinstance(error, BuildError):
            raise
        raise BuildError(f"{os.path.join(root, path)}: not JSON ({error}); fetch the source again") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise BuildError(f"{os.path.join(root, path)}: expected a JSON {kind.__name__}, found a {found}")
    return value
