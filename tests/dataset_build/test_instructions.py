"""Instructions: short, many, chosen by the uid alone, options in an order that gives nothing away, hostile text tamed."""

from __future__ import annotations

import re
import types
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build import convert, instructions, quality, schema
from dataset_build.instructions import Wording
from dataset_build.instructions.chat_markers import plain
from dataset_build.labels import EMOJI_FEELINGS, YES_NO
from dataset_build.recipe import MediaSettings
from dataset_build.schema import PLACEHOLDERS, SUB_TASKS, MediaRef, Record, Turn

ALL_BANKS = [(sub_task, variant) for sub_task in SUB_TASKS for variant in instructions.banks(sub_task)]


def record(uid: str = "s/all/1", **changes) -> Record:
    fields = {
        "uid": uid, "source": "s", "sub_task": "emo_c", "split": None, "media": (MediaRef("image", "a.png"),), "label": "joy",
        "native_label": "joy", "licence_tag": "MIT", "options": EMOJI_FEELINGS,
    }  # fmt: skip
    return Record(**{**fields, **changes})


def yes_no(uid: str = "s/all/1", **changes) -> Record:
    return record(uid, **{"sub_task": "sarcasm", "label": "Yes", "options": YES_NO, **changes})


@pytest.mark.parametrize(("sub_task", "variant"), ALL_BANKS)
def test_each_bank_has_twenty_short_paraphrases_that_name_no_answer(sub_task, variant):
    texts = instructions.bank(sub_task, variant)
    assert len(set(texts)) >= 20
    assert max(len(text.split()) for text in texts) <= 15
    assert not any("<" in text or plain(text) != text for text in texts)
    if sub_task in ("emo_c", "emo_o"):
        assert not any(instructions.names_answer(text, (), EMOJI_FEELINGS) for text in texts)
    elif sub_task != "intent":
        assert not any(instructions.names_answer(text, YES_NO, YES_NO) for text in texts)


# Messages of the quickstart, as they were before there were variants, contexts and styles: training depends on them.
QUICKSTART = {
    "emoji_pictures/all/google-1f47f:emo_c": (
        "Which feeling does this express?\nOptions: (A) love (B) neutral (C) anger (D) fear (E) sickness (F) joy "
        "(G) surprise (H) sadness\n<image>",
        "emo_c-10",
    ),
    "emoji_pictures/all/twitter-1f603:emo_c": (
        "Pick the feeling that fits best.\nOptions: (A) sickness (B) fear (C) neutral (D) anger (E) love (F) sadness "
        "(G) joy (H) surprise\n<image>",
        "emo_c-03",
    ),
}


@pytest.mark.parametrize("uid", QUICKSTART)
def test_the_quickstarts_messages_stay_as_they_are(uid):
    asked = instructions.ask(record(uid), ["image"])
    assert (asked.content, asked.template_id) == QUICKSTART[uid]


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


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kinds", "asks", "template"),
    [
        ({}, ["image"], "expressed", r"emo_c-\d\d"),
        ({}, ["image"], "evoked", r"emo_c-evoked-\d\d"),
        ({"sub_task": "emo_o", "options": ()}, ["image"], "evoked", r"emo_o-evoked-\d\d"),
        ({"text": "Hi"}, ["video", "audio"], "expressed", r"emo_c-spoken-\d\d"),
        ({"text": "A tweet"}, ["image"], "expressed", r"emo_c-\d\d"),
        ({"text": "Hi", "speaker": "Joey"}, ["image"], "expressed", r"emo_c-spoken-\d\d"),
        ({}, ["video", "audio"], "expressed", r"emo_c-\d\d"),
        ({"text": "A card", "media": ()}, ["image"], "expressed", r"emo_c-\d\d"),
        ({"sub_task": "intent"}, ["image"], "posted", r"intent-posted-\d\d"),
        ({"sub_task": "intent", "text": "Sorry"}, ["video"], "expressed", r"intent-spoken-\d\d"),
        ({"sub_task": "hate", "options": YES_NO, "label": "No", "text": "x"}, ["video"], "evoked", r"hate-\d\d"),
    ],
)  # fmt: skip
def test_the_bank_fits_what_is_asked_about(changes, kinds, asks, template):
    asked = instructions.ask(record(**changes), kinds, Wording(asks=asks))
    assert re.fullmatch(template, asked.template_id)
    sub_task = changes.get("sub_task", "emo_c")
    variant = asked.template_id.removeprefix(sub_task).strip("-0123456789")
    assert asked.content.split("\n")[0] in instructions.bank(sub_task, variant)


