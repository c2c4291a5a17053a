"""Sources of faces and people: CAER-S, RAF-DB, ExpW, AffectNet, FER+, EMOTIC. What is particular to each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import affectnet, caer_s, emotic, expw, fer_plus, raf_db, readers
from tests.fixtures.sources import affectnet as affectnet_fixture
from tests.fixtures.sources import base
from tests.fixtures.sources import emotic as emotic_fixture
from tests.fixtures.sources import fer_plus as fer_plus_fixture


def read(adapter, root: Path, **options) -> list[Record | Reject]:
    return list(adapter.read(str(root), adapter.Options.model_validate(options)))


def records(adapter, root: Path, **options) -> dict[str, Record]:
    return {item.uid: item for item in read(adapter, root, **options) if isinstance(item, Record)}


def rejects(adapter, root: Path, **options) -> list[tuple[str, str, str]]:
    found = read(adapter, root, **options)
    return [(item.uid, item.reason, item.detail) for item in found if isinstance(item, Reject)]


# --- CAER-S ----------------------------------------------------------------------------------------------------------


def _frames(root: Path, *names: str) -> Path:
    for name in names:
        base.write(root / name, b"a frame; adapters open no media")
    return root


def test_caer_s_reads_both_spellings_of_anger_in_either_split(tmp_path):
    names = ["train/Angry/0001.png", "train/Anger/0002.png", "test/Anger/0001.png", "test/Angry/0002.png"]
    found = records(caer_s, _frames(tmp_path, *names))
    assert [record.label for record in found.values()] == ["anger"] * 4
    record = found["caer_s/test/Anger/0001.png"]
    assert (record.split, record.native_label, record.options) == ("test", "Anger", labels.EKMAN_NEUTRAL)
    assert record.media == (MediaRef("image", "test/Anger/0001.png"),)
    assert record.group_keys == {"block": "test/anger/0"}


def test_caer_s_keeps_a_hundred_neighbours_of_a_class_in_one_group(tmp_path):
    names = [
        "train/Sad/0099.png",
        "train/Sad/0100.png",
        "train/Sad/0199.png",
        "train/Fear/0100.png",
        "test/Sad/0100.png",
    ]
    _frames(tmp_path / "CAER-S", *names)
    found = records(caer_s, tmp_path / "CAER-S").values()  # the root may be the folder itself
    assert [record.group_keys["block"] for record in found] == [
        "train/fear/1", "train/sadness/0", "train/sadness/1", "train/sadness/1", "test/sadness/1",
    ]  # fmt: skip
    found = records(caer_s, tmp_path).values()  # or the folder that holds it
    assert [record.media[0].path for record in found][0] == "CAER-S/train/Fear/0100.png"


def test_caer_s_without_one_of_its_splits_is_an_error_not_a_smaller_set(tmp_path):
    with pytest.raises(BuildError, match="test: the folder is not there"):
        read(caer_s, _frames(tmp_path, "train/Sad/0001.png"))


def test_caer_s_with_face_boxes_cuts_the_faces_out_and_accounts_for_every_frame(tmp_path):
    _frames(
        tmp_path, "train/Angry/0001.png", "train/Sad/0002.png", "test/Happy/0003.png", "test/Fear/0004.png"
    )
    rows = [
        "train/Anger/0001.png,0,-4,10,120.5,90",  # the other spelling of the folder; a corner outside the frame
        "CAER-S/test/Happy/0003.png,3,5,6,7,8",
        "CAER-S/test/Happy/0003.png,3,50,60,70,80",  # a second face of the same frame
        "train/Sad/0002.png,5,9,9,9,20",
        "test/Sad/0042.png,5,1,2,3,4",  # not on disk
        "Happy/0003.png,3,5,6,7,8",
        "train/Sad/0002.png,5",
    ]
    base.write(tmp_path / "faces/all.txt", "\n".join(rows))
    found = read(caer_s, tmp_path, boxes=["faces/all.txt"])
    kept = [(item.uid, item.media[0]) for item in found if isinstance(item, Record)]
    happy = "test/Happy/0003.png"
    assert kept == [
        (
            "caer_s/train/Angry/0001.png",
            MediaRef("image", "train/Angry/0001.png", crop=Crop(-4, 10, 120.5, 90)),
        ),
        (f"caer_s/{happy}", MediaRef("image", happy, crop=Crop(5, 6, 7, 8))),
        (
            f"caer_s/{happy}",
            MediaRef("image", happy, crop=Crop(50, 60, 70, 80)),
        ),  # a build gives it duplicate_id
        ("caer_s/test/Sad/0042.png", MediaRef("image", "test/Sad/0042.png", crop=Crop(1, 2, 3, 4))),
    ]
    left = [(item.uid, item.reason) for item in found if isinstance(item, Reject)]
    assert left == [
        ("caer_s/train/Sad/0002.png", "bad_row"),
        ("caer_s/all/faces/all.txt-row-6", "bad_row"),
        ("caer_s/all/faces/all.txt-row-7", "bad_row"),
        ("caer_s/test/Fear/0004.png", "source_rule"),
    ]


# --- RAF-DB ----------------------------------------------------------------------------------------------------------


def test_raf_db_takes_the_aligned_face_or_the_original_picture(tmp_path):
    lines = ["train_00007.jpg 1", "test_0003.jpg 4", "test_0004_aligned.jpg 7"]
    base.write(tmp_path / "basic/EmoLabel/list_patition_label.txt", "\n".join(lines))
    found = records(raf_db, tmp_path)
    assert {uid: (record.label, record.split, record.media[0].path) for uid, record in found.items()} == {
        "raf_db/train/train_00007": ("surprise", "train", "basic/Image/aligned/train_00007_aligned.jpg"),
        "raf_db/test/test_0003": ("joy", "test", "basic/Image/aligned/test_0003_aligned.jpg"),
        "raf_db/test/test_0004_aligned": ("neutral", "test", "basic/Image/aligned/test_0004_aligned.jpg"),
    }
    found = records(raf_db, tmp_path / "basic", pictures="original")
    assert found["raf_db/test/test_0003"].media[0].path == "Image/original/test_0003.jpg"


# --- ExpW ------------------------------------------------------------------------------------------------------------


def _expw(root: Path, *lines: str) -> Path:
    base.write(root / "label/label.lst", "\n".join(lines))
    return root


def test_expw_boxes_are_written_top_left_right_bottom(tmp_path):
    root = _expw(tmp_path, "happy_user_99.jpg 0 42 110 210 142 63.4 3")
    (record,) = records(expw, root).values()
    assert record.uid == "expw/all/happy_user_99.jpg#0"
    assert (record.label, record.native_label, record.split) == ("joy", "3", None)
    crop = Crop(left=110, top=42, right=210, bottom=142)
    assert record.media == (MediaRef("image", "image/origin/happy_user_99.jpg", crop=crop),)
    (record,) = records(expw, root, view="picture").values()
    assert record.media[0].crop is None


@pytest.mark.parametrize("top", ["", "ExpW/", "data/", "ExpW/data/"])
def test_expw_is_found_where_its_archive_unpacks_it(tmp_path, top):
    base.write(tmp_path / top / "label/label.lst", "happy_user_99.jpg 0 42 110 210 142 63.4 3")
    (record,) = records(expw, tmp_path).values()
    assert record.media[0].path == f"{top}image/origin/happy_user_99.jpg"


def test_expw_faces_of_a_picture_share_its_group_and_its_name_may_hold_spaces(tmp_path):
    root = _expw(tmp_path, "two men.jpg 0 0 0 9 9 50 6", "two men.jpg 1 0 9 18 9 50 0")
    found = records(expw, root).values()
    assert [record.group_keys["picture"] for record in found] == ["expw/two men.jpg"] * 2
    assert [record.label for record in found] == ["neutral", "anger"]


def test_expw_a_line_that_repeats_another_is_left_out_and_one_that_contradicts_it_keeps_its_id(tmp_path):
    line = "a.jpg 0 0 0 9 9 50 6"
    found = read(expw, _expw(tmp_path, line, line, line.replace("6", "0")))
    assert [item.uid for item in found] == ["expw/all/a.jpg#0", "expw/all/a.jpg#0~2", "expw/all/a.jpg#0"]
    assert isinstance(found[1], Reject) and found[1].reason == "source_rule"
    assert "repeats line 1" in found[1].detail


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=60), max_size=8))
def test_expw_and_raf_db_give_one_item_for_every_line_whatever_it_holds(tmp_path_factory, lines):
    root = tmp_path_factory.mktemp("lines")
    content = "\n".join(lines)
    base.write(root / "label/label.lst", content)
    base.write(root / "EmoLabel/list_patition_label.txt", content)
    # As the readers mend it: U+0085 is white space to Python, but an ellipsis in Windows-1252.
    text = readers.mend_c1(content.removeprefix("\ufeff"))
    filled = [line for line in text.split("\n") if line.strip()]
    for adapter in (expw, raf_db):
        found = read(adapter, root)
        assert len(found) == len(filled)
        assert all(item.uid.startswith(f"{adapter.NAME}/") for item in found)


# --- AffectNet -------------------------------------------------------------------------------------------------------

_HEAD = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def _affectnet(root: Path, train: list[str], val: list[str]) -> Path:
    base.write(root / "training.csv", "\n".join(train))
    base.write(root / "validation.csv", "\n".join(val))
    return root


def test_affectnet_tests_on_the_published_validation_split_and_leaves_val_to_be_carved(tmp_path):
    root = _affectnet(tmp_path, [_HEAD, "1/a.jpg,1,2,3,4,,6,0,0"], ["2/b.jpg,1,2,3,4,,0,0,0"])
    found = records(affectnet, root)
    assert [(uid, record.split) for uid, record in found.items()] == [
        ("affectnet/train/1/a.jpg", "train"),
        ("affectnet/test/2/b.jpg", "test"),
    ]
    assert [record.split for record in records(affectnet, root, split="published").values()] == [
        "train",
        "val",
    ]
    assert list(records(affectnet, root, split="shares")) == [
        "affectnet/all/train/1/a.jpg",
        "affectnet/all/val/2/b.jpg",
    ]
    assert {record.split for record in records(affectnet, root, split="shares").values()} == {None}


def test_affectnet_reads_a_list_with_and_without_header_and_with_columns_in_another_order(tmp_path):
    row = "1/a.jpg,1,2,3,4,,6,0,0"
    other = ",".join(reversed(_HEAD.split(","))), ",".join(reversed(row.split(",")))
    found = [
        list(records(affectnet, _affectnet(tmp_path / str(number), list(lines), [])).values())
        for number, lines in enumerate(([_HEAD, row], [row], other))
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == 1
    with pytest.raises(BuildError, match="expected columns"):
        read(affectnet, _affectnet(tmp_path / "3", ["file,expression,,,,,,,", row], []))


def test_affectnet_leaves_out_what_is_no_emotion_and_contempt_where_seven_are_asked_for(tmp_path):
    rows = [f"1/{code}.jpg,1,2,3,4,,{code},0,0" for code in range(12)]
    root = _affectnet(tmp_path, [_HEAD, *rows], [])
    found = records(affectnet, root)
    assert [record.label for record in found.values()] == list(affectnet.CODES)
    assert {record.options for record in found.values()} == {(*labels.EKMAN_NEUTRAL, "contempt")}
    reasons = Counter(reason for _, reason, _ in rejects(affectnet, root))
    assert reasons == {"source_rule": 3, "unknown_label": 1}
    seven = records(affectnet, root, classes=7).values()
    assert {record.options for record in seven} == {labels.EKMAN_NEUTRAL}
    assert [record.label for record in seven] == list(affectnet.CODES[:7])


def test_affectnet_cuts_the_face_out_on_request(tmp_path):
    rows = ["1/a.jpg,10,20,30,40,,6,0,0", "1/b.jpg,10,20,0,40,,6,0,0", "1/c.jpg,,20,30,40,,6,0,0"]
    root = _affectnet(tmp_path, [_HEAD, *rows], [])
    (record,) = records(affectnet, root, view="face").values()
    assert record.media[0].crop == Crop(10, 20, 40, 60)
    assert [reason for _, reason, _ in rejects(affectnet, root, view="face")] == ["bad_row"] * 2
    assert len(records(affectnet, root)) == 3


def test_affectnet_small_layout_reads_codes_written_as_text_and_as_numbers(tmp_path):
    written = affectnet_fixture.small(tmp_path)
    found = records(affectnet, tmp_path)
    assert len(found) == len(written) == 8
    record = found["affectnet/train/3"]
    assert (record.label, record.native_label) == ("surprise", "3")
    assert record.media == (MediaRef("image", "train_set/images/3.jpg"),)
    assert [found[f"affectnet/test/{number}"].label for number in range(2)] == ["neutral", "joy"]
    np.save(tmp_path / "train_set/annotations/4_exp.npy", np.array([{}], dtype=object), allow_pickle=True)
    base.write(tmp_path / "train_set/annotations/5_exp.npy", b"")
    assert [(uid, reason) for uid, reason, _ in rejects(affectnet, tmp_path)] == [
        ("affectnet/train/4", "bad_row"),
        ("affectnet/train/5", "bad_row"),
    ]
    with pytest.raises(BuildError, match="no face boxes"):
        read(affectnet, tmp_path, view="face")


# --- FER+ ------------------------------------------------------------------------------------------------------------


def _published_rule(votes: list[int]) -> str | None:
    """The majority mode of FERPlus's reader, in its own words: floats, then the place of the largest."""
    raw = [0.0 if count < 1.0 + 1e-9 else float(count) for count in votes]
    if not max(raw) > 0.5 * sum(raw):
        return None
    place = raw.index(max(raw))
    return fer_plus.VOTES[place] if place < 8 else None


