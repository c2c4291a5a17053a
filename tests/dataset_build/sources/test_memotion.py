"""Memotion: three questions a meme, the rules by which a degree counts as Yes, the test files, and the texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, memotion
from tests.fixtures.sources import memotion as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memotion")
    fixture.build(folder)
    return folder


def records(root, **options) -> dict[str, Record]:
    found = memotion.read(str(root), memotion.Options(**options))
    return {item.uid: item for item in found if isinstance(item, Record)}


def test_a_meme_is_asked_three_questions(root):
    found = records(root)
    meme = {task: found[f"memotion/train/image_2.png:{task}"] for task in memotion.SUB_TASKS}
    assert {task: (record.native_label, record.label) for task, record in meme.items()} == {
        "humor": ("funny", "Yes"),
        "sarcasm": ("twisted_meaning", "Yes"),
        "hate": ("hateful_offensive", "Yes"),
    }
    for record in meme.values():
        assert record.media == (MediaRef("image", "images/image_2.png"),)
        assert record.ocr_text == "ONE DOES NOT SIMPLY WALK INTO KITCHEN 1" and not record.text
        assert record.group_keys == {"picture": "image_2.png"}


def test_the_first_word_that_counts_as_yes_can_be_chosen_and_is_written_down(root):
    uid = "memotion/train/image_1.jpg:sarcasm"  # general
    default, strict = records(root)[uid], records(root, sarcasm_from="twisted_meaning")[uid]
    assert (default.label, default.label_rule) == ("Yes", "yes from general")
    assert (strict.label, strict.label_rule) == ("No", "yes from twisted_meaning")
    assert default.native_label == strict.native_label == "general"
    hate = records(root, hate_from="hateful_offensive", humor_from="hilarious")
    words = {(record.sub_task, record.native_label) for record in hate.values() if record.label == "Yes"}
    assert {word for task, word in words if task == "hate"} == {"hateful_offensive"}
    assert {word for task, word in words if task == "humor"} == {"hilarious"}


def test_the_raw_text_counts_where_none_was_corrected(root):
    found = records(root)
    for name, number in (("image_4.JPG", 3), ("image_5.jpg", 4)):
        assert (
            found[f"memotion/train/{name}:humor"].ocr_text
            == f"ONE DOES NOT SIMPLY\nWALK INTO KITCHEN {number}"
        )
    assert found["memotion/test/kermit.PNG:humor"].ocr_text == "but that is\nnone of my business"


def test_the_truth_string_gives_degrees_in_the_order_humour_sarcasm_offence(root):
    found = records(root)
    words = {task: found[f"memotion/test/avengers_1.jpg:{task}"].native_label for task in memotion.SUB_TASKS}
    assert words == {"humor": "very_funny", "sarcasm": "general", "hate": "not_offensive"}
    record = found["memotion/test/kermit.PNG:hate"]
    assert (record.native_label, record.label) == ("hateful_offensive", "Yes")
    assert record.media[0].path == f"{fixture.TEST}/2000_data/kermit.PNG"
    assert found["memotion/test/yoda.jpeg:sarcasm"].ocr_text == ""  # the text file does not know it


def test_memes_without_a_truth_and_truths_that_are_none_are_rejects(root):
    details = {
        item.uid: item.detail
        for item in memotion.read(str(root), memotion.Options())
        if isinstance(item, Reject)
    }
    assert "no label for it" in details["memotion/test/unlabelled.jpg:hate"]
    assert "'1_11_21'" in details["memotion/test/broken.jpg:humor"]


def test_an_unknown_word_costs_its_question_only(root):
    found = records(root)
    assert "memotion/train/image_9.jpg:sarcasm" not in found and "memotion/train/image_9.jpg:humor" in found


def test_shares_read_train_alone_and_name_no_split(root):
    options = memotion.Options(split="shares")
    assert base.split_mode(memotion, options) == "shares"
    found = list(memotion.read(str(root), options))
    assert {item.split for item in found} == {None} and len(found) == 3 * 14


def test_the_folder_above_and_train_without_test_are_read_too(root, tmp_path):
    (tmp_path / "memotion_dataset_7k").symlink_to(root)
    with pytest.raises(BuildError):  # a link that leaves the root is not followed
        records(tmp_path)
    (tmp_path / "memotion_dataset_7k").unlink()
    (tmp_path / "memotion_dataset_7k").mkdir()
    (tmp_path / "memotion_dataset_7k/labels.csv").write_bytes((root / "labels.csv").read_bytes())
    found = records(tmp_path)
    assert {record.split for record in found.values()} == {"train"}
    assert found["memotion/train/image_2.png:hate"].media[0].path == "memotion_dataset_7k/images/image_2.png"


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "labels.csv").write_text("image_name,humour,offensive\na.jpg,funny,slight\n")
    with pytest.raises(
        BuildError, match=r"labels\.csv: column sarcasm missing; found image_name, humour, offensive"
    ):
        list(memotion.read(str(tmp_path), memotion.Options()))
