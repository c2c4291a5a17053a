"""Splits: whole groups, every row once, the same under any order, about the asked shares of every label."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.splits import Place, Row, Shares, assign

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None, max_examples=60)
SHARES = Shares(folds=4, test_share=0.3, val_share=0.1, seed=17)


@st.composite
def datasets(draw) -> list[Row]:
    """Rows of up to three sources, one per mode, with groups of any size and labels mixed inside groups."""
    rows = []
    for mode in draw(st.sets(st.sampled_from(["folds", "shares", "official"]), min_size=1)):
        for number in range(draw(st.integers(1, 60))):
            split = draw(st.sampled_from(["train", "test"])) if mode == "official" else None
            # An official source's groups do not straddle its own splits.
            group = f"{split or ''}{draw(st.integers(0, 12))}"
            label = draw(st.sampled_from("abc"))
            rows.append(Row(f"{mode}/{number}", mode, mode, split, f"{mode}-key", group, label))
    return rows


@unhurried
@given(datasets(), st.integers(0, 5))
def test_every_row_is_placed_once_and_no_group_is_in_two_places(rows, seed):
    places = assign(rows, SHARES._replace(seed=seed))
    assert set(places) == {row.uid for row in rows}
    where = defaultdict(set)
    for row in rows:
        where[row.group_key, row.group].add(places[row.uid])
    assert all(len(found) == 1 for found in where.values())


@unhurried
@given(datasets(), st.randoms(use_true_random=False))
def test_places_do_not_depend_on_the_order_of_the_rows(rows, shuffler):
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert assign(shuffled, SHARES) == assign(rows, SHARES)


@unhurried
@given(datasets())
def test_fold_zero_and_only_fold_zero_is_the_test_folder(rows):
    places = assign(rows, SHARES)
    for row in rows:
        place = places[row.uid]
        if row.mode == "folds":
            assert place in [Place("test", 0), *(Place("train", fold) for fold in (1, 2, 3))]
        else:
            assert place.fold is None
        if row.mode == "official" and row.split == "test":
            assert place.split == "test"


def rows_of(mode: str, groups: int, per_group: int, labels: str = "abcd") -> list[Row]:
    return [
        Row(
            f"{group}-{number}",
            "s",
            mode,
            "train" if mode == "official" else None,
            "k",
            str(group),
            labels[group % len(labels)],
        )
        for group in range(groups)
        for number in range(per_group)
    ]


def test_folds_are_balanced_over_labels():
    rows = rows_of("folds", groups=64, per_group=3)
    places = assign(rows, SHARES)
    counts = Counter((places[row.uid].fold, row.label) for row in rows)
    assert set(counts.values()) == {12}  # 16 groups of each label over 4 folds, 3 rows each


def test_shares_are_met_for_every_label():
    rows = rows_of("shares", groups=400, per_group=1)
    places = assign(rows, SHARES)
    for label in "abcd":
        counts = Counter(places[row.uid].split for row in rows if row.label == label)
        assert counts == {"train": 60, "test": 30, "val": 10}


def test_val_is_carved_from_train_only_where_the_source_has_none():
    rows = rows_of("official", groups=80, per_group=2)
    counts = Counter(place.split for place in assign(rows, SHARES).values())
    assert counts == {"train": 144, "val": 16}
    own = [*rows, Row("v", "s", "official", "val", "k", "v", "a")]
    assert Counter(place.split for place in assign(own, SHARES).values()) == {"train": 160, "val": 1}


def test_two_sources_with_the_same_group_key_are_split_together():
    one = rows_of("shares", groups=30, per_group=1)
    other = [row._replace(uid=f"other-{row.uid}", source="other") for row in one]
    places = assign(one + other, SHARES)
    assert all(places[row.uid] == places[f"other-{row.uid}"] for row in one)


def test_another_seed_gives_another_split():
    rows = rows_of("folds", groups=40, per_group=1)
    assert assign(rows, SHARES) != assign(rows, SHARES._replace(seed=18))


def test_an_official_source_without_a_split_is_a_defect_of_its_adapter():
    with pytest.raises(BuildError, match="official splits, but the record names none"):
        assign([Row("u", "s", "official", None, "k", "g", "a")], SHARES)


def test_ten_thousand_groups_take_seconds_at_most():
    chooser = random.Random(1)
    rows = [Row(str(n), "s", "folds", None, "k", str(n), chooser.choice("abcdefgh")) for n in range(10_000)]
    counts = Counter(place.fold for place in assign(rows, SHARES).values())
    assert max(counts.values()) - min(counts.values()) <= 8