@given(st.lists(st.integers(0, 10), min_size=10, max_size=10))
def test_fer_plus_majority_is_the_published_rule(votes):
    assert (fer_plus.majority(votes).native or None) == _published_rule(votes)


def test_fer_plus_majority_drops_single_votes_before_it_counts():
    votes = fer_plus_fixture.votes
    assert (
        fer_plus.majority(votes(fear=4, sadness=2, anger=1, disgust=1, neutral=1, contempt=1)).native
        == "fear"
    )
    assert fer_plus.majority(votes(fear=4, sadness=2, anger=2, disgust=2)).reason == "source_rule"
    assert "unknown" in fer_plus.majority(votes(unknown=9, fear=1)).problem
    assert fer_plus.majority(votes(neutral=1, fear=1)).reason == "source_rule"  # nothing left


def test_fer_plus_joins_the_tables_by_their_place_and_carries_the_pixels(tmp_path):
    picture, votes = fer_plus_fixture.pixels("one"), "0,8,0,0,0,0,0,0,1,1"
    base.write(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n4,{picture},PublicTest\n")
    head = "Usage,Image name," + ",".join(fer_plus.VOTES)
    base.write(tmp_path / "fer2013new.csv", f"{head}\nPublicTest,fer0028638.png,{votes}\n")
    (record,) = records(fer_plus, tmp_path).values()
    assert (record.uid, record.split) == ("fer_plus/val/row-1", "val")
    assert (record.label, record.native_label, record.label_rule) == ("joy", "happiness", "ferplus_majority")
    assert record.media == (MediaRef("image", "fer2013.csv", pixels=picture),)
    (record,) = records(fer_plus, tmp_path, labels="fer2013").values()
    assert (record.label, record.native_label, record.label_rule) == ("sadness", "4", "fer2013")
    assert record.uid == "fer_plus/val/row-1" and record.options == labels.EKMAN_NEUTRAL


def test_fer_plus_tables_that_do_not_run_in_parallel_are_bad_rows_not_wrong_labels(tmp_path):
    picture, votes = fer_plus_fixture.pixels("one"), "0,8,0,0,0,0,0,0,1,1"
    faces = [f"3,{picture},Training", f"3,{picture},PublicTest"]
    base.write(tmp_path / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *faces]))
    head = "Usage,Image name," + ",".join(fer_plus.VOTES)
    shifted = [f"{usage},fer.png,{votes}" for usage in ("PublicTest", "PublicTest", "PrivateTest")]
    base.write(tmp_path / "fer2013new.csv", "\n".join([head, *shifted]))
    assert [(uid, reason) for uid, reason, _ in rejects(fer_plus, tmp_path)] == [
        ("fer_plus/train/row-1", "bad_row"),
        ("fer_plus/all/votes-row-3", "bad_row"),
    ]
    base.write(tmp_path / "fer2013new.csv", "\n".join([head, f"Training,fer.png,{votes}"]))
    assert [(uid, reason) for uid, reason, _ in rejects(fer_plus, tmp_path)] == [
        ("fer_plus/val/row-2", "bad_row")
    ]


