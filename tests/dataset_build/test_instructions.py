"""Instructions: short, many, chosen by the uid alone, options in an order that gives nothing away."""

from __future__ import annotations

from collections import Counter

import pytest

from dataset_build import instructions, quality
from dataset_build.labels import EMOJI_FEELINGS, YES_NO
from dataset_build.schema import SUB_TASKS, MediaRef, Record, Turn


def record(uid: str = "s/all/1", **changes) -> Record:
    fields = {
        "uid": uid, "source": "s", "sub_task": "emo_c", "split": None, "media": (MediaRef("image", "a.png"),), "label": "joy",
        "native_label": "joy", "licence_tag": "MIT", "options": EMOJI_FEELINGS,
    }  # fmt: skip
    return Record(**{**fields, **changes})


@pytest.mark.parametrize("sub_task", SUB_TASKS)
def test_each_sub_task_has_twenty_short_paraphrases(sub_task):
    texts = instructions.bank(sub_task)
    assert len(set(texts)) >= 20
    assert max(len(text.split()) for text in texts) <= 15
    assert not any("<" in text for text in texts)


def test_the_question_is_text_options_and_the_media_last():
    asked = instructions.ask(record(), ["image"])
    first, options, media = asked.content.split("\n")
    assert first in instructions.bank("emo_c")
    assert options.startswith("Options: (A) ") and f"(H) {asked.options[7]}" in options
    assert media == "<image>"
    assert sorted(asked.options) == sorted(EMOJI_FEELINGS)
    assert instructions.ask(record(), ["video", "audio"]).content.endswith("\n<video><audio>")


def test_open_questions_show_no_options():
    asked = instructions.ask(record(sub_task="emo_o", options=()), ["image"])
    assert asked.options == ()
    assert "Options" not in asked.content


def test_the_choice_depends_on_the_uid_alone():
    assert instructions.ask(record("a"), ["image"]) == instructions.ask(record("a", label="fear"), ["image"])
    assert len({instructions.ask(record(str(n)), ["image"]).template_id for n in range(300)}) >= 20


def test_no_position_is_right_more_often_than_another():
    asked = [
        instructions.ask(record(str(n), options=YES_NO, sub_task="humor"), ["image"]).options
        for n in range(1000)
    ]
    assert Counter(options[0] for options in asked)["Yes"] == pytest.approx(500, abs=60)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sub_task": "mood"}, "bad_row"),
        ({"split": "dev"}, "bad_row"),
        ({"options": ()}, "bad_row"),
        ({"label": "disgust"}, "unknown_label"),
        ({"label": " ", "sub_task": "emo_o"}, "unknown_label"),
        ({"other_labels": ("bliss",)}, "unknown_label"),
        ({"media": (), "text": " "}, "bad_row"),
        ({"text": "x" * 30_000}, "too_large"),
        ({"context": (Turn("a", "x" * 30_000),)}, "too_large"),
        ({"media": (MediaRef("hologram", "a"),)}, "bad_row"),
        ({"media": (MediaRef("video", "a.mp4", 3.0, 2.0),)}, "bad_time_range"),
    ],
)
def test_quality_checks_name_what_is_wrong(changes, reason):
    assert quality.check(record()) is None
    reject = quality.check(record(**changes))
    assert reject is not None and reject.reason == reason
