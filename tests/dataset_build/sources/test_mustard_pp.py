"""MUStARD++: which rows are items, the misaligned row, the two emotions, and groups that keep scenes whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import mustard_pp
from tests.fixtures.sources import mustard_pp as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mustard_pp")
    fixture.build(folder)
    return folder


def records(root, **options) -> dict[str, Record]:
    found = mustard_pp.read(str(root), mustard_pp.Options(**options))
    return {item.uid: item for item in found if isinstance(item, Record)}


def table(folder: Path, *rows: dict) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fixture.HEADER, restval="")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "mustard++_text.csv").write_text(out.getvalue(), encoding="utf-8")
    return str(folder)


def utterance(**changes) -> dict:
    cells = {
        "SCENE": "1_1",
        "KEY": "1_1_u",
        "SENTENCE": "Fine.",
        "SPEAKER": "ROSS",
        "SHOW": "FRIENDS",
        "Sarcasm": "0",
    }
    return cells | {"Implicit_Emotion": "Fear", "Explicit_Emotion": "Neutral"} | changes


def line(number: str, text: str, **changes) -> dict:
    key = f"1_1_c_{number}"
    return {"SCENE": "1_1", "KEY": key, "SENTENCE": text, "SPEAKER": "JOEY", "SHOW": "FRIENDS"} | changes


def test_an_utterance_is_asked_for_sarcasm_and_for_emotion(root):
    found = records(root)
    sarcasm, emotion = found["mustard_pp/all/1_90001:sarcasm"], found["mustard_pp/all/1_90001:emo_c"]
    assert (sarcasm.label, sarcasm.native_label, sarcasm.options) == ("Yes", "1", ("Yes", "No"))
    assert (emotion.label, emotion.native_label) == ("ridicule", "Ridicule")
    assert emotion.options == mustard_pp.IMPLICIT and emotion.label_rule == "Implicit_Emotion"
    for record in (sarcasm, emotion):
        assert record.media == (MediaRef("video", "final_utterance_videos/1_90001_u.mp4"),)
        assert record.text == "Well, plan 0 went\nrather swimmingly in the end."
        assert record.speaker == "SHELDON" and record.split is None and record.fold is None
        assert record.context[0] == Turn("", "Cupboard 0 holds the last of the\ngood biscuits of the month.")


@pytest.mark.parametrize("above", ["", "all_videos/", "videos/"])
def test_clips_are_found_where_their_archive_unpacks_them(tmp_path, above):
    root = table(tmp_path, utterance())
    (tmp_path / above / "final_utterance_videos").mkdir(parents=True)
    (tmp_path / above / "final_context_videos").mkdir()
    record = records(root, context_video=True)["mustard_pp/all/1_1:sarcasm"]
    assert [ref.path for ref in record.media] == [
        f"{above}final_utterance_videos/1_1_u.mp4",
        f"{above}final_context_videos/1_1_c.mp4",
    ]


def test_the_explicit_emotion_is_another_question_without_ridicule(root):
    record = records(root, emotion_label="explicit")["mustard_pp/all/1_90001:emo_c"]
    assert (record.label, record.native_label, record.label_rule) == ("joy", "Happiness", "Explicit_Emotion")
    assert record.options == mustard_pp.EXPLICIT and "ridicule" not in record.options


def test_emotions_can_be_asked_openly(root):
    found = records(root, ask="both")
    assert found["mustard_pp/all/2_902:emo_o"].options == ()
    assert found["mustard_pp/all/2_902:emo_o"].label == found["mustard_pp/all/2_902:emo_c"].label == "fear"


def test_the_misaligned_row_is_the_utterance_of_its_scene(root):
    record = records(root)["mustard_pp/all/1_S11E03_067:sarcasm"]
    assert record.media[0].path == "final_utterance_videos/1_S11E03_067_u.mp4"
    assert len(record.context) == 2


def test_context_lines_are_no_items_and_come_in_the_order_of_their_numbers(tmp_path):
    numbers = ["10", "9", "2", "0"]
    root = table(tmp_path, *(line(number, f"line {number}") for number in numbers), utterance())
    found = records(root)
    assert sorted(found) == ["mustard_pp/all/1_1:emo_c", "mustard_pp/all/1_1:sarcasm"]
    assert [turn.text for turn in found["mustard_pp/all/1_1:sarcasm"].context] == [
        f"line {number}" for number in reversed(numbers)
    ]


def test_names_of_context_speakers_come_only_when_asked_for(tmp_path):
    root = table(tmp_path, line("0", "a", SPEAKER="-"), line("1", "b"), utterance())
    uid = "mustard_pp/all/1_1:sarcasm"
    assert records(root)[uid].context == (Turn("", "a"), Turn("", "b"))
    assert records(root, context_speakers=True)[uid].context == (Turn("", "a"), Turn("JOEY", "b"))


def test_the_context_clip_is_a_second_video_when_asked_for(root):
    media = records(root, context_video=True)["mustard_pp/all/2_902:sarcasm"].media
    assert [ref.path for ref in media] == [
        "final_utterance_videos/2_902_u.mp4",
        "final_context_videos/2_902_c.mp4",
    ]


def test_scenes_that_share_a_line_or_an_episode_are_one_group(root):
    group = {uid.split("/")[2].split(":")[0]: record.group_keys for uid, record in records(root).items()}
    assert group["1_90001"]["dialogue"] == group["1_90002"]["dialogue"] == "bbt/1_90001"
    assert group["1_S11E03_067"]["dialogue"] == group["1_S11E03_169"]["dialogue"]
    assert group["1_S11E03_067"]["episode"] == "bbt/s11e03"
    assert group["2_902"]["dialogue"] == "friends/2_902" != group["2_906"]["dialogue"]
    assert group["2_902"]["speaker"] == "friends/sheldon" and group["2_902"]["show"] == "friends"


@pytest.mark.parametrize(
    ("changes", "sub_task", "named"),
    [
        ({"Sarcasm": "2"}, "sarcasm", "Sarcasm is '2'"),
        ({"Sarcasm": ""}, "sarcasm", "Sarcasm is ''"),
        ({"Implicit_Emotion": "Boredom"}, "emo_c", "Implicit_Emotion is 'Boredom'"),
        (
            {"Implicit_Emotion": "Contempt"},
            "emo_c",
            "Implicit_Emotion is 'Contempt'",
        ),  # an emotion, but not of this set
        ({"Implicit_Emotion": ""}, "emo_c", "Implicit_Emotion is ''"),
    ],
)
def test_an_unknown_label_costs_its_sub_task_only(tmp_path, changes, sub_task, named):
    found = list(mustard_pp.read(table(tmp_path, utterance(**changes)), mustard_pp.Options()))
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert (reject.reason, reject.sub_task) == ("unknown_label", sub_task) and named in reject.detail
    assert len(found) == 2


def test_labels_written_as_floats_are_the_same_labels(tmp_path):
    root = table(tmp_path, utterance(Sarcasm="1.0"))
    assert records(root)["mustard_pp/all/1_1:sarcasm"].label == "Yes"


def test_a_scene_without_its_utterance_is_told_once(tmp_path):
    root = table(tmp_path, line("0", "a"), line("1", "b"))
    found = list(mustard_pp.read(root, mustard_pp.Options()))
    assert [(item.reason, item.sub_task) for item in found] == [("bad_row", "sarcasm"), ("bad_row", "emo_c")]
    assert "1_1_u" in found[0].detail