@pytest.mark.parametrize("boxed", [True, False])
def test_fer_plus_reads_the_folders_that_its_script_makes(tmp_path, boxed):
    fer_plus_fixture.generated(tmp_path, boxed)
    found = records(fer_plus, tmp_path)
    assert {uid: record.media[0].path for uid, record in found.items()} == {
        "fer_plus/train/fer0000000": "FER2013Train/fer0000000.png",
        "fer_plus/val/fer0000000": "FER2013Valid/fer0000000.png",
        "fer_plus/test/fer0000000": "FER2013Test/fer0000000.png",
    }
    assert {record.label for record in found.values()} == {"joy"}
    assert [reason for _, reason, _ in rejects(fer_plus, tmp_path)] == ["source_rule"] * 3
    with pytest.raises(BuildError, match="needs fer2013.csv"):
        read(fer_plus, tmp_path, labels="fer2013")


def test_fer_plus_an_unknown_code_is_an_unknown_label(tmp_path):
    picture = fer_plus_fixture.pixels("one")
    base.write(
        tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n7,{picture},Training\nx,{picture},Training\n"
    )
    found = [reason for _, reason, _ in rejects(fer_plus, tmp_path, labels="fer2013")]
    assert found == ["unknown_label"] * 2


# --- EMOTIC ----------------------------------------------------------------------------------------------------------


