"""RAVDESS: a take in three modalities is one record, and everything is read off the file name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, ravdess
from tests.fixtures import sources as fixtures

TAKE = "01-03-01-01-01-01"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ravdess")
    fixtures.build("ravdess", folder)
    return folder


def read(root, **options):
    return {item.uid: item for item in ravdess.read(str(root), ravdess.Options(**options))}


def test_a_take_is_one_record_with_the_facts_of_its_name(root):
    record = read(root)["ravdess/all/01-03-01-01-01-07"]
    assert record == Record(
        uid="ravdess/all/01-03-01-01-01-07",
        source="ravdess",
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", "Video_Speech_Actor_07/Actor_07/01-01-03-01-01-01-07.mp4"),),
        label="joy",
        native_label="happy",
        licence_tag="CC-BY-NC-SA-4.0",
        options=("neutral", "calm", "joy", "sadness", "anger", "fear", "disgust", "surprise"),
        text="Kids are talking by the door.",
        group_keys={
            "actor": "ravdess-07",
            "statement": "01",
            "take": "01-03-01-01-01-07",
            "channel": "speech",
            "intensity": "normal",
        },
    )


@pytest.mark.parametrize(
    ("modality", "kind", "code"),
    [("audio_video", "video", "01"), ("silent", "video", "02"), ("sound", "audio", "03")],
)
def test_the_other_modalities_of_a_take_leave_by_rule_and_name_the_one_that_is_used(
    root, modality, kind, code
):
    found = read(root, modality=modality)
    used = found[f"ravdess/all/{TAKE}"]
    assert isinstance(used, Record)
    assert used.media[0].kind == kind and f"/{code}-{TAKE}" in used.media[0].path
    others = [item for uid, item in found.items() if uid.endswith(f"-{TAKE}")]
    assert len(others) == 2
    assert all(item.reason == "source_rule" and f"{code}-{TAKE}" in item.detail for item in others)


def test_a_take_without_the_wanted_modality_uses_the_next_one(root):
    assert "02-02-05-02-02-01-07.mp4" in read(root)["ravdess/all/02-05-02-02-01-07"].media[0].path


def test_songs_can_be_left_out_by_rule(root):
    found = read(root, channel="speech")
    song = found["ravdess/all/02-04-02-02-01-07"]
    assert isinstance(song, Reject) and song.reason == "source_rule" and "channel = speech" in song.detail
    assert len(found) == len(read(root))


def test_splits_keep_actors_apart():
    assert ravdess.GROUP_KEY == "actor"
    assert base.split_mode(ravdess, ravdess.Options()) == "folds"
    assert base.split_mode(ravdess, ravdess.Options(split="shares")) == "shares"


@given(st.from_regex(r"[0-9-]{0,24}", fullmatch=True))
def test_any_name_of_digits_is_a_record_or_a_reject(name):
    path = f"Actor_01/{name}.mp4"
    items = list(ravdess._items(path, {name[3:]: name[:2]}, ravdess.Options()))
    assert len(items) == 1
    assert isinstance(items[0], Record) or items[0].reason in ("bad_row", "unknown_label")
