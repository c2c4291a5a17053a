"""Open answers to emotion groups by the table alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.labels import EMOJI_FEELINGS, EMOTIONS
from emollm.evaluate.open_set import STATUSES, TABLE_PATH, Table, compare, load_table, normalise, parse


@pytest.mark.parametrize(
    ("said", "group"),
    [
        ("joy", "joy"), (" Joy.", "joy"), ("Happiness!", "joy"), ("joyfully", "joy"), ("The emotion is happiness.", "joy"),
        ("laughs", "amusement"), ("heart-broken", "sadness"), ("saddest", "sadness"), ("Crying", "sadness"), ("ANGRILY", "anger"),
        ("in love", "love"), ("loves", "love"), ("very scared", "fear"), ("terrifying", "fear"), ("shocked", "surprise"),
        ("amazingly", "surprise"), ("nauseous", "sickness"), ("throwing up", "sickness"), ("no emotion", "neutral"),
        ("calmness", "calm"), ("disgusting", "disgust"), ("ｊｏｙ", "joy"), ("irritated and angry", "anger"), ("joyful excitement", "joy"), ("amused and excited", "joy"),
        ("doubt or confusion", "confusion"), ("doubt-or-confusion", "confusion"), ("Peaceful", "contentment"),
        ("the woman in the blue dress is happy", "joy"), ("blue", "sadness"), ("something else", "something else"),
    ],
)  # fmt: skip
def test_words_and_their_forms_find_their_group(said: str, group: str) -> None:
    assert parse(said).group == group


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", "empty"), (" .!", "empty"), ("\n", "empty"), ("not happy", "unparsed"), ("happy or sad", "unparsed"),
        ("the quick brown fox", "unparsed"), ("I'm sorry, I cannot tell", "refused"), ("As an AI, I have no eyes", "refused"),
        ("I can't see a picture", "refused"), ("😀", "empty"), ("Sorry.", "refused"), ("It is not possible to tell joy here", "refused"),
        ("I’m afraid I cannot say", "refused"), ("I must decline", "refused"), ("I am not going to guess, sad", "refused"),
    ],
)  # fmt: skip
def test_what_names_no_single_emotion_counts_as_invalid(said: str, status: str) -> None:
    parsed = parse(said)
    assert (parsed.status, parsed.group) == (status, None)


def test_unknown_words_are_kept_for_whoever_extends_the_table() -> None:
    assert parse("quick fox").unknown == ("quick", "fox")
    assert parse("joyful fox").unknown == ()


def test_every_gold_label_of_the_quickstart_is_its_own_group() -> None:
    for label in EMOJI_FEELINGS:
        score = compare(label, (label,))
        assert (score.group, score.exact, score.same_group, score.same_wheel) == (label, True, True, True)


def test_exact_group_and_wheel_are_three_degrees() -> None:
    exact, group, wheel, none = (compare(said, ("joy",)) for said in ("joys", "happy", "love", "fear"))
    assert [exact.exact, group.exact, wheel.exact, none.exact] == [True, False, False, False]
    assert [exact.same_group, group.same_group, wheel.same_group, none.same_group] == [
        True,
        True,
        False,
        False,
    ]
    assert [exact.same_wheel, group.same_wheel, wheel.same_wheel, none.same_wheel] == [
        True,
        True,
        True,
        False,
    ]


def test_groups_without_a_wheel_parent_match_only_themselves() -> None:
    assert not compare("neutral", ("sickness",)).same_wheel
    assert compare("calm", ("neutral",)).same_wheel


def test_any_of_several_gold_labels_counts() -> None:
    assert compare("sad", ("anger", "sadness")).same_group


def test_gold_label_outside_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="'schadenfreude' is not in synonyms.yaml"):
        compare("joy", ("schadenfreude",))


def test_every_label_that_a_source_can_give_is_in_the_table_and_is_answered_by_itself() -> None:
    for label in EMOTIONS:
        score = compare(label, (label,))
        assert (score.status, score.exact, score.same_group, score.same_wheel) == ("ok", True, True, True), (
            label
        )


def test_a_kind_of_the_gold_feeling_is_right_and_the_wider_feeling_is_not() -> None:
    """Gold labels of sources with few categories are wide (joy); Mikels' and EMOTIC's are narrow (amusement)."""
    assert compare("amused", ("joy",)).same_group
    wide = compare("happy", ("amusement",))
    assert (wide.same_group, wide.same_wheel) == (False, True)
    assert not compare("excited", ("amusement",)).same_group


def test_naming_more_feelings_never_scores_better_than_naming_one() -> None:
    assert not compare("joy, excitement", ("excitement",)).same_group
    assert not compare("amused, excited, content", ("excitement",)).same_group
    assert compare("joy, sadness, anger, fear", ("anger",)).status == "unparsed"


def test_exact_is_the_lemma_of_the_label_and_nothing_else() -> None:
    said = ["anger", "Angry!", "angrily", "ANGRINESS", "rage", "angry and furious"]
    assert [compare(text, ("anger",)).exact for text in said] == [True, True, True, True, False, False]


def test_an_answer_outside_a_vocabulary_counts_as_the_label_that_includes_it() -> None:
    table = load_table()
    assert table.counted_as("amusement", EMOJI_FEELINGS) == "joy"
    assert table.counted_as("amusement", ["amusement", "joy"]) == "amusement"
    assert table.counted_as("trust", EMOJI_FEELINGS) == "trust"


def test_a_word_with_an_everyday_meaning_counts_only_alone() -> None:
    assert parse("A man in a blue coat lies down").group == "sadness"
    assert parse("A man in a blue coat is furious").group == "anger"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "a: {wheel: joy, lemmas: {x: []}}\n  b: {wheel: none, lemmas: {y: [x]}}",
            "'x' stands in a and in b",
        ),
        ("a: {wheel: joy, lemmas: {a-b: [a b]}}", "'a b' stands in a and in a"),
        ("a: {wheel: joi, lemmas: {x: []}}", "wheel 'joi'; one of joy, trust"),
        ("a: {wheel: joy, parent: z, lemmas: {x: []}}", "parent 'z' is not a group"),
        ("a: {wheel: joy, parent: a, lemmas: {x: []}}", "parent 'a' is not a group without a parent"),
        ("a: {wheel: joy, lemmas: {X: []}}", "'X' is not a normalised word"),
        ("a: {wheel: joy, lemmas: {x: [no]}}", "False is not a normalised word; quote it"),
        ("a: {wheel: joy, lemmas: {x: []}}\nweak: [q]", "'q' is in no group"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(f"version: '1'\ngroups:\n  {table}\n")
    with pytest.raises(ValueError, match=message):
        load_table(path)


def test_table_names_the_sources_of_every_group_and_explains_each_in_its_head() -> None:
    import yaml

    text = TABLE_PATH.read_text()
    named = set(re.findall(r"^#   (\w+) {2,}[A-Z\w]", text, re.MULTILINE))
    raw = yaml.safe_load(text)
    for name, entry in raw["groups"].items():
        assert entry["sources"] and set(entry["sources"]) <= named, name
    assert {source for entry in raw["groups"].values() for source in entry["sources"]} == named


@given(st.text(max_size=60))
def test_any_text_gets_a_status(said: str) -> None:
    parsed = parse(said)
    assert parsed.status in STATUSES
    assert (parsed.group is not None) == (parsed.status == "ok")


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(said: str) -> None:
    assert normalise(normalise(said)) == normalise(said)


@given(
    st.sampled_from(sorted(load_table().group_of)),
    st.sampled_from(["{}", " {}.", "“{}”", "{}!!", "It is {}", "*{}*"]),
)
def test_every_word_of_the_table_is_found_in_a_phrase(word: str, frame: str) -> None:
    table: Table = load_table()
    assert parse(frame.format(word.title())).group == table.group_of[word]
