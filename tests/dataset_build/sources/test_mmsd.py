"""MMSD and MMSD2.0: whose label counts, the word filter, ids of 18 digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import mmsd, mmsd2
from tests.fixtures.sources import mmsd as fixture
from tests.fixtures.sources import mmsd2 as fixture2

FIRST, FIRST2 = fixture.FIRST_ID, fixture2.FIRST_ID


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mmsd")
    fixture.build(folder)
    return folder


@pytest.fixture(scope="module")
def root2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mmsd2")
    fixture2.build(folder)
    return folder


def records(found) -> dict[str, Record]:
    return {item.uid: item for item in found if isinstance(item, Record)}


def test_a_tweet_comes_with_its_text_picture_and_whole_id(root):
    record = records(mmsd.read(str(root), mmsd.Options()))[f"mmsd/train/{FIRST + 3}"]
    assert record.media == (MediaRef("image", f"image/{FIRST + 3}.jpg"),)
    assert record.text == 'i do n\'t "like" umbrellas , they are <num> percent holes'
    assert (record.label, record.native_label, record.label_rule) == ("Yes", "1", "hashtag")
    assert record.group_keys == {"tweet": "900000000000000004"}


def test_the_human_label_is_the_last_one_and_counts_by_default(root):
    uid = f"mmsd/val/{FIRST + 13}"
    human = records(mmsd.read(str(root), mmsd.Options()))[uid]
    hashtag = records(mmsd.read(str(root), mmsd.Options(label_rule="hashtag")))[uid]
    assert (human.label, human.label_rule) == ("No", "human")
    assert (hashtag.label, hashtag.label_rule) == ("Yes", "hashtag")


def test_the_word_filter_names_the_word_and_touches_only_train(root):
    found = {item.uid: item for item in mmsd.read(str(root), mmsd.Options()) if isinstance(item, Reject)}
    assert "'sarcasm'" in found[f"mmsd/train/{FIRST + 4}"].detail
    assert "'<url>'" in found[f"mmsd/train/{FIRST + 5}"].detail
    assert all(item.split == "train" for item in found.values() if item.reason == "source_rule")
    unfiltered = records(mmsd.read(str(root), mmsd.Options(word_filter=False)))
    assert {f"mmsd/train/{FIRST + 4}", f"mmsd/train/{FIRST + 5}"} <= set(unfiltered)


def test_the_filter_sees_words_not_parts_of_words_nor_other_splits(tmp_path):
    for name, rows in {
        "train.txt": [["1", "the jokester is ironically humorless", 1], ["2", "what a joke", 1]],
        "valid2.txt": [["3", "irony at its best", 0, 1]],
        "test2.txt": [["4", "some humour", 1, 0]],
    }.items():
        (tmp_path / name).write_text("\n".join(map(repr, rows)))  # the lists may lie in the root itself
    found = list(mmsd.read(str(tmp_path), mmsd.Options()))
    assert [item.uid for item in found if isinstance(item, Reject)] == ["mmsd/train/2"]
    assert [item.label for item in found if isinstance(item, Record)] == ["Yes", "Yes", "No"]


def test_a_line_with_code_is_a_bad_row_and_runs_nothing(root):
    found = [item for item in mmsd.read(str(root), mmsd.Options()) if isinstance(item, Reject)]
    (code,) = [item for item in found if "__import__" in item.detail]
    assert code.reason == "bad_row" and "text/train.txt, line 18" in code.detail


def test_mmsd2_keeps_18_digits_and_takes_ids_as_number_or_text(root2):
    found = records(mmsd2.read(str(root2), mmsd2.Options()))
    for tweet in (FIRST2, FIRST2 + 1):
        record = found[f"mmsd2/train/{tweet}"]
        assert record.media == (MediaRef("image", f"data/dataset_image/{tweet}.jpg"),)
        assert record.group_keys == {"tweet": str(tweet)}
    assert found["mmsd2/val/800000000000000011"].text == "such a lovely queue at gate 10"
    assert found["mmsd2/val/800000000000000011"].label_rule == "mmsd2.0"


def test_an_id_that_passed_through_a_float_is_a_bad_row(root, root2):
    for found in (mmsd.read(str(root), mmsd.Options()), mmsd2.read(str(root2), mmsd2.Options())):
        (reject,) = [item for item in found if isinstance(item, Reject) and "e+17" in item.detail]
        assert reject.reason == "bad_row"


def test_the_cleaned_lists_of_mmsd_are_another_annotation_of_the_same_pictures(root2):
    final = records(mmsd2.read(str(root2), mmsd2.Options()))
    clean = records(mmsd2.read(str(root2), mmsd2.Options(annotation="clean")))
    assert len(clean) == 4
    for uid, record in clean.items():
        assert record.media == final[uid].media and record.label != final[uid].label
        assert record.label_rule == "mmsd"
