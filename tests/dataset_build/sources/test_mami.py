"""MAMI: two layouts, the truth joined to the test rows, contradictions, the trial set."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import Record, Reject
from dataset_build.sources import mami
from tests.fixtures import sources as fixtures
from tests.fixtures.sources import mami as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mami")
    fixtures.build("mami", folder)
    return folder


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.jpg")))


def read(root: Path, **options: object) -> dict[str, Record | Reject]:
    items = mami.read(str(root), mami.Options.model_validate(options))
    return {item.uid.removeprefix("mami/"): item for item in items}


def test_a_training_meme_with_a_newline_a_quote_and_a_tab_in_its_words(root):
    record = read(root)["train/1.jpg"]
    assert record.ocr_text == 'A TEXT WITH\nA NEWLINE, A "QUOTE" AND A\tTAB'
    assert record.media[0].path == "TRAINING/1.jpg"
    assert (record.text, record.label, record.native_label) == ("", "Yes", "1")
    assert record.group_keys == {"picture": "1.jpg", "kinds": "stereotype"}


def test_the_truth_is_joined_to_the_test_rows_by_name(root):
    found = read(root)
    assert [found[f"test/{number}.jpg"].label for number in range(15001, 15005)] == [
        "Yes", "Yes", "Yes", "No",
    ]  # fmt: skip
    assert found["test/15001.jpg"].media[0].path == "test/15001.jpg"
    assert found["test/15002.jpg"].group_keys["kinds"] == "shaming,violence"


def test_what_only_one_of_the_two_test_files_knows_is_a_bad_row(root):
    found = read(root)
    for name, words in (
        ("test/15090.jpg", "no different lines"),
        ("test/15091.jpg", "Test.csv knows nothing"),
        ("test/test_labels-row-10", "2 cells"),
    ):
        assert isinstance(found[name], Reject) and words in found[name].detail


def test_truth_that_contradicts_itself_is_no_truth_and_a_repeated_line_is(copy):
    lines = (copy / "test_labels.txt").read_text()
    (copy / "test_labels.txt").write_text(f"15001.jpg\t0\t0\t0\t0\t0\n15003.jpg\t1\t0\t0\t0\t0\n{lines}")
    found = read(copy)
    assert isinstance(found["test/15001.jpg"], Reject) and "2 different" in found["test/15001.jpg"].detail
    assert isinstance(found["test/15003.jpg"], Record)


def test_a_kind_of_misogyny_in_a_meme_that_is_not_misogynous_is_a_bad_row(root):
    item = read(root)["train/90.jpg"]
    assert isinstance(item, Reject) and item.reason == "bad_row"
    assert "not misogynous, but stereotype" in item.detail
    assert isinstance(read(root)["train/3.jpg"], Record)  # misogynous, of none of the four kinds


def test_the_trial_set_is_read_only_when_asked_for(root):
    default, asked = read(root), read(root, trial=True)
    assert set(asked) - set(default) == {f"train/trial-{number}.jpg" for number in (28, 29, 30)}
    assert asked["train/trial-28.jpg"].media[0].path == f"{fixture.TRIAL}/28.jpg"


def test_the_folder_above_is_a_root_too(root, tmp_path):
    shutil.copytree(root, tmp_path / "MAMI DATASET", ignore=shutil.ignore_patterns("*.jpg"))
    assert read(tmp_path)["train/1.jpg"].media[0].path == "MAMI DATASET/TRAINING/1.jpg"


def test_the_repack_with_its_misspelt_header_has_a_val_split(tmp_path):
    fixture.repack(tmp_path)
    found = read(tmp_path)
    assert Counter(item.split for item in found.values()) == Counter(train=6, val=3, test=4)
    assert all(isinstance(item, Record) for item in found.values())
    assert found["val/8.jpg"].media[0].path == "MAMI_2022_images/training_images/8.jpg"
    test = found["test/15001.jpg"]
    assert test.media[0].path == "MAMI_2022_images/test_images/15001.jpg"
    assert (test.label, test.ocr_text) == ("Yes", "mami meme 15001: SHE OWNS THE OFFICE NOW")


def test_a_missing_column_and_a_missing_truth_are_named(copy):
    (copy / "test_labels.txt").unlink()
    with pytest.raises(BuildError, match="test truth.*test_labels.txt"):
        read(copy)
    (copy / "TRAINING" / "training.csv").write_text("file_name\tshaming\n1.jpg\t0\n")
    (copy / "test_labels.txt").write_text("15001.jpg\t0\t0\t0\t0\t0\n")
    with pytest.raises(
        BuildError, match="training.csv: column misogynous or label, Text Transcription or text missing"
    ):
        read(copy)
