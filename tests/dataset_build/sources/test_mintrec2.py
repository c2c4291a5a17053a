"""MIntRec2.0: context, speakers, out-of-scope rows, and where the clips are."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from dataset_build.schema import Record, Reject, Turn
from dataset_build.sources import mintrec2
from tests.fixtures import sources as fixtures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mintrec2")
    fixtures.build("mintrec2", folder)
    return folder


def read(root: Path, **options: object) -> list[Record | Reject]:
    return list(mintrec2.read(str(root), mintrec2.Options.model_validate(options)))


def records(root: Path, **options: object) -> dict[str, Record]:
    return {item.uid: item for item in read(root, **options) if isinstance(item, Record)}


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.mp4")))


def test_an_utterance_comes_with_its_clip_its_speaker_and_the_turns_before_it(root):
    record = records(root)["mintrec2/test/dia104_utt2"]
    assert record.text == "mintrec2 friends line 2 of scene 104, they mean to prevent."
    assert (record.label, record.native_label, record.speaker) == ("Prevent", "Prevent", "friends person1")
    assert record.media[0].path == "in_scope_videos/dia104_utt2.mp4"
    assert (record.media[0].start_s, record.media[0].end_s) == (None, None)
    assert record.context == (
        Turn("Ross", "mintrec2 friends line 0 of scene 104, they mean to praise."),
        Turn("Ross", "mintrec2 friends line 1 of scene 104, they mean to unk."),
    )
    assert record.group_keys == {
        "dialogue": "dia104",
        "show": "friends",
        "speaker": "friends/friends person1",
    }


def test_context_is_limited_to_the_last_turns(root):
    uid = "mintrec2/test/dia104_utt10"
    assert len(records(root)[uid].context) == 8
    assert len(records(root, context_turns=100)[uid].context) == 10
    assert [turn.text[:23] for turn in records(root, context_turns=1)[uid].context] == [
        "mintrec2 friends line 9"
    ]
    assert records(root, context_turns=0)[uid].context == ()


def test_without_the_total_files_the_out_of_scope_files_give_the_same_context(root, copy):
    shutil.rmtree(copy / "total")
    expected = {uid: record.context for uid, record in records(root).items()}
    assert {uid: record.context for uid, record in records(copy).items()} == expected
    shutil.rmtree(copy / "out-of-scope")
    only_in_scope = records(copy)["mintrec2/test/dia104_utt4"].context
    assert [turn.text.split()[3] for turn in only_in_scope] == ["0", "2"]


def test_out_of_scope_rows_leave_by_rule_where_they_are_asked_for(root):
    default, asked = read(root), read(root, out_of_scope=True)
    assert len(asked) == len(default) + 30
    added = [item for item in asked if isinstance(item, Reject) and item.reason == "source_rule"]
    assert len(added) == 31  # one stands among the in-scope rows
    assert Counter(item.split for item in added) == Counter(train=18, val=6, test=7)
    assert records(root, out_of_scope=True) == records(root)


def test_the_total_files_alone_give_the_same_records(root, copy):
    shutil.rmtree(copy / "in-scope")
    assert set(records(copy)) == set(records(root))
    left_out = Counter(item.reason for item in read(copy) if isinstance(item, Reject))
    assert left_out == Counter(source_rule=31, unknown_label=1, bad_row=2)


def test_a_show_is_called_as_in_the_sources_that_share_it(root):
    shows = {item.group_keys["show"] for item in records(root).values()}
    assert shows == {"superstore", "friends", "bbt"}


def test_gleen_is_glenn_and_private_use_characters_are_left_out(root):
    found = records(root)
    assert found["mintrec2/train/dia100_utt2"].speaker == "Glenn"
    assert found["mintrec2/train/dia100_utt0"].text == "hand me the  tray, please"
    assert found["mintrec2/train/dia100_utt2"].context[0].text == "hand me the  tray, please"


def test_clips_are_found_by_name_and_apple_double_files_are_none(root):
    found = records(root)
    assert found["mintrec2/val/dia103_utt4"].media[0].path == "in_scope_videos/dev/dia103_utt4.mp4"
    assert found["mintrec2/val/dia103_utt2"].media[0].path == "raw_data/dia103_utt2.mp4"  # missing


def test_the_place_of_the_clips_can_be_given(root):
    found = records(root, clip="videos/{split}/{dialogue}-{utterance}.mp4")
    assert found["mintrec2/val/dia103_utt2"].media[0].path == "videos/val/103-2.mp4"


@pytest.mark.parametrize(
    "template", ["clips/x.mp4", "{dialogue.__class__}/{utterance}", "{dialogue!r}{utterance}"]
)
def test_a_template_that_does_not_name_one_clip_is_refused(template):
    with pytest.raises(ValidationError, match="expected a path"):
        mintrec2.Options(clip=template)