def _emotic(root: Path, **splits) -> Path:
    from scipy.io import savemat

    some = emotic_fixture.picture(
        "mscoco/images", "z.jpg", emotic_fixture.person([0.0, 0.0, 9.0, 9.0], ["Fear"])
    )
    content = {split: emotic_fixture.structs(splits.get(split, [some])) for split in ("train", "val", "test")}
    (root / "Annotations").mkdir(parents=True)
    savemat(root / "Annotations/Annotations.mat", content)
    (root / "emotic").mkdir()
    return root


def test_emotic_gives_one_record_per_person_with_the_person_before_the_picture(tmp_path):
    people = [
        emotic_fixture.person([1.0, 2.0, 30.0, 40.0], ["Doubt/Confusion"]),
        emotic_fixture.person([-3.0, 2.0, 30.0, 40.0], ["Happiness", "Affection"]),
    ]
    root = _emotic(tmp_path, train=[emotic_fixture.picture("framesdb/images", "a.jpg", *people)])
    found = records(emotic, root)
    first = found["emotic/train/framesdb/images/a.jpg#1"]
    assert (first.label, first.native_label, first.other_labels) == (
        "doubt or confusion",
        "Doubt/Confusion",
        (),
    )
    path = "emotic/framesdb/images/a.jpg"
    assert first.media == (MediaRef("image", path, crop=Crop(1, 2, 30, 40)), MediaRef("image", path))
    assert first.group_keys == {"picture": "framesdb/images/a.jpg", "origin": "framesdb"}
    second = found["emotic/train/framesdb/images/a.jpg#2"]
    assert {second.label, *second.other_labels} == {"joy", "affection"}
    assert second.media[0].crop == Crop(-3, 2, 30, 40)  # clamped where the picture is opened
    (cut, whole) = first.media
    shown = {view: records(emotic, root, view=view)[first.uid].media for view in ("person", "scene")}
    assert shown == {"person": (cut,), "scene": (whole,)}


