"""Twins: found exactly, judged by what the pictures are, and the one nearer to training gives way."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build import dedup, near
from dataset_build.index import Index, SourceFacts
from dataset_build.leakage import TextOverlap
from dataset_build.splits import Place, Places
from tests.fixtures.index_rows import Row, from_rows

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None, max_examples=60)
PLACES = [Place("test"), Place("val"), Place("train"), Place("test", 0), Place("train", 1), Place("train", 2)]
TEST, VAL, TRAIN = PLACES[:3]
KINDS = ("photographs", "drawings", "cards", "memes", "clips", "takes")
# One source per kind of picture, all split by folds of one key, so that every kind meets every other.
FACTS = {kind: SourceFacts("folds", "k", kind) for kind in KINDS}
RANK = {"test": 0, "val": 2, "train": 3}


def row(uid: str, *, media="", phash=0, pictures="photographs", text="", ocr="", **rest) -> Row:
    return Row(
        uid,
        source=pictures,
        media=(media or f"media-{uid}",),
        phash=f"{phash:016x}",
        text=text,
        text_words=len(text.split()),
        ocr=ocr,
        ocr_words=len(ocr.split()),
        **rest,
    )


def placed(rows: list[Row], places: dict[str, Place]) -> tuple[Index, Places]:
    splits = ("train", "val", "test")
    split = np.array([splits.index(places[r.uid].split) for r in rows], np.int8)
    fold = np.array([-1 if (f := places[r.uid].fold) is None else f for r in rows], np.int16)
    return from_rows(rows, FACTS), Places(split, fold, {}, {})


def removals(rows: list[Row], places: dict[str, Place], **rules) -> list[tuple[str, str, str, bool]]:
    index, found = placed(rows, places)
    gone = dedup.verdicts(index, found, dedup.Rules(**rules)).removed.values()
    return sorted((index.uid(one.row), index.uid(one.twin), one.rule, one.across_splits) for one in gone)


def ties(rows: list[Row], near_bits: int = 4) -> list[dedup.Tie]:
    index = from_rows(rows, FACTS)
    return dedup.ties(index, np.arange(len(rows), dtype=np.int32), near_bits)


def are_near_twins(one: Row, other: Row, near_bits: int = 4) -> bool:
    """The rule as the module's text says it, one pair at a time."""
    kinds = {one.source, other.source}
    if (int(one.phash, 16) ^ int(other.phash, 16)).bit_count() > near_bits or kinds & {"cards", "takes"}:
        return False
    if "drawings" in kinds and (one.sub_task, one.label) != (other.sub_task, other.label):
        return False
    if "memes" in kinds and one.ocr != other.ocr:
        return False
    return "clips" not in kinds or (one.text == other.text and one.text_words >= 5)


WORDS = ("", "so short", "we were on a break then", "could I be any more late")


