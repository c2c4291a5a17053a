"""CAER: folders are labels, the split folder is called `validation`, numbers start again in every folder."""

from __future__ import annotations

import shutil

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import caer
from tests.fixtures import sources as fixtures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caer")
    fixtures.build("caer", folder)
    return folder


def read(root, **options):
    return {item.uid: item for item in caer.read(str(root), caer.Options(**options))}


def test_a_clip_is_named_by_split_folder_and_number(root):
    record = read(root)["caer/val/Happy/0001"]
    assert record == Record(
        uid="caer/val/Happy/0001",
        source="caer",
        sub_task="emo_c",
        split="val",
        media=(MediaRef("video", "validation/Happy/0001.avi"),),
        label="joy",
        native_label="Happy",
        licence_tag="caer-research",
        options=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
        group_keys={"clip": "caer/val/Happy/0001"},
    )


def test_both_spellings_of_the_anger_folder_mean_anger(root):
    found = read(root)
    assert {found["caer/train/Anger/0001"].label, found["caer/test/Angry/0001"].label} == {"anger"}


def test_leftovers_of_an_operating_system_are_no_items(root):
    assert not [uid for uid in read(root) if "Thumbs" in uid or "._" in uid]


def test_the_second_split_may_be_called_val_and_everything_may_lie_one_folder_down(root, tmp_path):
    inner = tmp_path / "CAER"
    shutil.copytree(root, inner)
    (inner / "validation").rename(inner / "val")
    assert set(read(tmp_path)) == set(read(root))


def test_asking_both_ways_gives_two_items_a_row_also_for_rejects(root):
    both = read(root, ask="both")
    assert len(both) == 2 * len(read(root))
    assert both["caer/val/Happy/0001:emo_o"].options == ()
    assert isinstance(both["caer/train/Boredom/0001:emo_o"], Reject)


def test_folders_without_clips_are_an_error(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(BuildError, match="no clips below train, validation, test"):
        read(tmp_path)