def test_emotic_label_is_what_most_annotators_chose_and_the_rest_are_right_too(tmp_path):
    person = emotic_fixture.person(
        [0.0, 0.0, 9.0, 9.0], ["Affection", "Peace"], ["Peace"], ["Yearning", "Peace"]
    )
    root = _emotic(tmp_path, test=[emotic_fixture.picture("ade20k/images", "a.jpg", person)])
    uid = "emotic/test/ade20k/images/a.jpg#1"
    record = records(emotic, root)[uid]
    assert (record.label, record.other_labels) == ("peace", ("affection", "yearning"))
    first = records(emotic, root, label_rule="first")[uid]
    assert (first.label, first.other_labels, first.label_rule) == (
        "affection",
        ("peace", "yearning"),
        "first",
    )


def test_emotic_a_tie_is_drawn_by_the_uid_and_not_by_the_alphabet(tmp_path):
    pictures = [
        emotic_fixture.picture(
            "mscoco/images",
            f"{number}.jpg",
            emotic_fixture.person([0.0, 0.0, 9.0, 9.0], ["Anger", "Yearning"]),
        )
        for number in range(40)
    ]
    root = _emotic(tmp_path, train=pictures)
    found = [record for uid, record in records(emotic, root).items() if uid.startswith("emotic/train")]
    drawn = Counter(record.label for record in found)
    assert set(drawn) == {"anger", "yearning"} and min(drawn.values()) >= 10
    assert found == [
        record for uid, record in records(emotic, root).items() if uid.startswith("emotic/train")
    ]


