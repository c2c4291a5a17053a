"""MIntRec: rows without quoting, the alias, both splits."""

from __future__ import annotations

import shutil
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build import labels
from dataset_build.schema import Record, Reject
from dataset_build.sources import base, mintrec
from tests.fixtures import sources as fixtures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mintrec")
    fixtures.build("mintrec", folder)
    return folder


def read(root: Path, **options: str) -> list[Record | Reject]:
    return list(mintrec.read(str(root), mintrec.Options.model_validate(options)))


def test_an_utterance_becomes_a_record_of_its_clip(root):
    record = next(item for item in read(root) if item.uid == "mintrec/test/S04_E01_960")
    assert record.media[0].path == "raw_data/S04/E01/960.mp4"
    assert record.text == "mintrec clerk 60 talks about the stapler in aisle complain"
    assert (record.label, record.options) == ("Complain", labels.MINTREC_INTENTS)
    assert record.group_keys == {"episode": "S04_E01", "season": "S04", "show": "superstore"}


def test_quotes_are_characters_of_the_text(root):
    texts = [item.text for item in read(root) if isinstance(item, Record)]
    assert texts[:2] == ['he said "it\'s 6" tall', '"what a day']


def test_apologize_is_apologise(root):
    record = next(
        item for item in read(root) if isinstance(item, Record) and item.native_label == "Apologize"
    )
    assert record.label == "Apologise"


def test_the_episode_split_names_no_split_and_keeps_every_row(root):
    official, by_episode = read(root), read(root, split="episode")
    assert [item.split for item in by_episode] == [None] * len(official)
    assert base.split_mode(mintrec, mintrec.Options(split="episode")) == "shares"
    assert base.split_mode(mintrec, mintrec.Options()) == "official"
    clips = [item.media for item in official if isinstance(item, Record)]
    assert clips == [item.media for item in by_episode if isinstance(item, Record)]
    assert {item.group_keys["episode"] for item in by_episode if isinstance(item, Record)} >= {"S04_E01"}


def test_the_folder_above_is_a_root_too(root, tmp_path):
    shutil.copytree(root, tmp_path / "MIntRec")
    below = [item.media[0].path for item in read(tmp_path) if isinstance(item, Record)]
    assert below[0] == "MIntRec/raw_data/S04/E01/900.mp4"


def test_every_intent_of_mintrec_is_one_of_mintrec2_and_so_are_those_of_the_gestures():
    assert set(labels.MINTREC_INTENTS) < set(labels.MINTREC2_INTENTS)
    assert set(labels.GESTURE_INTENTS) < set(labels.MINTREC2_INTENTS)


@given(st.sampled_from(labels.MINTREC2_INTENTS), st.sampled_from([str.upper, str.lower, str.title]))
def test_intents_are_found_in_any_case(word, change):
    assert labels.intent(f" {change(word)} ") == word


@given(st.text(string.ascii_letters, max_size=12))
def test_other_words_are_no_intents(word):
    found = labels.intent(word)
    assert found is None or word.lower() in {found.lower(), *labels.INTENT_SPELLINGS}