@st.composite
def hashed_rows(draw) -> list[Row]:
    """Rows whose hashes lie close together: a few centres with some bits flipped."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    rows = []
    for number in range(draw(st.integers(2, 25))):
        value = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=6)):
            value ^= 1 << bit
        rows.append(
            row(
                f"u{number:02d}",
                phash=value,
                media=draw(st.sampled_from(["", "", "", "shared"])),
                label=draw(st.sampled_from("ab")),
                pictures=draw(st.sampled_from(KINDS)),
                text=draw(st.sampled_from(WORDS)),
                ocr=draw(st.sampled_from(WORDS[:3])),
                group=f"g{draw(st.integers(0, 12))}",
            )
        )
    return rows


@unhurried
@given(st.sets(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 12), st.randoms(use_true_random=False))
def test_near_pairs_are_exactly_those_within_the_limit(values, bits, chooser):
    for value in list(values):  # company for each, so that there is something to find
        for _ in range(3):
            values.add(
                value ^ sum(1 << bit for bit in chooser.sample(range(64), chooser.randint(0, bits + 2)))
            )
    hashes = list(values)
    one, other = near.pairs(np.array(hashes, np.uint64), bits)
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= bits
    ]
    assert list(zip(one.tolist(), other.tolist())) == expected


def test_near_pairs_want_each_value_once():
    with pytest.raises(ValueError, match="not distinct"):
        near.pairs(np.array([3, 3], np.uint64), 4)


@unhurried
@given(hashed_rows(), st.data())
def test_no_twin_is_left_across_splits_and_no_test_row_ever_gives_way_to_training(rows, data):
    places = {r.uid: data.draw(st.sampled_from(PLACES)) for r in rows}
    removed = removals(rows, places)
    gone = {uid for uid, *_ in removed}
    for uid, twin, _, across in removed:
        mine, twins = places[uid], places[twin]
        assert twin not in gone
        assert across == (mine != twins)
        if mine.fold is None and twins.fold is None:
            assert RANK[twins.split] <= RANK[mine.split]
    kept = [r for r in rows if r.uid not in gone]
    for one, other in itertools.combinations(kept, 2):
        if are_near_twins(one, other) or one.media == other.media:
            assert places[one.uid] == places[other.uid]


@unhurried
@given(hashed_rows(), st.data())
def test_a_row_gives_way_only_to_a_twin(rows, data):
    places = {r.uid: data.draw(st.sampled_from(PLACES)) for r in rows}
    by_uid = {r.uid: r for r in rows}
    for uid, twin, rule, across in removals(rows, places):
        one, other = by_uid[uid], by_uid[twin]
        assert (one.media == other.media) if rule.startswith("same_bytes") else are_near_twins(one, other)
        if not across:
            assert (one.media, one.label, one.sub_task) == (other.media, other.label, other.sub_task)


@unhurried
@given(hashed_rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows, shuffler):
    places = {r.uid: PLACES[number % len(PLACES)] for number, r in enumerate(rows)}
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    for switch in (False, True):
        assert removals(shuffled, places, within_split_near=switch) == removals(
            rows, places, within_split_near=switch
        )
    assert ties(shuffled) == ties(rows)


@unhurried
@given(hashed_rows())
def test_ties_connect_exactly_the_groups_that_twins_connect(rows):
    parent = {r.group: r.group for r in rows}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for one, other in itertools.combinations(rows, 2):
        if are_near_twins(one, other) or one.media == other.media:
            low, high = sorted((root(one.group), root(other.group)))
            parent[high] = low
    tied = dedup.tied_groups(ties(rows))
    assert {r.group: tied.get(("k", r.group), r.group) for r in rows} == {
        r.group: root(r.group) for r in rows
    }


def gone(*rows_and_places: tuple[Row, Place], **rules) -> list[tuple[str, str, str]]:
    rows = [r for r, _ in rows_and_places]
    return [found[:3] for found in removals(rows, {r.uid: place for r, place in rows_and_places}, **rules)]


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


def test_one_item_with_two_labels_in_one_split_stays_and_is_noted():
    rows = [
        row("a", media="x", label="joy"),
        row("b", media="x", label="fear"),
        row("c", media="x", label="joy"),
    ]
    index, places = placed(rows, dict.fromkeys("abc", TRAIN))
    found = dedup.verdicts(index, places, dedup.Rules())
    assert [(one.row, one.twin, one.rule) for one in found.removed.values()] == [(2, 0, "same_bytes")]
    assert found.conflicts == [dedup.Conflict(1, 0)]
    # in two splits the training side gives way all the same: its picture is a test picture
    assert gone((rows[0], TRAIN), (rows[1], TEST)) == [("a", "b", "same_bytes_across_splits")]


def test_drawings_are_near_twins_only_with_the_same_label():
    smile = row("smile", phash=0b00, label="joy", pictures="drawings")
    frown = row("frown", phash=0b11, label="sadness", pictures="drawings")
    grin = row("grin", phash=0b11, label="joy", pictures="drawings")
    assert gone((smile, TRAIN), (frown, TEST)) == []
    assert gone((smile, TRAIN), (grin, TEST)) == [("smile", "grin", "near_duplicate_across_splits")]
    assert gone((smile, TRAIN), (grin, TRAIN)) == []  # look-alikes by design stay together
    assert [tie.groups for tie in ties([smile, frown, grin])] == [("grin", "smile")]


def test_photographs_are_near_twins_whatever_the_label_and_cards_never():
    one, other = row("a", label="joy"), row("b", phash=1, label="fear")
    assert gone((one, TRAIN), (other, TEST)) == [("a", "b", "near_duplicate_across_splits")]
    cards = [row("a", pictures="cards"), row("b", pictures="cards")]
    assert gone((cards[0], TRAIN), (cards[1], TEST)) == []


def test_look_alike_photographs_of_one_split_stay_unless_the_recipe_asks():
    one, other, third = row("a", label="joy"), row("b", phash=1, label="joy"), row("c", phash=1, label="fear")
    everything = ((one, TRAIN), (other, TRAIN), (third, TRAIN))
    assert gone(*everything) == []
    assert gone(*everything, within_split_near=True) == [("b", "a", "near_duplicate")]


def test_a_meme_with_other_words_is_another_meme():
    def meme(uid: str, words: str, phash: int = 0) -> Row:
        return row(uid, pictures="memes", ocr=words, phash=phash, label="Yes" if uid == "a" else "No")

    original, confounder, copy = (
        meme("a", "love them all"),
        meme("b", "hate them all", 1),
        meme("c", "love them all", 2),
    )
    assert gone((original, TRAIN), (confounder, TEST)) == []
    assert gone((original, TRAIN), (copy, TEST)) == [("a", "c", "near_duplicate_across_splits")]


def test_clips_with_a_near_middle_frame_are_twins_only_by_the_same_words():
    def clip(uid: str, words: str) -> Row:
        return row(uid, pictures="clips", text=words)

    said = "we were on a break then"
    assert gone((clip("a", said), TRAIN), (clip("b", "it was on a break then"), TEST)) == []
    assert gone((clip("a", "oh my god"), TRAIN), (clip("b", "oh my god"), TEST)) == []
    assert gone((clip("a", said), TRAIN), (clip("b", said), TEST)) == [
        ("a", "b", "near_duplicate_across_splits")
    ]
    same = row("c", pictures="clips", media="x"), row("d", pictures="clips", media="x")
    assert gone((same[0], TRAIN), (same[1], TEST)) == [("c", "d", "same_bytes_across_splits")]


def test_takes_of_one_sentence_are_twins_only_by_their_bytes():
    said = "I would like a new alarm clock"
    one, other = (row(uid, pictures="takes", text=said, group=uid) for uid in ("actor-1", "actor-2"))
    assert gone((one, TRAIN), (other, TEST)) == []
    assert ties([one, other]) == []  # else all actors would end in one fold
    clip = row("sitcom", pictures="clips", text=said)
    assert gone((one, TRAIN), (clip, TEST)) == []
    copy = [row(uid, pictures="takes", text=said, media="x", group=uid) for uid in ("actor-1", "actor-2")]
    assert gone((copy[0], TRAIN), (copy[1], TEST)) == [("actor-1", "actor-2", "same_bytes_across_splits")]
    assert [tie.rule for tie in ties(copy)] == ["same_bytes"]


def test_the_same_words_in_two_named_sources_leave_on_the_training_side():
    overlap = TextOverlap("shared-lines", ("photographs", "clips"), "text", 5)
    said, short = "we were on a break then", "oh my god"
    train, test = row("a", text=said, phash=2**60 - 1), row("b", pictures="clips", text=said)
    assert gone((train, TRAIN), (test, TEST), texts=[overlap]) == [("a", "b", "same_text:shared-lines")]
    assert gone((train, TEST), (test, TRAIN), texts=[overlap]) == [("b", "a", "same_text:shared-lines")]
    assert gone((train, TRAIN), (test, TRAIN), texts=[overlap]) == []
    within = row("c", text=said, phash=2**40 - 1)  # the same source repeats itself: not this rule's business
    assert gone((train, TRAIN), (within, TEST), texts=[overlap]) == []
    chance = [row("a", text=short, phash=2**60 - 1), row("b", pictures="clips", text=short)]
    assert gone((chance[0], TRAIN), (chance[1], TEST), texts=[overlap]) == []


def test_the_words_of_a_meme_are_matched_inside_a_source_where_the_register_says_so():
    overlap = TextOverlap("memes-twice", ("memes", "memes"), "ocr", 4)
    one, other = (
        row(uid, pictures="memes", ocr="wear your mask please", phash=bits)
        for uid, bits in (("a", 0), ("b", 2**50 - 1))
    )
    assert gone((one, TRAIN), (other, TEST), texts=[overlap]) == [("a", "b", "same_text:memes-twice")]
    assert gone((one, TRAIN), (other, TEST)) == []


def test_ties_join_groups_over_several_steps():
    chain = [
        row(name, phash=value, group=name, pictures="drawings")
        for name, value in (("a", 0), ("b", 0xF), ("c", 0xFF), ("z", 2**40 - 1))
    ]
    assert dedup.tied_groups(ties(chain)) == {("k", "a"): "a", ("k", "b"): "a", ("k", "c"): "a"}
    same_file = [row("a", media="x", label="joy"), row("b", media="x", label="fear", phash=2**60 - 1)]
    assert [(tie.groups, tie.rule) for tie in ties(same_file)] == [(("a", "b"), "same_bytes")]


@pytest.mark.parametrize("kind", ["photographs", "memes"])
def test_twenty_thousand_black_frames_cost_steps_not_pairs(kind):
    # 200 million pairs would take minutes; memes have other words each, so each is looked up on its own.
    rows = [row(f"u{n:05d}", pictures=kind, ocr=f"words {n}", group=f"g{n}") for n in range(20_000)]
    places = {r.uid: PLACES[n % 2] for n, r in enumerate(rows)}
    index, found = placed(rows, places)
    started = time.process_time()
    removed = dedup.verdicts(index, found, dedup.Rules()).removed
    tied = dedup.ties(index, np.arange(len(rows), dtype=np.int32), 4)
    assert time.process_time() - started < 5
    assert (len(removed), len(tied)) == ((10_000, 19_999) if kind == "photographs" else (0, 0))


def test_a_dense_cloud_of_hashes_is_searched_exactly():
    chooser = random.Random(3)
    values = np.unique(
        np.array([sum(1 << bit for bit in chooser.sample(range(40), 3)) for _ in range(1500)], np.uint64)
    )
    one, other = near.pairs(values, 4)
    expected = np.triu(np.bitwise_count(values[:, None] ^ values[None, :]) <= 4, 1)
    assert (np.stack([one, other]) == np.stack(np.nonzero(expected))).all()
    assert len(one) > 1000