def test_emotic_a_picture_listed_twice_loses_nobody(tmp_path):
    row = emotic_fixture.picture(
        "mscoco/images", "a.jpg", emotic_fixture.person([0.0, 0.0, 9.0, 9.0], ["Anger"])
    )
    found = records(emotic, _emotic(tmp_path, train=[row, row]))
    assert [uid for uid in found if "/train/" in uid] == [
        "emotic/train/mscoco/images/a.jpg#1",
        "emotic/train/mscoco/images/a.jpg#2",
    ]


def test_emotic_options_are_the_26_categories_as_canonical_emotions(tmp_path):
    record = next(iter(records(emotic, _emotic(tmp_path)).values()))
    assert len(set(record.options)) == 26 and set(record.options) <= labels.EMOTIONS
    with pytest.raises(ValidationError):
        emotic.Options.model_validate({"view": "face"})


def test_emotic_people_without_a_category_leave_by_rule_and_outside_the_budget(tmp_path):
    box = [0.0, 0.0, 9.0, 9.0]
    people = [
        emotic_fixture.person(box),
        emotic_fixture.person(box, []),
        emotic_fixture.person(box, ["Fear"]),
    ]
    people[2]["annotations_categories"] = "Fear"  # not as the set writes it
    root = _emotic(tmp_path, val=[emotic_fixture.picture("mscoco/images", "a.jpg", *people)])
    found = [(uid, reason) for uid, reason, _ in rejects(emotic, root)]
    assert found == [
        ("emotic/val/mscoco/images/a.jpg#1", "source_rule"),
        ("emotic/val/mscoco/images/a.jpg#2", "source_rule"),
        ("emotic/val/mscoco/images/a.jpg#3", "bad_row"),
    ]


def test_emotic_a_box_that_is_not_a_rectangle_is_a_bad_row(tmp_path):
    boxes = (
        [9.0, 0.0, 9.0, 9.0],
        [float("nan"), 0.0, 9.0, 9.0],
        [0.0, 0.0, float("inf"), 9.0],
        [0.0, 0.0, 9.0],
    )
    people = [emotic_fixture.person(box, ["Anger"]) for box in boxes]
    root = _emotic(tmp_path, train=[emotic_fixture.picture("mscoco/images", "a.jpg", *people)])
    assert [reason for _, reason, _ in rejects(emotic, root)] == ["bad_row"] * 4
