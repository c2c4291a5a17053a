"""CREMA-D: the name says everything, and two rules say what the label is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, crema_d
from tests.fixtures.sources import crema_d as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crema_d")
    fixture.build(folder)
    return folder


def read(root, **options):
    return {item.uid: item for item in crema_d.read(str(root), crema_d.Options(**options))}


def test_a_clip_has_the_facts_of_its_name(root):
    assert read(root)["crema_d/all/1001_IEO_FEA_HI"] == Record(
        uid="crema_d/all/1001_IEO_FEA_HI",
        source="crema_d",
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", "VideoFlash/1001_IEO_FEA_HI.flv"),),
        label="fear",
        native_label="FEA",
        licence_tag="ODbL-1.0",
        options=("anger", "disgust", "fear", "joy", "neutral", "sadness"),
        text="It's eleven o'clock.",
        label_rule="intended",
        group_keys={"actor": "crema_d-1001", "sentence": "IEO", "level": "HI"},
    )


def test_the_crowd_may_have_seen_another_emotion_and_a_divided_crowd_gives_none(root):
    found = read(root, labels="crowd")
    other = found["crema_d/all/1001_IEO_FEA_HI"]
    assert (other.label, other.native_label, other.label_rule) == ("anger", "A", "crowd")
    assert found["crema_d/all/1002_TIE_HAP_XX"].label == "joy"
    divided = found["crema_d/all/1002_TIE_SAD_XX"]
    assert isinstance(divided, Reject) and divided.reason == "source_rule" and "N:S" in divided.detail
    assert found["crema_d/all/1091_WSI_SAD_XX"].reason == "bad_row"  # the table has no row for it
    assert set(found) == set(read(root))


def test_without_the_list_the_clips_are_the_list(root, tmp_path):
    for path in (root / "VideoFlash").iterdir():
        (tmp_path / "VideoFlash").mkdir(exist_ok=True)
        (tmp_path / "VideoFlash" / path.name).write_bytes(b"")
    names = {f"crema_d/all/{path.stem}" for path in (root / "VideoFlash").iterdir()}
    assert set(read(tmp_path)) == names


def test_a_list_without_file_names_is_an_error_that_says_which_column(tmp_path):
    (tmp_path / "SentenceFilenames.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BuildError, match="column Filename missing; found a, b"):
        read(tmp_path)


def test_crowd_labels_need_their_table(root, tmp_path):
    (tmp_path / "SentenceFilenames.csv").write_text("Filename\n1001_IEO_FEA_HI\n")
    with pytest.raises(BuildError, match="crowd's votes"):
        read(tmp_path, labels="crowd")


def test_splits_keep_actors_apart():
    assert crema_d.GROUP_KEY == "actor"
    assert base.split_mode(crema_d, crema_d.Options()) == "folds"
    assert base.split_mode(crema_d, crema_d.Options(split="shares")) == "shares"


@given(name=st.from_regex(r"[0-9A-Z_]{0,16}", fullmatch=True), vote=st.text(max_size=6))
def test_any_name_and_vote_is_a_record_or_a_reject(name, vote):
    for votes in (None, {name: vote}):
        (item,) = crema_d._items("row 1", name, votes, crema_d.Options())
        assert isinstance(item, Record) or item.reason in ("bad_row", "unknown_label", "source_rule")
