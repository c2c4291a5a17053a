"""Open answers to emotion groups by the table alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.labels import EMOJI_FEELINGS
from emollm.evaluate.open_set import STATUSES, Table, compare, load_table, normalise, parse


@pytest.mark.parametrize(
    ("said", "group"),
    [
        ("joy", "joy"), (" Joy.", "joy"), ("Happiness!", "joy"), ("joyfully", "joy"), ("The emotion is happiness.", "joy"),
        ("laughs", "joy"), ("heart-broken", "sadness"), ("saddest", "sadness"), ("Crying", "sadness"), ("ANGRILY", "anger"),
        ("in love", "love"), ("loves", "love"), ("very scared", "fear"), ("terrifying", "fear"), ("shocked", "surprise"),
        ("amazingly", "surprise"), ("nauseous", "sickness"), ("throwing up", "sickness"), ("no emotion", "neutral"),
        ("calmness", "neutral"), ("disgusting", "disgust"), ("ｊｏｙ", "joy"), ("irritated and angry", "anger"),
    ],
)  # fmt: skip
def test_words_and_their_forms_find_their_group(said: str, group: str) -> None:
    assert parse(said).group == group


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", "empty"), (" .!", "empty"), ("\n", "empty"), ("not happy", "unparsed"), ("happy or sad", "unparsed"),
        ("the quick brown fox", "unparsed"), ("I'm sorry, I cannot tell", "refused"), ("As an AI, I have no eyes", "refused"),
        ("I can't see a picture", "refused"), ("😀", "empty"),
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


def test_a_word_in_two_groups_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("version: '1'\ngroups:\n  a: {wheel: joy, words: [x]}\n  b: {wheel: none, words: [x]}\n")
    with pytest.raises(ValueError, match="'x' stands in a and in b"):
        load_table(path)


def test_table_names_its_sources_and_a_wheel_parent_for_every_group() -> None:
    import yaml

    raw = yaml.safe_load((Path(__file__).parents[3] / "emollm/evaluate/synonyms.yaml").read_text())
    primaries = {"joy", "trust", "fear", "surprise", "sadness", "disgust", "anger", "anticipation", "none"}
    for name, entry in raw["groups"].items():
        assert set(entry["sources"]) <= {"shaver1987", "plutchik1980", "ekman1992", "ours"}, name
        assert entry["wheel"] in primaries and name in entry["words"], name


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
