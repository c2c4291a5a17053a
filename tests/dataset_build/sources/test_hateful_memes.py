"""Hateful Memes: the union of the dev files by id, phase 1, and what of a line is used for what."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from dataset_build.errors import BuildError
from dataset_build.schema import Record, Reject
from dataset_build.sources import hateful_memes
from tests.fixtures import sources as fixtures
from tests.fixtures.sources import hateful_memes as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hateful_memes")
    fixtures.build("hateful_memes", folder)
    return folder


def read(root: Path, **options: object) -> list[Record | Reject]:
    return list(hateful_memes.read(str(root), hateful_memes.Options.model_validate(options)))


def test_a_meme_is_found_by_img_and_its_text_is_text_in_the_picture(root):
    record = next(item for item in read(root) if item.uid == "hateful_memes/val/21")
    assert record.media[0].path == "img/00021.png"
    assert (record.ocr_text, record.text) == ("when the kettle meets the\nladder at noon", "")
    assert (record.label, record.native_label, record.options) == ("Yes", "1", ("Yes", "No"))
    assert record.group_keys == {"picture": "00021.png"}


def test_val_is_the_union_of_both_dev_files_by_id(root):
    val = [item for item in read(root) if item.split == "val"]
    kept = [item.uid for item in val if isinstance(item, Record)]
    assert kept == [f"hateful_memes/val/{number}" for number in range(21, 30)]
    again = [item for item in val if isinstance(item, Reject)]
    assert [item.uid for item in again] == [f"hateful_memes/val/{n}@dev_unseen" for n in range(23, 27)]
    assert {item.reason for item in again} == {"source_rule"}
    assert all("dev_seen.jsonl" in item.detail for item in again)


@pytest.mark.parametrize(
    ("val", "count"), [(["dev_seen"], 6), (["dev_unseen"], 7), (["dev_unseen", "dev_seen"], 13)]
)
def test_one_dev_file_can_be_chosen(root, val, count):
    found = [item for item in read(root, val=val) if item.split == "val"]
    assert len(found) == count
    assert len([item for item in found if isinstance(item, Record)]) == min(count, 9)


def test_one_test_file_can_be_chosen_and_nothing_else_is_read(root):
    found = [item for item in read(root, test=["test_seen"]) if item.split == "test"]
    assert [item.uid.rpartition("/")[2] for item in found] == ["41", "42", "43", "44"]
    with pytest.raises(ValidationError):
        hateful_memes.Options.model_validate({"test": []})


def test_phase_1_reads_its_dev_rows_and_leaves_the_unlabelled_test_rows_out_by_rule(tmp_path):
    for name, numbers, labelled in (("train", (1, 2), True), ("dev", (21,), True), ("test", (41, 42), False)):
        rows = [fixture.row(number, number % 2 if labelled else None) for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text(fixture.lines(rows))
    found = read(tmp_path)
    assert Counter(item.split for item in found if isinstance(item, Record)) == {"train": 2, "val": 1}
    left_out = [item for item in found if isinstance(item, Reject)]
    assert [(item.split, item.reason) for item in left_out] == [("test", "source_rule")] * 2


def test_a_missing_file_of_the_second_phase_is_named(root, tmp_path):
    for path in root.glob("*.jsonl"):
        if path.name != "dev_unseen.jsonl":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BuildError, match="dev_unseen.jsonl"):
        read(tmp_path)


def test_a_second_row_in_one_file_keeps_its_uid_so_that_the_build_calls_it_a_duplicate_id(tmp_path):
    rows = {
        "train": [1],
        "dev_seen": [21, 21],
        "dev_unseen": [21, 21],
        "test_seen": [41],
        "test_unseen": [51],
    }
    for name, numbers in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(fixture.lines([fixture.row(n, 1) for n in numbers]))
    val = [item.uid.rpartition("/")[2] for item in read(tmp_path) if item.split == "val"]
    assert val == ["21", "21", "21@dev_unseen", "21"]


def test_the_folder_above_is_a_root_too(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    record = next(item for item in read(tmp_path) if isinstance(item, Record))
    assert record.media[0].path == "data/img/00001.png"
    assert json.loads((root / "dev_seen.jsonl").read_text().splitlines()[0])["img"] == "img/00021.png"
