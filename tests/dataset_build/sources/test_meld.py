"""MELD: rows of the table and nothing else, lines before as context, and the published tables where they are at hand."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build import convert
from dataset_build.recipe import MediaSettings
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, meld
from tests.fixtures.sources import base as media
from tests.fixtures.sources import meld as fixture

PROJECT = Path(__file__).resolve().parents[3]
ANNOTATIONS = Path(os.environ.get("EMOBENCH_ANNOTATIONS") or PROJECT.parent / "shared" / "annotations")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meld")
    fixture.build(folder)
    return folder


@pytest.fixture(scope="module")
def published() -> str:
    folder = ANNOTATIONS / "MELD"
    if not (folder / "train_sent_emo.csv").is_file():
        pytest.skip(
            f"the published tables are not in {folder}; set EMOBENCH_ANNOTATIONS to the folder that holds MELD/"
        )
    return str(folder)


def read(root, **options) -> dict[str, Record | Reject]:
    return {item.uid: item for item in meld.read(str(root), meld.Options(**options))}


def test_an_utterance_comes_with_clip_speaker_context_and_groups(root):
    record = read(root)["meld/train/dia0_utt2"]
    assert record == Record(
        uid="meld/train/dia0_utt2",
        source="meld",
        sub_task="emo_c",
        split="train",
        media=(MediaRef("video", "train/train_splits/dia0_utt2.mp4"),),
        label="sadness",
        native_label="sadness",
        licence_tag="meld-research",
        options=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
        text="It’s late…",
        speaker="Monica",
        context=(Turn("Monica", "Well, that’s news to me!"), Turn("Chandler", "Where have you\r\nbeen?")),
        group_keys={
            "dialogue": "meld-train-0",
            "season": "friends/s04",
            "episode": "friends/s04e09",
            "speaker": "friends/monica",
            "show": "friends",
        },
    )


def test_the_same_dialogue_number_in_another_split_is_another_dialogue(root):
    found = read(root)
    assert {
        found[f"meld/{split}/dia0_utt0"].group_keys["dialogue"] for split in ("train", "val", "test")
    } == {
        "meld-train-0",
        "meld-val-0",
        "meld-test-0",
    }
    assert found["meld/val/dia0_utt1"].context == (Turn("Rachel", "Hello."),)


def test_windows_1252_bytes_are_read_as_what_they_mean(root):
    assert read(root)["meld/test/dia0_utt0"].text == "Don’t."


def test_context_is_bounded_and_skips_numbers_that_are_not_there(root):
    assert [turn.text for turn in read(root, context_turns=2)["meld/train/dia0_utt5"].context] == [
        "It’s late…",
        'You said "noon".',
    ]
    assert read(root, context_turns=0)["meld/train/dia0_utt5"].context == ()


def test_times_in_the_episode_reject_nothing(root):
    found = read(root)
    for uid in ("meld/train/dia0_utt5", "meld/test/dia155_utt3"):
        assert isinstance(found[uid], Record) and found[uid].media[0].start_s is None


def test_files_without_a_row_are_never_looked_at(root):
    assert not [uid for uid in read(root) if "dia66" in uid or "dia108" in uid]


def test_leaving_a_season_out_makes_it_a_fold(root):
    found = read(root, split="leave_season_out")
    assert found["meld/train/dia0_utt0"].fold == 3 and found["meld/test/dia0_utt0"].fold == 0
    assert base.split_mode(meld, meld.Options(split="leave_season_out")) == "folds"
    assert read(root)["meld/train/dia0_utt0"].fold is None


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["joy", "Joy", "", "happy", "x"]))
def test_any_numbers_and_labels_give_a_record_or_a_reject(tmp_path_factory, dialogue, season, emotion):
    root = tmp_path_factory.getbasetemp() / "any-meld"
    cells = ("1", "Hm.", "Joey", emotion, "neutral", dialogue, "0", season, "1", "", "")
    for part in ("train", "dev", "test"):
        media.write(root / f"{part}_sent_emo.csv", fixture.table([cells]).encode("utf-8", "replace"))
    for item in meld.read(str(root), meld.Options()):
        assert isinstance(item, Record) or item.reason in ("bad_row", "unknown_label")


# --- the published tables --------------------------------------------------------------------------------------------


def test_the_published_tables_give_every_row_with_the_published_label_counts(published):
    found = list(meld.read(published, meld.Options()))
    assert all(isinstance(item, Record) for item in found) and len({item.uid for item in found}) == len(found)
    assert Counter(item.split for item in found) == meld.EXPECTED
    # Poria et al. 2019, and counted in the tables of the authors' repository.
    columns = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
    expected = {
        "train": (4710, 1743, 1205, 1109, 683, 271, 268),
        "val": (470, 163, 150, 153, 111, 22, 40),
        "test": (1256, 402, 281, 345, 208, 68, 50),
    }
    for split, counts in expected.items():
        assert Counter(item.label for item in found if item.split == split) == dict(zip(columns, counts))
    dialogues = {item.group_keys["dialogue"] for item in found}
    assert Counter(name.split("-")[1] for name in dialogues) == {"train": 1038, "val": 114, "test": 280}


def test_published_texts_hold_no_control_characters_and_context_is_of_the_same_dialogue(published):
    found = list(meld.read(published, meld.Options(context_turns=3)))
    assert not [item.uid for item in found if any("\x80" <= letter <= "\x9f" for letter in item.text)]
    by_uid = {item.uid: item for item in found}
    second = by_uid["meld/train/dia0_utt1"]
    first = by_uid["meld/train/dia0_utt0"]
    assert second.context == (Turn(first.speaker, first.text),)
    assert max(len(item.context) for item in found) == 3


def test_the_listed_bad_clips_are_rejected_when_they_are_absent_or_broken(published, tmp_path):
    """A handful of clips is made; the listed ones are left out, except one that is there but does not decode."""
    for part in ("train", "dev", "test"):
        name = f"{part}_sent_emo.csv"
        media.write(tmp_path / name, (Path(published) / name).read_bytes())
    good = {
        "meld/train/dia0_utt0": "train_splits/dia0_utt0.mp4",
        "meld/val/dia0_utt0": "dev_splits_complete/dia0_utt0.mp4",
        "meld/test/dia155_utt3": "output_repeated_splits_test/dia155_utt3.mp4",  # no annotated duration
    }
    for path in good.values():
        media.clip(tmp_path / path)
    media.write(tmp_path / "train_splits/dia125_utt3.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(200))
    bad = {
        "meld/train/dia125_utt3": "undecodable",
        "meld/val/dia110_utt7": "missing_media",
        "meld/test/dia279_utt15": "missing_media",
    }
    found = read(tmp_path)
    for uid in good:
        assert isinstance(
            convert.convert(found[uid], str(tmp_path), meld, MediaSettings()), convert.Converted
        )
    for uid, reason in bad.items():
        reject = convert.convert(found[uid], str(tmp_path), meld, MediaSettings())
        assert isinstance(reject, Reject) and reject.reason == reason