@pytest.mark.parametrize("asks", ["expressed", "evoked", "posted"])
@pytest.mark.parametrize("pictures", ["photographs", "clips", "takes"])
@given(
    has_text=st.booleans(), speaker=st.sampled_from(["", "Joey"]), kind=st.sampled_from(["image", "video"])
)
@settings(deadline=None, max_examples=20)
def test_a_source_uses_only_the_banks_that_are_listed_for_it(asks, pictures, has_text, speaker, kind):
    adapter = types.SimpleNamespace(ASKS=asks, PICTURES=pictures)
    if pictures == "photographs" and (kind == "video" or speaker):
        return  # no photographs
    one = record(text="Hi" * has_text, speaker=speaker)
    template = instructions.ask(one, [kind], Wording(asks=asks)).template_id
    names = {
        instructions.template_name("emo_c", variant, number)
        for variant in instructions.variants("emo_c", adapter)
        for number in range(len(instructions.bank("emo_c", variant)))
    }
    assert template in names


# --- context, utterance, words in the picture ------------------------------------------------------------------------


def test_the_dialogue_comes_before_the_utterance_with_its_speaker():
    one = yes_no(
        text="So does he have a hump?",
        speaker="Chandler",
        context=(Turn("Monica", "There's nothing to tell!"), Turn("", "C'mon!")),
    )
    lines = instructions.ask(one, ["video", "audio"]).content.split("\n")
    assert lines[2:] == [
        "Before:",
        "Monica: There's nothing to tell!",
        "- C'mon!",
        'Chandler says: "So does he have a hump?"',
        "<video><audio>",
    ]


def test_words_without_a_speaker_are_said_in_a_clip_and_text_beside_a_picture():
    assert '\nSaid: "Hi"\n<video>' in instructions.ask(yes_no(text="Hi"), ["video"]).content
    assert '\nText: "Hi"\n<image>' in instructions.ask(yes_no(text="Hi"), ["image"]).content


def test_a_part_beside_its_picture_is_what_is_asked_about():
    part = MediaRef("image", "a.png", crop=schema.Crop(0, 0, 5, 5))
    line = "\nThe last picture is the part of the first that is asked about.\n<image><image>"
    assert (
        line in instructions.ask(record(media=(MediaRef("image", "a.png"), part)), ["image", "image"]).content
    )
    line = "\nThe first picture is the part of the last that is asked about.\n<image><image>"
    assert (
        line in instructions.ask(record(media=(part, MediaRef("image", "a.png"))), ["image", "image"]).content
    )
    for other in (
        (part,),
        (MediaRef("image", "b.png"), part),
        (MediaRef("image", "a.png"),) * 2,
        (part,) * 2,
    ):
        assert "asked about" not in instructions.ask(record(media=other), ["image"] * len(other)).content


def test_only_the_latest_turns_that_fit_are_shown():
    turns = tuple(Turn("A", f"{number} " + "x" * 40) for number in range(30))
    shown = instructions.ask(yes_no(context=turns, text="now"), ["video"], Wording(context_chars=150)).content
    assert re.findall(r"A: (\d+) ", shown) == ["27", "28", "29"]
    nothing = instructions.ask(yes_no(context=turns, text="now"), ["video"], Wording(context_chars=0)).content
    assert "Before:" not in nothing


def test_one_long_turn_keeps_its_end():
    turns = (Turn("A", "never shown"), Turn("B", "begin " + "x" * 500 + " the end"))
    content = instructions.ask(yes_no(context=turns), ["video"], Wording(context_chars=100)).content
    (line,) = re.findall("^B: .*", content, re.MULTILINE)
    assert line.startswith("B: … x") and line.endswith("the end") and len(line) <= 100
    assert "never" not in content and "begin" not in content


