"""MMHS150K: three rules for three labels, texts of tweet and picture apart, ids that no float holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.schema import Record, Reject
from dataset_build.sources import mmhs150k, readers
from tests.fixtures import sources as fixtures
from tests.fixtures.sources.mmhs150k import FIRST, KINDS, VOTES, entry


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmhs150k")
    fixtures.build("mmhs150k", folder)
    return folder


def read(root: Path, **options: object) -> list[Record | Reject]:
    return list(mmhs150k.read(str(root), mmhs150k.Options.model_validate(options)))


def by_id(root: Path, **options: object) -> dict[str, Record | Reject]:
    return {item.uid: item for item in read(root, **options)}


def test_tweet_and_picture_have_texts_of_their_own(root):
    record = by_id(root)["mmhs150k/val/1110000000000000022"]
    assert record.text == "@user21 about breakfast number 21 again https://t.co/x21"
    assert record.ocr_text == "WORDS IN\nPICTURE 21"
    assert record.media[0].path == "img_resized/1110000000000000022.jpg"
    assert record.group_keys == {"tweet": "1110000000000000022", "picture": "Ab021.jpg"}
    assert (record.label, record.native_label) == ("No", "NotHate,Sexist,NotHate")
    assert record.label_rule == "majority_binary"


def test_a_picture_without_words_has_no_ocr_file_and_that_is_normal(root):
    record = by_id(root)[f"mmhs150k/test/{FIRST + 32}"]
    assert isinstance(record, Record) and record.ocr_text == ""


def test_a_tweet_without_the_address_of_its_picture_is_read(root):
    assert by_id(root)[f"mmhs150k/train/{FIRST + 11}"].group_keys == {"tweet": str(FIRST + 11)}


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ("majority_binary", ["No", "No", "Yes", "Yes"]),
        ("any", ["No", "Yes", "Yes", "Yes"]),
        ("all", ["No", "No", "No", "Yes"]),
    ],
)
def test_the_three_rules_disagree_and_name_themselves(root, rule, labels):
    found = by_id(root, label_rule=rule)
    rows = [found[f"mmhs150k/test/{FIRST + number}"] for number in (32, 33, 34, 35)]
    assert [VOTES[number % 4] for number in (32, 33, 34, 35)] == list(VOTES)
    assert [row.label for row in rows] == labels
    assert {row.label_rule for row in rows} == {rule}


@pytest.mark.parametrize("rule", ["majority_binary", "any", "all"])
def test_fewer_than_three_annotations_leave_by_rule(root, rule):
    item = by_id(root, label_rule=rule)[f"mmhs150k/train/{FIRST + 7}"]
    assert isinstance(item, Reject) and item.reason == "source_rule" and "2 annotations" in item.detail


def test_a_damaged_ocr_file_costs_its_row_only_and_none_is_read_without_the_option(root, monkeypatch):
    damaged = f"mmhs150k/train/{FIRST + 5}"
    assert by_id(root)[damaged].reason == "bad_row" and "img_txt" in by_id(root)[damaged].detail
    asked: list[str] = []
    original = readers.read
    monkeypatch.setattr(
        readers,
        "read",
        lambda root, path, *limits: asked.append(path) or original(root, path, *limits),
    )
    record = by_id(root, ocr=False)[damaged]
    assert isinstance(record, Record) and record.ocr_text == ""
    assert not [path for path in asked if "img_txt" in path]


def test_ocr_files_are_read_one_by_one_as_rows_are_asked_for(root, monkeypatch):
    asked: list[str] = []
    original = readers.json_value
    monkeypatch.setattr(
        readers,
        "json_value",
        lambda root, path, kind: asked.append(path) or original(root, path, kind),
    )
    items = mmhs150k.read(str(root), mmhs150k.Options())
    next(items)
    assert asked == []
    next(items)
    assert asked == [f"img_txt/{FIRST + 1}.json"]


def test_a_tweet_with_two_entries_in_the_table_has_no_trusted_label(tmp_path):
    twice = f'{{"7": {json.dumps(entry(7, (0, 0, 0)))}, "7": {json.dumps(entry(7, (1, 1, 1)))}}}'
    (tmp_path / "MMHS150K_GT.json").write_text(twice)
    (tmp_path / "splits").mkdir()
    for split, tweet in (("train", "7"), ("val", ""), ("test", "")):
        (tmp_path / "splits" / f"{split}_ids.txt").write_text(f"{tweet}\n")
    (item,) = read(tmp_path)
    assert isinstance(item, Reject) and item.reason == "bad_row" and "2 entries" in item.detail


@pytest.mark.parametrize("line", ["tweet", "1.11e18", "../../etc/passwd", "9" * 31])
def test_a_line_that_is_no_tweet_id_is_a_bad_row_named_by_its_place(root, tmp_path, line):
    for name in ("MMHS150K_GT.json", "splits/val_ids.txt", "splits/test_ids.txt"):
        fixtures.base.write(tmp_path / name, (root / name).read_bytes())
    fixtures.base.write(tmp_path / "splits" / "train_ids.txt", f"{FIRST}\n{line}\n")
    item = read(tmp_path)[1]
    assert isinstance(item, Reject) and item.reason == "bad_row"
    assert item.uid == "mmhs150k/train/splits-train_ids.txt-line-2" and line[:20] in item.detail


@given(st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_all_implies_majority_implies_any(votes):
    given_labels, problem = mmhs150k._labels({"labels": votes, "labels_str": [KINDS[v] for v in votes]})
    assert given_labels == votes and not problem
    hateful = sum(vote > 0 for vote in votes)
    by_rule = [hateful >= mmhs150k._NEEDED[rule] for rule in ("all", "majority_binary", "any")]
    assert by_rule == sorted(by_rule)
