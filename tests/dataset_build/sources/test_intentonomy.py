"""Intentonomy: which intent is the answer, which are further gold labels, and which copy of a picture is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.labels import INTENTONOMY
from dataset_build.schema import Record, Reject
from dataset_build.sources import intentonomy
from tests.fixtures import sources as fixtures
from tests.fixtures.sources import intentonomy as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intentonomy")
    fixtures.build("intentonomy", folder)
    return folder


def read(root: Path, **options: str) -> dict[str, Record | Reject]:
    items = intentonomy.read(str(root), intentonomy.Options.model_validate(options))
    return {item.uid: item for item in items}


def rewritten(root: Path, tmp_path: Path, split: str, change) -> str:
    """The annotations of the fixture elsewhere, one of them changed."""
    for name in ("train", "val", "test"):
        path = f"annotations/intentonomy_{name}2020.json"
        content = json.loads((root / path).read_text())
        if name == split:
            change(content)
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    return str(tmp_path)


def test_the_answer_has_the_most_votes_and_the_other_voted_intents_stay_gold(root):
    image = fixture.image_id("train", 7)
    record = read(root)[f"intentonomy/train/{image}"]
    assert record.label == "Appreciate fine design: architecture"
    assert record.native_label == "FineDesignLearnArt-Arch"
    assert record.other_labels == ("Work hard",)
    assert record.media[0].path == f"images/{image}.jpg"
    assert record.group_keys == {"picture": image}
    assert (record.label_rule, len(record.options)) == ("any_vote", 28)


def test_ties_go_to_the_lowest_id(root):
    record = read(root)[f"intentonomy/train/{fixture.image_id('train', 3)}"]
    words = list(INTENTONOMY.values())
    assert (record.label, record.other_labels) == (words[4], (words[9], words[20]))


def test_val_ids_test_vectors_and_the_renamed_key_give_the_same_kind_of_gold_set(root):
    found, words = read(root), list(INTENTONOMY.values())
    val = found[f"intentonomy/val/{fixture.image_id('val', 2)}"]
    assert (val.label, val.other_labels, val.label_rule) == (words[2], (words[9],), "official")
    vector = found[f"intentonomy/test/{fixture.image_id('test', 0)}"]
    assert (vector.label, vector.other_labels) == (words[2], (words[19],))
    renamed = found[f"intentonomy/test/{fixture.image_id('test', 1)}"]
    assert (renamed.label, renamed.other_labels) == (words[14], ())


def test_the_majority_rule_drops_single_votes_and_rows_without_a_majority(root):
    found = read(root, label_rule="majority_vote")
    assert found[f"intentonomy/train/{fixture.image_id('train', 7)}"].other_labels == ()
    split_vote = found[f"intentonomy/train/{fixture.image_id('train', 3)}"]
    assert isinstance(split_vote, Reject) and split_vote.reason == "source_rule"
    assert "majority_vote" in split_vote.detail


def test_the_small_copy_is_read_where_the_full_one_is_not_there(root):
    image = fixture.image_id("val", 5)
    uid = f"intentonomy/val/{image}"
    assert read(root)[uid].media[0].path == f"images/low/{image}.jpg"
    assert "low" not in read(root, pictures="full")[uid].media[0].path
    every = [item for item in read(root, pictures="low").values() if isinstance(item, Record)]
    assert all(record.media[0].path.startswith("images/low/") for record in every)


def test_categories_in_another_order_are_refused_because_positions_would_mean_something_else(root, tmp_path):
    def swap(content):
        names = content["categories"]
        names[0]["name"], names[1]["name"] = names[1]["name"], names[0]["name"]

    with pytest.raises(BuildError, match=r"val2020.json: .*0: 'BeatCompete', not 'Attractive'"):
        read_root = rewritten(root, tmp_path, "val", swap)
        list(intentonomy.read(read_root, intentonomy.Options()))


def test_a_missing_list_of_categories_is_refused(root, tmp_path):
    with pytest.raises(BuildError, match="28 published ones"):
        list(
            intentonomy.read(
                rewritten(root, tmp_path, "test", lambda content: content.pop("categories")),
                intentonomy.Options(),
            )
        )


def test_a_picture_that_nobody_annotated_leaves_by_rule(root):
    left_out = [item for item in read(root).values() if isinstance(item, Reject)]
    assert Counter(item.reason for item in left_out)["source_rule"] == 1
    assert next(item for item in left_out if item.reason == "source_rule").uid.endswith("e" * 32)


@given(
    st.lists(st.sampled_from([0, 0.3333, 1 / 3, 2 / 3, 1.0]), min_size=28, max_size=28),
    st.sampled_from(["any_vote", "majority_vote"]),
)
def test_every_gold_label_has_a_vote_and_none_has_more_than_the_answer(votes, rule):
    gold = intentonomy._gold({"category_ids_softprob": votes}, rule)
    if gold.reason:
        assert gold.reason == ("source_rule" if any(votes) else "bad_row")
    else:
        assert votes[gold.ids[0]] == max(votes)
        assert all(votes[number] > 0 for number in gold.ids) and len(set(gold.ids)) == len(gold.ids)
        assert rule == "any_vote" or all(votes[number] >= 0.5 for number in gold.ids)


@given(st.sets(st.integers(0, 27), min_size=1))
def test_ids_and_the_vector_of_the_same_categories_give_the_same_gold_set(ids):
    vector = [1.0 if number in ids else 0.0 for number in range(28)]
    by_ids = intentonomy._gold({"category_ids": list(ids)}, "any_vote")
    assert by_ids == intentonomy._gold({"category_ids": vector}, "any_vote")
