"""HateMM: whole videos whatever their spans say, targets in three shapes, folds by video."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.schema import Record, Reject
from dataset_build.sources import hatemm
from tests.fixtures import sources as fixtures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hatemm")
    fixtures.build("hatemm", folder)
    return folder


def read(root: Path) -> dict[str, Record | Reject]:
    return {item.uid.removeprefix("hatemm/all/"): item for item in hatemm.read(str(root), hatemm.Options())}


def test_a_video_is_read_whole_from_the_folder_of_its_name(root):
    record = read(root)["hate_video_2"]
    (ref,) = record.media
    assert (ref.path, ref.start_s, ref.end_s) == ("hate_videos/hate_video_2.mp4", None, None)
    assert (record.label, record.native_label, record.split) == ("Yes", "Hate", None)
    assert record.group_keys == {"video": "hate_video_2", "target": "LGBTQ,Muslims"}
    assert read(root)["non_hate_video_6"].media[0].path == "non_hate_videos/non_hate_video_6.mp4"


@pytest.mark.parametrize("number", [3, 4, 5])
def test_spans_of_no_length_reversed_or_past_the_end_cost_nothing(root, number):
    assert isinstance(read(root)[f"hate_video_{number}"], Record)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hate_video_91", "not a Python literal"),
        ("non_hate_video_92", "one of the two is wrong"),
        ("non_hate_video_93", "not a Python literal"),
    ],
)
def test_a_torn_row_says_what_is_wrong(root, name, words):
    item = read(root)[name]
    assert isinstance(item, Reject) and item.reason == "bad_row"
    assert "HateMM_annotation.csv row" in item.detail and words in item.detail


@pytest.mark.parametrize(
    ("cell", "targets"),
    [
        ("Blacks", ("Blacks",)),
        ("Jews,Blacks", ("Blacks", "Jews")),
        ("['Blacks', 'Sexits']", ("Blacks", "Sexist")),
        ("Sexits", ("Sexist",)),
        ("", ()),
    ],
)
def test_targets_come_in_three_shapes(cell, targets):
    assert hatemm._targets(cell) == targets


@given(st.lists(st.sampled_from(["Blacks", "Jews", "Others", "LGBTQ"]), min_size=1))
def test_every_shape_of_the_same_targets_gives_the_same_key(words):
    assert hatemm._targets(repr(words)) == hatemm._targets(",".join(words)) == tuple(sorted(set(words)))


@given(st.text(max_size=40))
def test_any_target_cell_gives_words_or_a_value_error(cell):
    try:
        assert all(isinstance(word, str) and word for word in hatemm._targets(cell))
    except ValueError as error:
        assert str(error)


def test_a_label_corrected_in_a_copy_does_not_move_the_file(tmp_path):
    csv = "video_file_name,label,hate_snippet,target\nhate_video_7.mp4,Non Hate,,Others\n"
    (tmp_path / "HateMM_annotation.csv").write_text(csv)
    record = read(tmp_path)["hate_video_7"]
    assert (record.label, record.media[0].path) == ("No", "hate_videos/hate_video_7.mp4")


def test_no_split_is_claimed_and_every_video_is_a_group_of_its_own(root):
    records = [item for item in read(root).values() if isinstance(item, Record)]
    assert hatemm.SPLIT == "folds"
    assert {(record.split, record.fold) for record in records} == {(None, None)}
    assert len({record.group_keys[hatemm.GROUP_KEY] for record in records}) == len(records)
