"""Splits: whole groups, every row once, the same under any order, about the asked shares of every label."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build import splits
from dataset_build.errors import BuildError
from dataset_build.index import Index, SourceFacts
from dataset_build.splits import Place, Shares
from tests.fixtures.index_rows import Row, from_rows

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None, max_examples=60)
SHARES = Shares(folds=4, test_share=0.3, val_share=0.1, seed=17)
MODES = ("folds", "shares", "official")
# Sources are named after their mode; `other_…` shares the group key, `published` brings its own folds.
FACTS = {mode: SourceFacts(mode, f"{mode}-key", "photographs") for mode in MODES}
FACTS |= {f"other_{mode}": FACTS[mode] for mode in MODES}
FACTS["published"] = SourceFacts("folds", "speaker", "clips")


def assign(rows: Sequence[Row], shares: Shares = SHARES) -> dict[str, Place]:
    places = splits.assign(from_rows(rows, FACTS), shares)
    return {row.uid: places.of(number) for number, row in enumerate(rows)}


@st.composite
def datasets(draw) -> list[Row]:
    """Rows of up to three sources, one per mode, with groups of any size and labels mixed inside groups."""
    rows = []
    for mode in draw(st.sets(st.sampled_from(MODES), min_size=1)):
        for number in range(draw(st.integers(1, 60))):
            split = draw(st.sampled_from(["train", "test"])) if mode == "official" else None
            # An official source's groups do not straddle its own splits.
            group = f"{split or ''}{draw(st.integers(0, 12))}"
            label = draw(st.sampled_from("abc"))
            rows.append(Row(f"{mode}/{number}", mode, split=split, group=group, label=label))
    return rows


@unhurried
@given(datasets(), st.integers(0, 5), st.booleans())
def test_every_row_is_placed_once_and_no_group_is_in_two_places(rows, seed, fold_val):
    places = assign(rows, SHARES._replace(seed=seed, fold_val=fold_val))
    assert set(places) == {row.uid for row in rows}
    where = defaultdict(set)
    for row in rows:
        where[row.source, row.group].add(places[row.uid])
    assert all(len(found) == 1 for found in where.values())


@unhurried
@given(datasets(), st.randoms(use_true_random=False))
def test_places_do_not_depend_on_the_order_of_the_rows(rows, shuffler):
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert assign(shuffled) == assign(rows)


@unhurried
@given(datasets(), st.booleans())
def test_fold_zero_and_only_fold_zero_is_the_test_folder(rows, fold_val):
    places = assign(rows, SHARES._replace(fold_val=fold_val))
    second = Place("val" if fold_val else "train", 1)
    for row in rows:
        place = places[row.uid]
        if row.source == "folds":
            assert place in [Place("test", 0), second, Place("train", 2), Place("train", 3)]
        else:
            assert place.fold is None
        if row.split == "test":
            assert place.split == "test"


@unhurried
@given(datasets())
def test_val_is_never_carved_from_test(rows):
    places = assign(rows)
    for row in rows:
        if row.source == "official":
            assert (places[row.uid].split == "test") == (row.split == "test")


def rows_of(mode: str, groups: int, per_group: int, labels: str = "abcd") -> list[Row]:
    return [
        Row(
            f"{group}-{number}",
            mode,
            split="train" if mode == "official" else None,
            group=str(group),
            label=labels[group % len(labels)],
        )
        for group in range(groups)
        for number in range(per_group)
    ]


def test_folds_are_balanced_over_labels():
    rows = rows_of("folds", groups=64, per_group=3)
    places = assign(rows)
    counts = Counter((places[row.uid].fold, row.label) for row in rows)
    assert set(counts.values()) == {12}  # 16 groups of each label over 4 folds, 3 rows each


def test_shares_are_met_for_every_label():
    rows = rows_of("shares", groups=400, per_group=1)
    places = assign(rows)
    for label in "abcd":
        counts = Counter(places[row.uid].split for row in rows if row.label == label)
        assert counts == {"train": 60, "test": 30, "val": 10}


def test_val_is_carved_from_train_only_where_the_source_has_none():
    rows = rows_of("official", groups=80, per_group=2)
    counts = Counter(place.split for place in assign(rows).values())
    assert counts == {"train": 144, "val": 16}
    own = [*rows, Row("v", "official", split="val", group="v")]
    assert Counter(place.split for place in assign(own).values()) == {"train": 160, "val": 1}


def test_two_sources_with_the_same_group_key_are_split_together():
    one = rows_of("shares", groups=30, per_group=1)
    other = [row._replace(uid=f"other-{row.uid}", source="other_shares") for row in one]
    places = assign(one + other)
    assert all(places[row.uid] == places[f"other-{row.uid}"] for row in one)


def test_another_seed_gives_another_split():
    rows = rows_of("folds", groups=40, per_group=1)
    assert assign(rows) != assign(rows, SHARES._replace(seed=18))


def test_an_official_source_without_a_split_is_a_defect_of_its_adapter():
    with pytest.raises(BuildError, match="official splits, but the record names none"):
        assign([Row("u", "official")])


def published(folds: int, per_fold: int = 6) -> list[Row]:
    """Five sessions, two speakers each of whom is heard in every session."""
    return [
        Row(f"{fold}-{number}", "published", fold=fold, group=f"speaker-{number % 2}", label="ab"[number % 2])
        for fold in range(folds)
        for number in range(per_fold)
    ]


def test_published_folds_are_kept_whatever_number_the_recipe_draws():
    rows = published(5)
    index = from_rows([*rows, *rows_of("folds", groups=40, per_group=1)], FACTS)
    found = splits.assign(index, SHARES)
    assert [found.of(number).fold for number in range(len(rows))] == [row.fold for row in rows]
    assert found.n_folds == {"published": 5, "folds": 4}
    assert found.drawn == {"published": False, "folds": True}
    assert {found.of(number).split for number, row in enumerate(rows) if row.fold == 0} == {"test"}


def test_groups_that_published_folds_or_splits_tear_apart_are_reported_and_left_where_they_are():
    torn = [Row("x", "official", split="train", group="g"), Row("y", "official", split="test", group="g")]
    whole = Row("z", "official", split="test", group="h")
    index: Index = from_rows([*published(5), *torn, whole, *rows_of("folds", groups=8, per_group=2)], FACTS)
    assert splits.straddling(index, splits.assign(index, SHARES)) == [
        {
            "source": "official", "group_key": "official-key", "groups": 1, "of": 2, "rows": 2,
            "split_by": "official split",
        },
        {
            "source": "published", "group_key": "speaker", "groups": 2, "of": 2, "rows": 30,
            "split_by": "official folds",
        },
    ]  # fmt: skip


def test_a_published_fold_that_a_record_does_not_name_is_a_defect_of_its_adapter():
    with pytest.raises(BuildError, match="published publishes folds, but the record names none"):
        assign([*published(3), Row("lost", "published")])
    with pytest.raises(BuildError, match="one fold there is nothing to train on"):
        assign(published(1))


def test_a_validation_fold_lies_in_val_and_two_folds_have_none_to_spare():
    places = assign(published(3), SHARES._replace(fold_val=True))
    assert set(places.values()) == {Place("test", 0), Place("val", 1), Place("train", 2)}
    with pytest.raises(BuildError, match="published has 2 folds"):
        assign(published(2), SHARES._replace(fold_val=True))


def test_ten_thousand_groups_take_seconds_at_most():
    chooser = random.Random(1)
    rows = [Row(str(n), "folds", group=str(n), label=chooser.choice("abcdefgh")) for n in range(10_000)]
    counts = Counter(place.fold for place in assign(rows).values())
    assert max(counts.values()) - min(counts.values()) <= 8
