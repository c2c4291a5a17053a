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
    "caer_s": "dataset_build.sources.caer_s",
    "fi": "dataset_build.sources.fi",
    "emotion6": "dataset_build.sources.emotion6",
    "affectnet": "dataset_build.sources.affectnet",
    "raf_db": "dataset_build.sources.raf_db",
    "fer_plus": "dataset_build.sources.fer_plus",
    "emotic": "dataset_build.sources.emotic",
    "artemis": "dataset_build.sources.artemis",
    "expw": "dataset_build.sources.expw",
    "caer": "dataset_build.sources.caer",
    "cmu_mosei": "dataset_build.sources.cmu_mosei",
    "crema_d": "dataset_build.sources.crema_d",
    "dfew": "dataset_build.sources.dfew",
    "iemocap": "dataset_build.sources.iemocap",
    "mer2023": "dataset_build.sources.mer2023",
    "mer2024": "dataset_build.sources.mer2024",
    "meld": "dataset_build.sources.meld",
    "ravdess": "dataset_build.sources.ravdess",
    "urfunny": "dataset_build.sources.urfunny",
    "memotion": "dataset_build.sources.memotion",
    "m2h2": "dataset_build.sources.m2h2",
    "mustard": "dataset_build.sources.mustard",
    "mustard_pp": "dataset_build.sources.mustard_pp",
    "mmsd": "dataset_build.sources.mmsd",
    "mmsd2": "dataset_build.sources.mmsd2",
    "intentonomy": "dataset_build.sources.intentonomy",
    "mintrec": "dataset_build.sources.mintrec",
    "mintrec2": "dataset_build.sources.mintrec2",
    "hateful_memes": "dataset_build.sources.hateful_memes",
    "mmhs150k": "dataset_build.sources.mmhs150k",
    "hatemm": "dataset_build.sources.hatemm",
    "harmeme": "dataset_build.sources.harmeme",
    "mami": "dataset_build.sources.mami",
}


def adapter(name: str) -> Adapter:
    """The adapter module of a source in the registry."""
    return cast(Adapter, importlib.import_module(REGISTRY[name]))
