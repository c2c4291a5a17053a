"""UR-FUNNY: what counts as an item, texts of old pickles, and pickles that want to run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import pickles, urfunny
from tests.fixtures.sources import urfunny as fixture

OPTIONS = urfunny.Options()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("urfunny")
    fixture.build(folder)
    return folder


def records(root) -> dict[str, Record]:
    return {item.uid: item for item in urfunny.read(str(root), OPTIONS) if isinstance(item, Record)}


def write(folder: Path, folds: object, sentences: object, labels: object) -> str:
    for name, value in {"data_folds": folds, "language_sdk": sentences, "humor_label_sdk": labels}.items():
        (folder / f"{name}.pkl").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    return str(folder)


def test_a_clip_comes_with_punchline_and_context(root):
    record = records(root)["urfunny/val/99103"]
    assert record.media == (MediaRef("video", "urfunny2_videos/99103.mp4"),)
    assert record.text == "and that is how slide 99103 lost its projector"
    assert record.context == (Turn("", "we began with talk 99103"), Turn("", "then the lights went out"))
    assert (record.label, record.native_label, record.group_keys) == ("Yes", "1", {"video": "99103"})


def test_items_are_the_ids_of_the_folds_not_of_the_label_file(root):
    labelled = pickles.load(str(root), "humor_label_sdk.pkl")
    uids = {item.uid for item in urfunny.read(str(root), OPTIONS)}
    assert 4 in labelled and not any(uid.endswith("/4") for uid in uids)


def test_sentences_may_be_lists_and_context_may_be_absent(root):
    found = records(root)
    assert [turn.text for turn in found["urfunny/train/99004"].context] == [
        "one sentence",
        "in a list of its own",
    ]
    assert found["urfunny/train/99005"].context == ()


def test_texts_of_a_python_2_pickle_are_mended(root):
    assert records(root)["urfunny/train/99006"].text == "so I said it’s fine"


def test_rejects_name_the_file_and_the_video(root):
    details = {item.uid: item.detail for item in urfunny.read(str(root), OPTIONS) if isinstance(item, Reject)}
    assert "has no label in humor_label_sdk.pkl" in details["urfunny/train/99008"]
    assert "has the label 7" in details["urfunny/train/99007"]
    assert "language_sdk.pkl has no entry" in details["urfunny/train/99009"]
    assert "punchline_sentence is None" in details["urfunny/train/99010"]
    assert "the id is 3.5" in details["urfunny/train/entry-13"]


def test_ids_of_numpy_and_text_are_the_same_ids(tmp_path):
    import numpy as np

    entry = {"punchline_sentence": "a", "context_sentences": []}
    folds = {"train": np.array([5, 6]), "dev": ["7"], "test": (np.int64(8),)}
    sentences = {"5": entry, 6: entry, 7: entry, 8: entry}
    root = write(tmp_path, folds, sentences, {5: np.int64(1), "6": 0, 7: 1.0, 8: np.array(0)})
    found = records(root)
    assert {uid: record.label for uid, record in found.items()} == {
        "urfunny/train/5": "Yes",
        "urfunny/train/6": "No",
        "urfunny/val/7": "Yes",
        "urfunny/test/8": "No",
    }


@pytest.mark.parametrize("folds", [[], {"train": [], "dev": []}, {"train": [], "dev": [], "test": 3}])
def test_folds_of_another_shape_are_an_error_that_names_the_file(tmp_path, folds):
    with pytest.raises(BuildError, match=r"data_folds\.pkl"):
        list(urfunny.read(write(tmp_path, folds, {}, {}), OPTIONS))


@pytest.mark.parametrize("name", ["data_folds", "language_sdk", "humor_label_sdk"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, name):
    marker = tmp_path / "ran"
    root = write(tmp_path, {"train": [], "dev": [], "test": []}, {}, {})
    (tmp_path / f"{name}.pkl").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(BuildError, match=rf"{name}\.pkl.*os\.system"):
        list(urfunny.read(root, OPTIONS))
    assert not marker.exists()
