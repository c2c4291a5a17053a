"""HarMeme: two sets in one source, two rules for three levels, version 0 refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import Record, Reject
from dataset_build.sources import harmeme
from tests.fixtures import sources as fixtures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harmeme")
    fixtures.build("harmeme", folder)
    return folder


def read(root: Path, **options: object) -> list[Record | Reject]:
    return list(harmeme.read(str(root), harmeme.Options.model_validate(options)))


def record(root: Path, uid: str, **options: object) -> Record:
    return next(item for item in read(root, **options) if item.uid == uid and isinstance(item, Record))


def test_a_meme_of_each_set(root):
    covid = record(root, "harmeme/test/covid_memes_17")
    assert covid.media[0].path == "HarMeme_Images/harmeme_images_covid_19/covid_memes_17.png"
    assert covid.ocr_text == "HARMEME DISTANCE\nAND soap AGAIN 17\n"
    assert (covid.text, covid.label, covid.native_label) == ("", "Yes", "very harmful")
    assert covid.group_keys == {
        "picture": "covid_memes_17.png",
        "set": "harm_c",
        "target": "community,society",
    }
    politics = record(root, "harmeme/val/memes_12")
    assert politics.media[0].path == "HarMeme_Images/harmeme_images_us_pol/memes_12.png"
    assert politics.group_keys["set"] == "harm_p"


def test_somewhat_harmful_is_a_yes_by_the_first_rule_and_a_no_by_the_second(root):
    uids = [f"harmeme/test/memes_{number}" for number in (16, 17, 18, 19)]
    assert [record(root, uid).native_label.split()[0] for uid in uids] == [
        "somewhat",
        "very",
        "somewhat",
        "not",
    ]
    assert [record(root, uid).label for uid in uids] == ["Yes", "Yes", "Yes", "No"]
    by_rule = [record(root, uid, label_rule="very_only") for uid in uids]
    assert [item.label for item in by_rule] == ["No", "Yes", "No", "No"]
    assert {item.label_rule for item in by_rule} == {"very_only"}


@pytest.mark.parametrize(("name", "count"), [("harm_c", 9 + 4 + 4), ("harm_p", 14 + 3 + 4)])
def test_one_set_can_be_read_alone(root, tmp_path, name, count):
    other = "Harm-P" if name == "harm_c" else "Harm-C"
    shutil.copytree(root / "HarMeme_V1", tmp_path / "HarMeme_V1", ignore=shutil.ignore_patterns(other))
    assert len(read(tmp_path, sets=[name])) == count
    with pytest.raises(BuildError, match=r"options\.sets"):
        read(tmp_path)


@pytest.mark.parametrize(
    "path", ["HarMeme_V1/Annotations/Harm-P/", "HarMeme_V0/HarMeme_V0_DataFiles_USPolitics/"]
)
def test_version_0_of_harm_p_is_refused_by_name(root, tmp_path, path):
    shutil.copytree(root / "HarMeme_V1", tmp_path / "HarMeme_V1", ignore=shutil.ignore_patterns("Harm-P"))
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "train.jsonl").write_text("")
    with pytest.raises(BuildError, match="version 0 of Harm-P.*train_v1.jsonl"):
        read(tmp_path)
    assert len(read(tmp_path, sets=["harm_c"])) == 17


def test_an_empty_label_is_unknown_and_an_empty_list_is_a_bad_row(root):
    rejects = {item.uid: item.reason for item in read(root) if isinstance(item, Reject)}
    assert rejects["harmeme/train/memes_90"] == "unknown_label"
    assert rejects["harmeme/train/memes_91"] == "bad_row"
    assert Counter(rejects.values()) == Counter(unknown_label=2, bad_row=4)


def test_targets_are_kept_whatever_the_level(root):
    assert "target" not in record(root, "harmeme/test/memes_18").group_keys  # somewhat harmful, without one
    assert record(root, "harmeme/test/memes_19").group_keys["target"] == "organization"  # not harmful


@pytest.mark.parametrize(
    "folder", ["images/Harm-C", "HarMeme_V1/images/HarMeme_Images/harmeme_images_covid_19", "Images"]
)
def test_picture_folders_of_circulating_copies_are_found(root, tmp_path, folder):
    shutil.copytree(root / "HarMeme_V1", tmp_path / "HarMeme_V1")
    (tmp_path / folder).mkdir(parents=True)
    assert record(tmp_path, "harmeme/test/covid_memes_17").media[0].path == f"{folder}/covid_memes_17.png"


def test_the_picture_folder_can_be_given(root):
    found = record(root, "harmeme/test/memes_18", harm_p_images="pictures/politics/")
    assert found.media[0].path == "pictures/politics/memes_18.png"


def test_the_older_layout_of_harm_c_is_read(root, tmp_path):
    below = tmp_path / "data/datasets/memes/defaults"
    shutil.copytree(root / "HarMeme_V1/Annotations/Harm-C", below / "annotations")
    (below / "images").mkdir()
    found = record(tmp_path, "harmeme/test/covid_memes_17", sets=["harm_c"])
    assert found.media[0].path == "data/datasets/memes/defaults/images/covid_memes_17.png"
