"""What all parts of a recipe have in common."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from dataset_build.schema import SUB_TASKS


class RecipeError(ValueError):
    """A recipe, or an override of it, that cannot be used; the message names the key and the remedy."""


class Component(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def known_sub_tasks(names: Sequence[str]) -> None:
    for name in names:
        if name not in SUB_TASKS:
            near = difflib.get_close_matches(name, SUB_TASKS, n=1, cutoff=0.0)
            raise ValueError(f"{name!r} is not a sub-task; did you mean {near[0]!r}?")
