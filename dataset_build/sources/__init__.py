"""The sources: one module per data set, each knowing where its files are and what a row means, nothing else."""

from __future__ import annotations

import importlib
from typing import cast

from dataset_build.sources.base import Adapter

REGISTRY = {
    "emoji_pictures": "dataset_build.sources.emoji_pictures",
    "emoji_clips": "dataset_build.sources.emoji_clips",
    "gestures": "dataset_build.sources.gestures",
    "jokes": "dataset_build.sources.jokes",
    "sarcastic_jokes": "dataset_build.sources.sarcastic_jokes",
    "emoset": "dataset_build.sources.emoset",
    "caer": "dataset_build.sources.caer",
    "ravdess": "dataset_build.sources.ravdess",
    "mustard": "dataset_build.sources.mustard",
    "mustard_pp": "dataset_build.sources.mustard_pp",
    "intentonomy": "dataset_build.sources.intentonomy",
    "mintrec": "dataset_build.sources.mintrec",
}


def adapter(name: str) -> Adapter:
    """The adapter module of a source in the registry."""
    return cast(Adapter, importlib.import_module(REGISTRY[name]))