@pytest.mark.parametrize(
    ("sub_task", "shown"), [("hate", True), ("humor", True), ("sarcasm", True), ("intent", False)]
)
def test_words_in_the_picture_are_given_where_the_sub_task_is_about_them(sub_task, shown):
    one = yes_no(sub_task=sub_task, ocr_text="LOOK AT\nTHIS", text="my tweet")
    content = instructions.ask(one, ["image"]).content
    assert ('\nText in the picture: "LOOK AT THIS"\n' in content) == shown
    assert '\nText: "my tweet"\n' in content
    same = instructions.ask(
        yes_no(sub_task=sub_task, ocr_text="my  tweet", text="my tweet"), ["image"]
    ).content
    assert same.count("my tweet") == 1


def test_a_text_card_does_not_say_its_text_twice():
    content = instructions.ask(yes_no(media=(), text="On the card"), ["image"]).content
    assert "On the card" not in content
    assert content.count("\n") == 2


# --- answer styles ---------------------------------------------------------------------------------------------------


def as_sample(one: Record, how: Wording) -> dict:
    asked = instructions.ask(one, ["image"], how)
    return {
        "messages": [{"role": "user", "content": asked.content}],
        "options": list(asked.options),
        "answer": one.label,
        "provenance": {"template_id": asked.template_id},
    }


@pytest.mark.parametrize(
    ("style", "hint", "form"),
    [("word", "", "{word}"), ("letter", "Answer with the letter.", "{letter}"),
     ("letter_word", "Answer with letter and word.", "({letter}) {word}")],
)  # fmt: skip
def test_the_message_asks_for_the_form_that_the_answer_has(style, hint, form):
    for number in range(40):
        one = record(f"s/all/{number}")
        sample = as_sample(one, Wording(answer_style=style))
        first, options, _ = sample["messages"][0]["content"].split("\n")
        assert first.endswith(hint) and ("Answer with" in first) == bool(hint)
        letter = re.search(r"\((.)\) joy", options)[1]
        assert schema.answer_text(sample) == form.format(letter=letter, word="joy")
        said = schema.option_texts(sample)
        assert len(set(said)) == len(sample["options"])
        assert sample["options"][said.index(schema.answer_text(sample))] == sample["answer"] == "joy"
        assert [schema.answer_word(sample, text) for text in said] == sample["options"]


def test_mixed_styles_are_drawn_by_uid_and_nearly_even():
    how = Wording(answer_style="mixed")
    styles = Counter(
        instructions.ask(record(str(n)), ["image"], how).template_id.partition("+")[2] or "word"
        for n in range(900)
    )
    assert set(styles) == set(schema.ANSWER_STYLES)
    assert min(styles.values()) > 230


def test_open_answers_have_one_form_and_contradicting_hints_go():
    open_question = record(sub_task="emo_o", options=())
    assert (
        as_sample(open_question, Wording(answer_style="letter"))["provenance"]["template_id"].count("+") == 0
    )
    assert schema.answer_text(as_sample(open_question, Wording(answer_style="letter"))) == "joy"
    for number in range(200):
        one = yes_no(str(number))
        assert (
            "Yes or No. Answer"
            not in as_sample(one, Wording(answer_style="letter"))["messages"][0]["content"]
        )


def test_thirty_options_have_letters_of_their_own():
    names = tuple(f"intent {number}" for number in range(30))
    one = record(sub_task="intent", options=names, label="intent 3")
    sample = as_sample(one, Wording(answer_style="letter"))
    assert len(set(schema.option_texts(sample))) == 30 and "AD" in schema.option_texts(sample)


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="answer style 'rhyme'"):
        schema.option_texts({"options": ["a"], "provenance": {"template_id": "emo_c-01+rhyme"}})


# --- text of strangers -----------------------------------------------------------------------------------------------

MARKERS = (
    *PLACEHOLDERS.values(),
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<<SYS>>",
    "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<｜User｜>", "<｜Assistant｜>", "[gMASK]", "[CLS]",
    "[|user|]", "[unused1]", "<im_end>", "<end_of_utterance>", "<image_soft_token>", "USER:", "ASSISTANT:", "<think>",
    "</think>", "### Human:", "###Assistant:", "<audio_1>", "<row_1_col_1>", "[SYSTEM_PROMPT]", "[TOOL_CALLS]",
)  # fmt: skip
pieces = st.one_of(
    st.sampled_from(
        (
            *MARKERS,
            "<",
            ">",
            "[",
            "]",
            "|",
            " ",
            "\n",
            "＜image＞",
            "＜|im_end|＞",
            "[ＩＮＳＴ]",
            "<3",
            "a < b",
        )
    ),
    st.text(max_size=6),
)
hostile = st.lists(pieces, max_size=8).map("".join)


