"""Twins: found exactly, judged by what the pictures are, and the one nearer to training gives way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build.dedup import Row, is_near_twin, near_pairs, removals, tied_groups, ties
from dataset_build.splits import Place

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None, max_examples=60)
PLACES = [Place("test"), Place("val"), Place("train"), Place("test", 0), Place("train", 1), Place("train", 2)]
TEST, VAL, TRAIN = PLACES[:3]


def row(
    uid: str,
    *,
    media=None,
    phash=0,
    label="a",
    sub_task="emo_c",
    group=None,
    pictures="photographs",
    content=None,
) -> Row:
    identity = media or f"media-{uid}"
    return Row(
        uid,
        "s",
        sub_task,
        label,
        "k",
        group or uid,
        pictures,
        content or identity,
        (identity,),
        f"{phash:016x}",
    )


@st.composite
def hashed_rows(draw) -> list[Row]:
    """Rows whose hashes lie close together: a few centres with some bits flipped."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    rows = []
    for number in range(draw(st.integers(2, 25))):
        value = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=6)):
            value ^= 1 << bit
        media = draw(st.sampled_from([None, None, None, "shared"]))
        label, pictures = (
            draw(st.sampled_from("ab")),
            draw(st.sampled_from(["photographs", "drawings", "cards"])),
        )
        rows.append(row(f"u{number:02d}", phash=value, label=label, pictures=pictures, media=media))
    return rows


@unhurried
@given(hashed_rows(), st.integers(0, 8))
def test_near_pairs_are_exactly_those_within_the_limit(rows, near_bits):
    def distance(one: Row, other: Row) -> int:
        return (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()

    expected = {(a.uid, b.uid) for i, b in enumerate(rows) for a in rows[:i] if distance(a, b) <= near_bits}
    found = [(a.uid, b.uid) for a, b in near_pairs(rows, near_bits)]
    assert sorted(found) == sorted(expected)


@unhurried
@given(hashed_rows(), st.data())
def test_no_twin_is_left_across_splits_and_no_test_row_ever_gives_way_to_training(rows, data):
    places = {r.uid: data.draw(st.sampled_from(PLACES)) for r in rows}
    removed = removals(rows, places, near_bits=4)
    gone = {removal.uid for removal in removed}
    rank = {"test": 0, "val": 2, "train": 3}
    for removal in removed:
        mine, twins = places[removal.uid], places[removal.twin_uid]
        if mine.fold is None and twins.fold is None:
            assert rank[twins.split] <= rank[mine.split]
    kept = [r for r in rows if r.uid not in gone]
    for one, other in near_pairs(kept, 4):
        if is_near_twin(one, other):
            assert places[one.uid] == places[other.uid]
    for i, other in enumerate(kept):
        for one in kept[:i]:
            assert not set(one.media) & set(other.media) or places[one.uid] == places[other.uid]


@unhurried
@given(hashed_rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows, shuffler):
    places = {r.uid: PLACES[number % len(PLACES)] for number, r in enumerate(rows)}
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert removals(shuffled, places, 4) == removals(rows, places, 4)
    assert ties(shuffled, 4) == ties(rows, 4)
    assert tied_groups(ties(shuffled, 4)) == tied_groups(ties(rows, 4))


def gone(*rows_and_places: tuple[Row, Place]) -> list[tuple[str, str, str]]:
    rows = [r for r, _ in rows_and_places]
    found = removals(rows, {r.uid: place for r, place in rows_and_places}, near_bits=4)
    return [(removal.uid, removal.twin_uid, removal.rule) for removal in found]


def test_the_same_file_in_train_and_test_leaves_train_even_across_sub_tasks():
    one, other = row("a", media="x", sub_task="emo_c"), row("b", media="x", sub_task="intent")
    assert gone((one, TRAIN), (other, TEST)) == [("a", "b", "same_bytes_across_splits")]
    assert gone((one, VAL), (other, TRAIN)) == [("b", "a", "same_bytes_across_splits")]


def test_a_row_with_a_fold_stays_before_a_train_row_and_leaves_for_a_test_row():
    one, other = row("a", media="x"), row("b", media="x")
    assert gone((one, Place("train", 2)), (other, TRAIN)) == [("b", "a", "same_bytes_across_splits")]
    assert gone((one, Place("train", 2)), (other, TEST)) == [("a", "b", "same_bytes_across_splits")]


def test_one_picture_asked_by_two_sub_tasks_is_no_duplicate_but_asked_twice_it_is():
    asked_c, asked_o = row("a", media="x"), row("b", media="x", sub_task="emo_o")
    assert gone((asked_c, TRAIN), (asked_o, TRAIN)) == []
    assert gone((asked_c, TRAIN), (row("c", media="x"), TRAIN)) == [("c", "a", "same_bytes")]


def test_the_same_picture_with_another_text_is_no_duplicate():
    assert (
        gone((row("a", media="x", content="x+1"), TRAIN), (row("b", media="x", content="x+2"), TRAIN)) == []
    )


def test_drawings_are_near_twins_only_with_the_same_label():
    smile = row("smile", phash=0b00, label="joy", pictures="drawings")
    frown = row("frown", phash=0b11, label="sadness", pictures="drawings")
    grin = row("grin", phash=0b11, label="joy", pictures="drawings")
    assert gone((smile, TRAIN), (frown, TEST)) == []
    assert gone((smile, TRAIN), (grin, TEST)) == [("smile", "grin", "near_duplicate_across_splits")]
    assert gone((smile, TRAIN), (grin, TRAIN)) == []  # look-alikes by design stay together
    assert [tie.groups for tie in ties([smile, frown, grin], 4)] == [("grin", "smile")]


def test_photographs_are_near_twins_whatever_the_label_and_cards_never():
    one, other = row("a", label="joy"), row("b", phash=1, label="fear")
    assert gone((one, TRAIN), (other, TEST)) == [("a", "b", "near_duplicate_across_splits")]
    assert gone((one, TRAIN), (row("c", phash=1, label="joy"), TRAIN)) == [("c", "a", "near_duplicate")]
    cards = [row("a", pictures="cards"), row("b", pictures="cards")]
    assert gone((cards[0], TRAIN), (cards[1], TEST)) == []


def test_ties_join_groups_over_several_steps():
    chain = [
        row(name, phash=value, group=name, pictures="drawings")
        for name, value in (("a", 0), ("b", 0xF), ("c", 0xFF), ("z", 2**40 - 1))
    ]
    assert tied_groups(ties(chain, 4)) == {("k", "a"): "a", ("k", "b"): "a", ("k", "c"): "a"}
    same_file = [row("a", media="x", label="joy"), row("b", media="x", label="fear", phash=2**60 - 1)]
    assert [(tie.groups, tie.rule) for tie in ties(same_file, 4)] == [(("a", "b"), "same_bytes")]
