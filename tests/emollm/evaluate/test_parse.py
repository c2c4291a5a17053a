"""Which option a generated answer names: every form it may be said in, and nothing where two things are said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO
from dataset_build.schema import option_letter, option_texts
from emollm.evaluate.parse import MAX_CHARS, STATUSES, Reading, read_choice

FOUR = ("joy", "sadness", "anger", "fear")
VOCABULARIES = (EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO, FOUR, ("happy", "very happy", "unhappy"))


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[str], int]:
    """Options in any order, and the place of one of them."""
    options = list(draw(st.permutations(draw(st.sampled_from(VOCABULARIES)))))
    return options, draw(st.integers(0, len(options) - 1))


FORMS = (
    "{word}", "{letter}", "({letter})", "{letter}.", "{letter})", "[{letter}]", "({letter}) {word}", "{letter}. {word}",
    "{letter}: {word}", "{letter} {word}", "{letter} - {word}", "Option {letter}", "option ({letter}): {word}",
)  # fmt: skip
FRAMES = (
    "{}", "{}.", " {}\n", "**{}**", '"{}"', "`{}`", "Answer: {}", "answer: {}.", "The answer is {}.", "Final answer: {}",
    "My choice: {}", "I would choose {}", "The face tells it.\nAnswer: {}", "Answer:\n{}", "Let me look closely.\n\n{}",
    "{}\n\nThe eyes and the mouth say so.", "<think>Could be anything, (A) or (B).</think>\n{}", "# {}", "I'd say {}",
)  # fmt: skip


@given(
    questions(), st.sampled_from(FORMS), st.sampled_from(FRAMES), st.sampled_from((str, str.upper, str.lower))
)
def test_an_option_is_understood_in_every_form(question, form, frame, case) -> None:
    options, place = question
    said = frame.format(case(form.format(word=options[place], letter=option_letter(place))))
    assert read_choice(said, options) == Reading("ok", place), said


@given(questions(), st.sampled_from(("word", "letter", "letter_word")))
def test_what_training_teaches_to_say_is_understood(question, style) -> None:
    options, place = question
    said = option_texts({"options": options, "provenance": {"template_id": f"t+{style}"}})[place]
    assert read_choice(said, options) == Reading("ok", place)


@given(st.text(max_size=200), questions(), st.booleans())
def test_any_text_has_one_of_the_statuses_and_a_choice_only_if_it_is_ok(text, question, cut_off) -> None:
    options, _ = question
    reading = read_choice(text, options, cut_off)
    assert reading.status in STATUSES
    assert (reading.choice is not None) == (reading.status == "ok")
    assert reading.choice is None or 0 <= reading.choice < len(options)


@given(st.permutations(FOUR), st.permutations(range(4)), st.sampled_from(("{0} or {1}", "{0} and {1}", "It is {0}, not {1}",
       "not {0}", "neither {0} nor {1}", "I see {0}; then again {1} is there", "Answer: {0}. Answer: {1}")))  # fmt: skip
def test_two_options_or_a_denied_one_are_no_answer(options, order, sentence) -> None:
    said = sentence.format(options[order[0]], options[order[1]])
    assert read_choice(said, options) == Reading("unparsed")


@given(questions(), st.integers(0, 29))
def test_a_letter_with_another_options_word_is_no_answer(question, other) -> None:
    options, place = question
    other %= len(options)
    if other != place:
        assert read_choice(f"({option_letter(place)}) {options[other]}", options).status == "unparsed"


@given(st.permutations(FOUR), st.integers(0, 3))
def test_a_label_alone_in_a_sentence_counts_wherever_it_stands_among_the_options(options, place) -> None:
    for sentence in ("The person seems to feel {} here.", "What I see is {}!", "{} is what this shows"):
        assert read_choice(sentence.format(options[place]), options) == Reading("ok", place)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", "empty"), ("  \n", "empty"), ("...?!", "empty"), ("<think>so many thoughts", "empty"),
        ("I'm sorry, but I can't identify emotions of people.", "refused"), ("I cannot answer that.", "refused"),
        ("As an AI language model, I do not judge people.", "refused"), ("Sorry.", "refused"),
        ("I’m unable to determine the feeling of a real person, maybe joy", "refused"),
        ("lorem ipsum 42", "unparsed"), ("A joyful face", "unparsed"), ("sad", "unparsed"),
        ("Options: (A) joy (B) sadness (C) anger (D) fear", "unparsed"), ("E", "unparsed"),
        ("joy " + "x" * MAX_CHARS, "too_long"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_counted_by_kind(said: str, status: str) -> None:
    assert read_choice(said, FOUR) == Reading(status)


def test_an_answer_that_was_cut_off_counts_only_if_it_was_stated_before() -> None:
    assert read_choice("(B) sadness, because the corners of the", FOUR, cut_off=True) == Reading("ok", 1)
    assert read_choice("Answer: anger\nThe brows are", FOUR, cut_off=True) == Reading("ok", 2)
    assert read_choice("The person seems to feel joy", FOUR, cut_off=True) == Reading("too_long")
    assert read_choice("joy", ("joy", "joyless"), cut_off=True) == Reading("too_long")
    assert read_choice("", FOUR, cut_off=True) == Reading("too_long")


@pytest.mark.parametrize(
    ("said", "place"),
    [("Yes, it is meant as a joke.", 1), ("No. There is no joke.", 0), ("There is no joke here", None),
     ("No doubt it is funny", None), ("The answer is no", 0), ("I would say yes", 1), ("not yes", None)],
)  # fmt: skip
def test_yes_and_no_count_only_where_they_are_said_as_an_answer(said: str, place: int | None) -> None:
    assert read_choice(said, ["No", "Yes"]).choice == place