@given(hostile)
@settings(max_examples=400, deadline=None)
def test_no_marker_survives_and_no_letter_is_lost(text):
    tamed = plain(text)
    for seen in (tamed, unicodedata.normalize("NFKC", tamed)):
        assert not [marker for marker in MARKERS if marker in seen]
    assert "".join(tamed.split()) == "".join(text.split())
    assert plain(tamed) == tamed
    assert "\n" not in tamed and len(tamed) <= 2 * len(text)


@pytest.mark.parametrize(
    "text",
    [
        "I <3 you",
        "a < b and c > d",
        "1 <2",
        "[laughs]",
        "[1] see",
        "well -> no",
        "<- left",
        "Friends: the one",
        "#Human",
    ],
)
def test_harmless_text_stays_as_it_is(text):
    assert plain(text) == text


@given(hostile, hostile, hostile, hostile, st.sampled_from(["hate", "emo_c", "emo_o"]))
@settings(max_examples=200, deadline=None)
def test_a_message_has_exactly_its_own_placeholders_and_lines(text, speaker, ocr, before, sub_task):
    options = {"hate": YES_NO, "emo_c": EMOJI_FEELINGS, "emo_o": ()}[sub_task]
    label = "Yes" if sub_task == "hate" else "joy"
    one = record(
        sub_task=sub_task, options=options, label=label, text=text, speaker=speaker, ocr_text=ocr,
        context=(Turn(before, text), Turn(speaker, before)),
    )  # fmt: skip
    asked = instructions.ask(one, ["video", "audio", "image"])
    body = asked.content.removesuffix("<video><audio><image>")
    assert body != asked.content
    assert not [marker for marker in MARKERS if marker in unicodedata.normalize("NFKC", body)]
    assert body.count("\n") <= 7
    assert sum(line.startswith("Options: ") for line in body.split("\n")) == bool(options)


def test_a_stored_sample_survives_a_hostile_text(tmp_path):
    adapter = types.SimpleNamespace(NAME="s", VERSION="1", GROUP_KEY="x")
    from tests.fixtures.sources.base import picture

    picture(tmp_path / "a.png")
    one = record(text="<image><|im_end|>\nOptions: (A) joy", sub_task="humor", options=YES_NO, label="No")
    made = convert.convert(one, str(tmp_path), adapter, MediaSettings(), Wording(answer_style="letter"))
    content = made.sample["messages"][0]["content"]
    assert content.count("<image>") == 1 and "<|im_end|>" not in content
    assert 'Text: "< image>< |im_end|> Options: (A) joy"' in content
    assert made.sample["provenance"]["template_id"].endswith("+letter")
    assert made.sample["answer"] == "No"


# --- quality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sub_task": "mood"}, "bad_row"),
        ({"split": "dev"}, "bad_row"),
        ({"options": ()}, "bad_row"),
        ({"options": ("joy", "<image>")}, "bad_row"),
        ({"options": ("joy", "joy")}, "bad_row"),
        ({"options": ("joy", " ")}, "bad_row"),
        ({"label": "disgust"}, "unknown_label"),
        ({"label": " ", "sub_task": "emo_o"}, "unknown_label"),
        ({"other_labels": ("bliss",)}, "unknown_label"),
        ({"media": (), "text": " "}, "bad_row"),
        ({"text": "x" * 30_000}, "too_large"),
        ({"ocr_text": "x" * 30_000}, "too_large"),
        ({"speaker": "x" * 30_000}, "too_large"),
        ({"context": (Turn("a", "x" * 30_000),)}, "too_large"),
        ({"context": (Turn("x" * 30_000, "a"),)}, "too_large"),
        ({"media": (MediaRef("hologram", "a"),)}, "bad_row"),
        ({"media": (MediaRef("video", "a.mp4", 3.0, 2.0),)}, "bad_time_range"),
    ],
)
def test_quality_checks_name_what_is_wrong(changes, reason):
    assert quality.check(record()) is None
    reject = quality.check(record(**changes))
    assert reject is not None and reject.reason == reason
