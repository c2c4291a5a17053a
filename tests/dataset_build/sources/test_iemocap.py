"""IEMOCAP: which half of the screen, which turns before, which of two label sets, one fold a session."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import Crop, MediaRef, Record, Reject, Turn
from dataset_build.sources import base, iemocap
from tests.fixtures.sources import iemocap as fixture

LEFT, RIGHT = Crop(0.0, 0.0, 0.5, 1.0, "share"), Crop(0.5, 0.0, 1.0, 1.0, "share")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iemocap")
    fixture.build(folder)
    return folder


def read(root, **options):
    return {item.uid: item for item in iemocap.read(str(root), iemocap.Options(**options))}


def test_a_turn_is_the_half_of_the_video_that_shows_its_actor(root):
    record = read(root)["iemocap/all/Ses01F_impro01_M000"]
    assert record == Record(
        uid="iemocap/all/Ses01F_impro01_M000",
        source="iemocap",
        sub_task="emo_c",
        split=None,
        media=(MediaRef("video", "Session1/dialog/avi/DivX/Ses01F_impro01.avi", 0.7, 1.2, RIGHT),),
        label="anger",
        native_label="ang",
        licence_tag="iemocap-release",
        options=("anger", "joy", "sadness", "neutral"),
        text="Ses01F_impro01 says ang.",
        speaker="Man",
        context=(Turn("Woman", "Ses01F_impro01 says neu."),),
        fold=0,
        label_rule="four",
        group_keys={
            "session": "iemocap-1",
            "dialogue": "iemocap-Ses01F_impro01",
            "actor": "iemocap-1M",
            "scene": "iemocap-impro01",
        },
    )


@pytest.mark.parametrize(
    ("turn", "crop"),
    [
        ("Ses01F_impro01_F000", LEFT),
        ("Ses01F_impro01_M000", RIGHT),
        ("Ses01M_script01_1_F000", RIGHT),
        ("Ses01M_script01_1_M000", LEFT),
    ],
)
def test_the_dialogue_names_who_is_on_the_left(root, turn, crop):
    assert read(root)[f"iemocap/all/{turn}"].media[0].crop == crop


def test_context_follows_time_and_is_bounded(root):
    found = read(root, label_set="all", context_turns=1)
    assert found["iemocap/all/Ses03F_impro01_F001"].context == (Turn("Man", "Ses03F_impro01 says sur."),)
    assert len(read(root)["iemocap/all/Ses03F_impro01_F001"].context) == 2
    assert read(root, context_turns=0)["iemocap/all/Ses03F_impro01_F001"].context == ()


def test_four_classes_join_happiness_and_excitement_and_all_keeps_nine(root):
    four, nine = read(root), read(root, label_set="all")
    assert four["iemocap/all/Ses02F_impro01_F000"].label == "joy"
    assert nine["iemocap/all/Ses02F_impro01_F000"].label == "excitement"
    assert len(nine["iemocap/all/Ses02F_impro01_F000"].options) == 9
    left_out = four["iemocap/all/Ses02F_impro01_M000"]
    assert isinstance(left_out, Reject) and left_out.reason == "source_rule" and "fru" in left_out.detail
    assert nine["iemocap/all/Ses02F_impro01_M000"].label == "frustration"
    assert set(four) == set(nine)


def test_disagreement_and_unnamed_emotions_leave_by_rule_in_both_sets(root):
    for found in (read(root), read(root, label_set="all")):
        reasons = {
            found[f"iemocap/all/{turn}"].reason for turn in ("Ses01F_impro01_F001", "Ses02M_script01_1_F000")
        }
        assert reasons == {"source_rule"}


def test_folds_are_sessions_and_session_5_can_be_the_test_split(root):
    folds = Counter(item.fold for item in read(root).values() if isinstance(item, Record))
    assert set(folds) == {0, 1, 2, 3, 4}
    found = read(root, split="session_5")
    assert base.split_mode(iemocap, iemocap.Options(split="session_5")) == "official"
    assert found["iemocap/test/Ses05F_impro01_F000"].split == "test"
    assert found["iemocap/train/Ses01F_impro01_F000"].fold is None
    assert {
        item.group_keys["session"]
        for item in found.values()
        if isinstance(item, Record) and item.split == "test"
    } == {"iemocap-5"}


def test_lines_of_raters_and_files_of_other_folders_are_no_items(root):
    assert not [uid for uid in read(root) if "C-E2" in uid or "cat" in uid]


def test_a_release_without_a_session_is_an_error_that_names_it(root, tmp_path):
    fixture.write_dialogue(tmp_path / "Session1/dialog", "Ses01F_impro01", ("neu",))
    with pytest.raises(BuildError, match="session 2"):
        read(tmp_path)


@given(st.text(alphabet="[]-. 0123456789\tSesFM_impro0neuxxx", max_size=60))
def test_any_line_is_a_record_or_a_reject(line):
    (item,) = iemocap._items("x.txt line 1", f"[{line}", "Ses01F_impro01", 1, "x.avi", (), iemocap.Options())
    assert isinstance(item, Record) or item.reason in ("bad_row", "unknown_label", "source_rule")
