"""MER2023 and MER2024: tables by name, clips whatever their suffix, what nobody labelled leaves by rule."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import mer2023, mer2024
from tests.fixtures.sources import base as media
from tests.fixtures.sources import mer2023 as fixture_2023
from tests.fixtures.sources import mer2024 as fixture_2024


@pytest.fixture(scope="module")
def root_2023(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mer2023")
    fixture_2023.build(folder)
    return folder


@pytest.fixture(scope="module")
def root_2024(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mer2024")
    fixture_2024.build(folder)
    return folder


def read(adapter, root, **options):
    return {item.uid: item for item in adapter.read(str(root), adapter.Options(**options))}


def test_a_clip_comes_with_its_transcript_and_the_six_emotions(root_2023):
    assert read(mer2023, root_2023)["mer2023/train/sample_00099006"] == Record(
        uid="mer2023/train/sample_00099006",
        source="mer2023",
        sub_task="emo_c",
        split="train",
        media=(MediaRef("video", "train/sample_00099006.avi"),),
        label="neutral",
        native_label="neutral",
        licence_tag="mer2023-eula",
        options=("neutral", "anger", "joy", "sadness", "worry", "surprise"),
        text="你好。",
        group_keys={"clip": "mer/sample_00099006", "part": "train"},
    )
    assert read(mer2023, root_2023, language="english")["mer2023/train/sample_00099006"].text == "Hello."


def test_all_three_test_sets_are_test_rows_that_name_their_part(root_2023):
    found = read(mer2023, root_2023)
    assert found["mer2023/test/test3/samplenew_00099025"].group_keys["part"] == "test3"
    records = [item for item in found.values() if isinstance(item, Record)]
    assert Counter(item.group_keys["part"] for item in records if item.split == "test") == {
        "test1": 6,
        "test2": 6,
        "test3": 6,
    }


def test_rows_that_nobody_labelled_leave_by_rule(root_2023):
    found = read(mer2023, root_2023)
    for name in ("samplenew_00099091", "samplenew_00099092"):
        reject = found[f"mer2023/test/test3/{name}"]
        assert isinstance(reject, Reject) and reject.reason == "source_rule"


def test_a_name_that_is_no_name_never_becomes_a_path(root_2023):
    rejects = [item for item in read(mer2023, root_2023).values() if isinstance(item, Reject)]
    assert any("'../outside'" in item.detail and item.reason == "bad_row" for item in rejects)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_clip_may_have_either_suffix(tmp_path, suffix):
    for part in ("train", "test1", "test2", "test3"):
        media.write(tmp_path / f"{part}-label.csv", "name,discrete\nsample_00099001,sad\n")
        media.write(tmp_path / part / f"sample_00099001{suffix}", b"x")
    record = read(mer2023, tmp_path)["mer2023/train/sample_00099001"]
    assert record.media[0].path == f"train/sample_00099001{suffix}"


def test_test_tables_may_lie_in_a_folder_of_their_own_and_one_must_not_lack(tmp_path):
    media.write(tmp_path / "mer2023train/train-label.csv", "name,discrete\nsample_00099001,sad\n")
    for part in ("test1", "test2"):
        media.write(tmp_path / f"test-labels/{part}-label.csv", "name,discrete\nsample_00099001,sad\n")
    with pytest.raises(BuildError, match="test3-label.csv"):
        read(mer2023, tmp_path)
    media.write(tmp_path / "test-labels/test3-label.csv", "name,discrete\nsample_00099001,sad\n")
    assert len(read(mer2023, tmp_path)) == 4  # the same name in four parts is four clips


def test_the_archives_may_lie_side_by_side_as_they_unpack(tmp_path):
    table = "name,discrete\nsample_00099001,sad\n"
    folders = {
        "train": "mer2023train",
        "test1": "mer2023test1&2",
        "test2": "mer2023test1&2",
        "test3": "mer2023test3",
    }
    for part, folder in folders.items():
        tables = "mer2023train" if part == "train" else "mer2023-test-labels"
        media.write(tmp_path / tables / f"{part}-label.csv", table)
        media.write(tmp_path / folder / part / "sample_00099001.avi", b"a clip; adapters open no media")
    found = read(mer2023, tmp_path).values()
    assert [item.media[0].path for item in found] == [
        f"{folder}/{part}/sample_00099001.avi" for part, folder in folders.items()
    ]


def test_test_clips_are_found_among_the_unlabelled_ones(root_2024):
    found = read(mer2024, root_2024)
    record = found["mer2024/test/test2/sample_00098019"]
    assert record.media == (MediaRef("video", "video-unlabeled-with-test2noise/sample_00098019.mp4"),)
    assert not [uid for uid in found if "00098095" in uid]
    assert found["mer2024/train/samplenew3_00098004"].text == "等一下，\n我来了。"


def test_without_the_published_test_labels_there_are_only_training_rows(root_2024, tmp_path):
    media.write(tmp_path / "label-disdim.csv", (root_2024 / "label-disdim.csv").read_bytes())
    assert {item.split for item in read(mer2024, tmp_path).values()} == {"train"}


def test_both_say_that_hosted_models_must_not_see_the_clips():
    for adapter in (mer2023, mer2024):
        assert "hosted API models" in adapter.LIMITS and "academic" in adapter.LIMITS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(name=st.text(max_size=12), label=st.sampled_from(["happy", "Happy", "", "nan", "joyful"]))
def test_any_row_is_a_record_or_a_reject(tmp_path, name, label):
    cell = name.replace('"', '""')
    table = f'name,discrete\n"{cell}",{label}\n'.encode("utf-8", "replace")
    media.write(tmp_path / "label-disdim.csv", table)
    for item in mer2024.read(str(tmp_path), mer2024.Options()):
        assert isinstance(item, Record) or item.reason in ("bad_row", "unknown_label", "source_rule")
