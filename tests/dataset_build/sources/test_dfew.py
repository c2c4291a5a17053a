"""DFEW: one record a clip, with the fold that tests it; lists that contradict each other cost the clip."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import dfew
from tests.fixtures.sources import base as media
from tests.fixtures.sources import dfew as fixture

OFFICIAL = "EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dfew")
    fixture.build(folder)
    return folder


def read(root, **options):
    return {item.uid: item for item in dfew.read(str(root), dfew.Options(**options))}


def test_a_clip_has_its_zeros_back_and_the_fold_that_tests_it(root):
    assert read(root)["dfew/all/00742"] == Record(
        uid="dfew/all/00742",
        source="dfew",
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", "Clip/original/00742.mp4"),),
        label="joy",
        native_label="Happy",
        licence_tag="dfew-request",
        options=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
        fold=2,
        group_keys={"clip": "dfew-00742"},
    )


def test_clips_are_found_in_the_folders_of_their_archives(tmp_path):
    fixture.write_lists(tmp_path, OFFICIAL, fixture.lists())
    for path in ("data_part_1-2-3/00042.mp4", "00142.mp4"):
        media.write(tmp_path / "Clip/original" / path, b"a clip; adapters open no media")
    found = read(tmp_path)
    paths = {clip: found[f"dfew/all/{clip}"].media[0].path for clip in ("00042", "00142", "00242")}
    assert paths == {
        "00042": "Clip/original/data_part_1-2-3/00042.mp4",
        "00142": "Clip/original/00142.mp4",
        "00242": "Clip/original/00242.mp4",  # not there: the build says so
    }


def test_every_clip_is_tested_in_the_fold_whose_list_names_it(tmp_path):
    fixture.write_lists(tmp_path, OFFICIAL, fixture.lists())
    found = read(tmp_path)
    assert {uid: item.fold for uid, item in found.items()} == {
        f"dfew/all/{clip:05d}": fold - 1 for clip, (fold, _) in fixture.clips().items()
    }


@pytest.mark.parametrize(
    "path",
    [
        "EmoLabel_DataSplit/{part}(single_labeled)/set_{fold}.csv",
        "{part}(single-labeled)/set_{fold}.csv",
        "single_label/label/single_{part}set_{fold}.csv",
        "label/single_{part}set_{fold}.csv",
    ],
)
def test_all_spellings_of_the_lists_give_the_same_records(tmp_path, path):
    fixture.write_lists(tmp_path / "one", OFFICIAL, fixture.lists())
    fixture.write_lists(tmp_path / "other", path, fixture.lists())
    assert read(tmp_path / "other") == read(tmp_path / "one")


def test_lists_that_contradict_each_other_cost_the_clip_and_say_where(root):
    found = read(root)
    trained = found["dfew/all/00242"]
    assert isinstance(trained, Reject) and trained.reason == "bad_row"
    assert "test(single-labeled)/set_3.csv row 1" in trained.detail
    assert "trains on it in the fold that tests it" in trained.detail
    labelled = [item for item in found.values() if isinstance(item, Reject) and " but 7 in " in item.detail]
    assert len(labelled) == 1 and labelled[0].reason == "bad_row"
    assert "in no test list" in found["dfew/all/99999"].detail


def test_clips_that_a_train_list_lacks_are_reported_in_the_log(tmp_path, caplog):
    rows = fixture.lists()
    rows["train", 4] = rows["train", 4][2:]
    fixture.write_lists(tmp_path, OFFICIAL, rows)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    assert all(isinstance(item, Record) for item in found.values())
    assert "train list 4 lacks 2 clips" in caplog.text


def test_a_missing_list_is_an_error_that_names_it(tmp_path):
    rows = fixture.lists()
    del rows["train", 4]
    fixture.write_lists(tmp_path, OFFICIAL, rows)
    with pytest.raises(BuildError, match=r"train\(single-labeled\)/set_4.csv"):
        read(tmp_path)


@pytest.mark.parametrize("folder", ["Clip/clip_224x224_16f", "single_label/data"])
def test_face_frames_are_picked_evenly(tmp_path, folder):
    fixture.write_lists(tmp_path, OFFICIAL, fixture.lists())
    for number in range(1, 17):
        media.write(tmp_path / folder / "00742" / f"00742_{number:05d}.jpg", b"x")
    record = read(tmp_path, clips="frames")["dfew/all/00742"]
    assert [ref.kind for ref in record.media] == ["image"] * 4
    assert [ref.path[-9:] for ref in record.media] == ["00003.jpg", "00007.jpg", "00011.jpg", "00015.jpg"]
    without = read(tmp_path, clips="frames")["dfew/all/00842"]  # the build reports its first frame as missing
    assert without.media == (MediaRef("image", "Clip/clip_224x224_16f/00842/00842_00001.jpg"),)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(name=st.text(max_size=12), label=st.text(max_size=6))
def test_any_row_is_a_record_or_a_reject(tmp_path, name, label):
    rows = fixture.lists()
    cells = [cell.replace('"', '""') for cell in (name, label)]
    rows["test", 1].append('"' + '","'.join(cells) + '"')
    for (part, fold), lines in rows.items():
        path = tmp_path / OFFICIAL.format(part=part, fold=fold)
        media.write(path, "\n".join(["video_name,label", *lines]).encode("utf-8", "replace"))
    for item in dfew.read(str(tmp_path), dfew.Options()):
        assert isinstance(item, Record) or item.reason in ("bad_row", "unknown_label")
