"""MUStARD and its text module: protocols, mending, dialogues, and the real annotation where it is at hand."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, mustard
from dataset_build.sources.sitcom_lines import Scene, dialogues, mend
from tests.fixtures.sources import mustard as fixture

PROJECT = Path(__file__).resolve().parents[3]
ANNOTATIONS = Path(os.environ.get("EMOBENCH_ANNOTATIONS") or PROJECT.parent / "shared" / "annotations")
SPEAKER_DEPENDENT = mustard.Options(split="speaker_dependent")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mustard")
    fixture.build(folder)
    return folder


@pytest.fixture(scope="module")
def published() -> str:
    folder = ANNOTATIONS / "MUStARD"
    if not (folder / "sarcasm_data.json").is_file():
        pytest.skip(
            f"the real annotation is not in {folder}; set EMOBENCH_ANNOTATIONS to the folder that holds MUStARD/"
        )
    return str(folder)


def records(root, **options) -> dict[str, Record]:
    found = mustard.read(str(root), mustard.Options(**options))
    return {item.uid: item for item in found if isinstance(item, Record)}


def write(folder: Path, entries: dict) -> str:
    (folder / "sarcasm_data.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder)


def entry(**changes) -> dict:
    fields = {"utterance": "Fine.", "speaker": "ROSS", "show": "FRIENDS", "sarcasm": False}
    return fields | {"context": ["So?"], "context_speakers": ["JOEY"]} | changes


def test_an_utterance_comes_with_clip_speaker_context_and_groups(root):
    record = records(root)["mustard/train/1_9004"]
    assert record.media == (MediaRef("video", "utterances_final/1_9004.mp4"),)
    assert (record.label, record.native_label, record.speaker) == ("No", "false", "HOWARD")
    assert record.text == "We’re not peeking at the parcel?"
    assert record.context == (
        Turn("SHELDON", "The kettle of house 4 is broken again."),
        Turn("PENNY", "Who used it last?"),
    )
    assert record.group_keys == {
        "speaker": "bbt/howard",
        "show": "bbt",
        "dialogue": "bbt/1_9004",
        "scene": "1_9004",
    }


def test_the_context_clip_is_a_second_video_when_asked_for(root):
    media = records(root, context_video=True)["mustard/train/1_9004"].media
    assert [ref.path for ref in media] == ["utterances_final/1_9004.mp4", "context_final/1_9004_c.mp4"]


def test_speaker_independent_tests_friends_and_names_no_fold(root):
    for record in records(root).values():
        assert record.split == ("test" if record.group_keys["show"] == "friends" else "train")
        assert record.fold is None
    assert base.split_mode(mustard, mustard.Options()) == "official"


def test_speaker_dependent_gives_every_record_its_published_fold(root):
    found = records(root, split="speaker_dependent")
    assert base.split_mode(mustard, SPEAKER_DEPENDENT) == "folds"
    # The fixture's folds: place in the file modulo five.
    assert {record.fold for record in found.values()} == {0, 1, 2, 3, 4}
    for uid, record in found.items():
        assert record.split is None and record.fold == (int(uid[-2:]) - 1) % 5


def test_lines_stay_without_names_where_the_names_do_not_fit(root):
    assert records(root)["mustard/train/1_9005"].context == (
        Turn("", "The kettle of house 5 is broken again."),
        Turn("", "Who used it last?"),
    )


def test_a_line_that_is_context_elsewhere_makes_one_dialogue(root):
    found = records(root)
    assert (
        found["mustard/test/1_9002"].group_keys["dialogue"]
        == found["mustard/test/1_9009"].group_keys["dialogue"]
    )


def test_a_repeated_id_is_an_error_because_one_of_the_two_would_be_lost(tmp_path):
    twice = f'{{"1_1": {json.dumps(entry())}, "1_1": {json.dumps(entry(sarcasm=True))}}}'
    (tmp_path / "sarcasm_data.json").write_text(twice, encoding="utf-8")
    with pytest.raises(BuildError, match=r"sarcasm_data\.json.*'1_1'"):
        list(mustard.read(str(tmp_path), mustard.Options()))


@pytest.mark.parametrize(
    ("changes", "reason", "named"),
    [
        ({"utterance": 3}, "bad_row", "utterance is 3"),
        ({"show": " "}, "bad_row", "show is ' '"),
        ({"context": "So?"}, "bad_row", "context is 'So?'"),
        ({"context_speakers": [None]}, "bad_row", "context_speakers is"),
        ({"sarcasm": None}, "unknown_label", "sarcasm is None"),
        ({"sarcasm": 2}, "unknown_label", "sarcasm is 2"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, reason, named):
    (item,) = mustard.read(write(tmp_path, {"1_1": entry(**changes)}), mustard.Options())
    assert isinstance(item, Reject) and item.reason == reason
    assert "1_1" in item.detail and named in item.detail


@pytest.mark.parametrize(
    "folds",
    [
        [([0], [1])],  # one of two items is never tested
        [([0], [0, 1]), ([0], [1])],  # one is tested twice
        [([0], [0, -1])],
        [([0], [0, 7])],
        [1, 2],
        {"train": [0]},
        None,
    ],
)
def test_folds_that_do_not_fit_the_annotation_are_an_error(tmp_path, folds):
    (tmp_path / "split_indices.p").write_bytes(pickle.dumps(folds))
    root = write(tmp_path, {"1_1": entry(), "1_2": entry()})
    with pytest.raises(BuildError, match=r"split_indices\.p"):
        list(mustard.read(root, SPEAKER_DEPENDENT))


def test_missing_folds_are_an_error_only_where_they_are_needed(tmp_path):
    root = write(tmp_path, {"1_1": entry()})
    assert len(list(mustard.read(root, mustard.Options()))) == 1
    with pytest.raises(BuildError, match="published folds"):
        list(mustard.read(root, SPEAKER_DEPENDENT))


def test_folds_that_would_run_code_are_refused(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "split_indices.p").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(BuildError, match=r"os\.system|posix\.system"):
        list(mustard.read(write(tmp_path, {"1_1": entry()}), SPEAKER_DEPENDENT))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("misread", "meant"),
    [
        ("donÕt", "don’t"),
        ("ÒHelpÓ", "“Help”"),
        ("Weā€™re", "We’re"),
        ("Weâ€™re", "We’re"),
        ("wait â€“ no", "wait – no"),
        ("Who touched my…", "Who touched my…"),
        ("5 € â", "5 € â"),
    ],
)
def test_misread_punctuation_is_mended(misread, meant):
    assert mend(misread) == meant


@given(st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20) | st.sampled_from("…’“”‘–—é")))
def test_mending_leaves_well_read_text_alone(text):
    assert mend(text) == text


@given(st.text("don't’“”‘–—… ", max_size=30), st.sampled_from(["cp1252", "mac_roman-as-latin1"]))
def test_what_one_wrong_reading_did_is_undone(text, how):
    if how == "cp1252":
        assert mend("".join(_as_cp1252(character) for character in text)) == text
    else:
        kept = "".join(character for character in text if character not in "–—…")  # letters in Latin-1
        assert mend(kept.encode("mac_roman").decode("latin-1")) == kept


def _as_cp1252(character: str) -> str:
    """The character's UTF-8 bytes read as Windows-1252; the closing quote's last byte has no character there."""
    try:
        return character.encode().decode("cp1252")
    except UnicodeDecodeError:
        return character


SCENES = st.lists(
    st.builds(
        Scene,
        st.sampled_from([f"1_{number}" for number in range(12)]),
        st.just("BBT"),
        st.lists(st.sampled_from([f"{word} is the sixth word here today" for word in "abcd"]), max_size=2),
        st.sampled_from(["", "", "S01E01", "S01E02"]),
    ),
    unique_by=lambda scene: scene.scene,
)


@given(SCENES)
def test_dialogues_are_the_connected_scenes_whatever_the_order(scenes):
    def parts(found: dict[str, str]) -> set[frozenset[str]]:
        return {frozenset(scene for scene, name in found.items() if name == each) for each in found.values()}

    found = dialogues(scenes)
    assert parts(found) == parts(dialogues(scenes[::-1]))
    for one in scenes:
        for other in scenes:
            if set(one.lines) & set(other.lines) or (one.part_of and one.part_of == other.part_of):
                assert found[one.scene] == found[other.scene]


def test_the_published_annotation_reads_whole_with_its_speaker_independent_split(published):
    found = list(mustard.read(published, mustard.Options()))
    assert all(isinstance(item, Record) for item in found)
    assert Counter(item.label for item in found) == {"Yes": 345, "No": 345}
    assert Counter(item.split for item in found) == {"train": 334, "test": 356}
    shows = Counter((item.group_keys["show"], item.label) for item in found)
    assert shows == {
        ("friends", "Yes"): 152, ("friends", "No"): 204, ("bbt", "Yes"): 140, ("bbt", "No"): 140,
        ("goldengirls", "Yes"): 39, ("goldengirls", "No"): 1, ("sarcasmoholics", "Yes"): 14,
    }  # fmt: skip
    speakers = {
        split: {item.group_keys["speaker"] for item in found if item.split == split}
        for split in ("train", "test")
    }
    assert not speakers["train"] & speakers["test"]


def test_the_published_folds_test_every_utterance_once(published):
    found = list(mustard.read(published, SPEAKER_DEPENDENT))
    assert Counter(item.fold for item in found) == dict.fromkeys(range(5), 138)
    # The first test indices of the first fold, as published.
    assert [found[place].fold for place in (0, 1, 4)] == [0, 0, 0]
    assert [found[place].fold for place in (3, 15, 29)] == [1, 1, 1]  # those of the second


def test_no_misread_character_is_left_in_the_published_texts(published):
    found = [item for item in mustard.read(published, mustard.Options()) if isinstance(item, Record)]
    texts = [text for item in found for text in (item.text, *(turn.text for turn in item.context))]
    strange = {character for text in texts for character in text if not character.isascii()}
    assert strange <= set("’…")
    assert "We’re not peeking?" in texts
    assert "Okay that’s like the least fun game ever." in texts
    assert sum(text.count("’") for text in texts) == 14


def test_the_published_annotation_has_a_name_for_every_line(published):
    found = [item for item in mustard.read(published, mustard.Options()) if isinstance(item, Record)]
    assert all(turn.speaker for item in found for turn in item.context)
    assert len({item.group_keys["dialogue"] for item in found}) == 676
