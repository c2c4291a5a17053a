"""CMU-MOSEI: three packings of the same segments, several emotions at once, splits by video."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, cmu_mosei, hdf5
from tests.fixtures.sources import base as media
from tests.fixtures.sources import cmu_mosei as fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cmu_mosei")
    fixture.build(folder)
    fixture.write_csd(folder / "CMU_MOSEI_Labels.csd", fixture.segments())
    fixture.write_pickle(folder / "Processed/aligned_50.pkl", fixture.segments())
    return folder


def read(root, layout="transcripts", **options):
    found = cmu_mosei.read(str(root), cmu_mosei.Options(layout=layout, **options))
    return {item.uid: item for item in found}


def test_a_segment_is_a_part_of_its_video_with_the_strongest_emotion_as_label(root):
    assert read(root)["cmu_mosei/train/-9abcDEF_12/1"] == Record(
        uid="cmu_mosei/train/-9abcDEF_12/1",
        source="cmu_mosei",
        sub_task="emo_c",
        split="train",
        media=(MediaRef("video", "Raw/Videos/Full/Combined/-9abcDEF_12.mp4", 0.6, 1.1),),
        label="sadness",
        native_label="sad",
        licence_tag="cmu-mosei-research",
        options=("joy", "sadness", "anger", "surprise", "disgust", "fear"),
        other_labels=("surprise",),
        text="segment 1 of ___ -9abcDEF_12",
        label_rule="strongest",
        group_keys={"video": "-9abcDEF_12"},
    )


def test_of_equally_strong_emotions_the_first_column_is_the_label(root):
    record = read(root)["cmu_mosei/train/aB__c/2"]
    assert (record.label, record.other_labels) == ("anger", ("disgust", "fear"))


def test_all_three_packings_tell_the_same(root):
    lines, csd, mmsa = (read(root, layout) for layout in ("transcripts", "csd", "mmsa"))
    for segment in fixture.segments():
        uid = f"cmu_mosei/{fixture.VIDEOS[segment.video]}/{segment.video}/{segment.clip}"
        one, other, third = lines[uid], csd[uid], mmsa[uid]
        if isinstance(one, Reject):
            assert {item.reason for item in (one, other, third)} == {"source_rule"}
            continue
        assert (one.label, one.other_labels, one.text) == (other.label, other.other_labels, other.text)
        assert one.media[0].path == other.media[0].path
        assert other.media[0].start_s == pytest.approx(one.media[0].start_s)
        assert (third.label, third.other_labels) == (one.label, one.other_labels)
        assert third.media == (MediaRef("video", f"Raw/{segment.video}/{segment.clip}.mp4"),)
    assert len(csd) == len(mmsa) == len(fixture.segments())


def test_segments_without_an_emotion_leave_by_rule_or_are_neutral(root):
    uid = "cmu_mosei/train/-9abcDEF_12/2"
    assert read(root)[uid].reason == "source_rule"
    neutral = read(root, without_emotion="neutral")[uid]
    assert (neutral.label, neutral.native_label) == ("neutral", "none")
    assert neutral.options[-1] == "neutral" and neutral.label_rule == "strongest, neutral without any"


def test_segments_without_a_label_and_videos_in_no_list_leave_by_rule(root):
    found = read(root)
    assert "nobody labelled" in found["cmu_mosei/train/aB__c/9"].detail
    assert "in no list" in found["cmu_mosei/all/unsplit/0"].detail
    assert {found[uid].reason for uid in ("cmu_mosei/train/aB__c/9", "cmu_mosei/all/unsplit/0")} == {
        "source_rule"
    }


@pytest.mark.parametrize("kind", ["folds", "pickle"])
def test_the_official_split_can_come_from_fold_files_or_the_pickle(tmp_path, kind):
    fixture.write_csd(tmp_path / "CMU_MOSEI_Labels.csd", fixture.segments())
    if kind == "pickle":
        fixture.write_pickle(tmp_path / "Processed/unaligned_50.pkl", fixture.segments())
    for name, split in (("train", "train"), ("valid", "val"), ("test", "test")) if kind == "folds" else ():
        videos = [video for video, own in fixture.VIDEOS.items() if own == split]
        media.write(tmp_path / f"folds/{name}.txt", "\n".join(videos) + "\n")
    splits = Counter(item.split for item in read(tmp_path, "csd").values())
    assert splits == {"train": 6, "val": 3, "test": 6}


def test_without_a_list_the_official_split_is_an_error_and_shares_are_by_video(tmp_path):
    fixture.write_csd(tmp_path / "CMU_MOSEI_Labels.csd", fixture.segments())
    with pytest.raises(BuildError, match="set the option split: shares"):
        read(tmp_path, "csd")
    found = read(tmp_path, "csd", split="shares")
    assert {item.split for item in found.values()} == {None}
    assert base.split_mode(cmu_mosei, cmu_mosei.Options(split="shares")) == "shares"
    assert cmu_mosei.GROUP_KEY == "video"


def test_a_video_in_two_splits_is_an_error_that_names_it(tmp_path):
    fixture.write_csd(tmp_path / "CMU_MOSEI_Labels.csd", fixture.segments())
    for name in ("train", "test"):
        media.write(tmp_path / f"folds/{name}.txt", "plain\n")
    with pytest.raises(BuildError, match="plain is in test and train"):
        read(tmp_path, "csd")


def test_a_sentiment_table_says_that_it_has_no_emotions(root, tmp_path):
    media.write(tmp_path / "label.csv", "video_id,clip_id,text,label,mode\nplain,0,hm,0.3,train\n")
    media.write(tmp_path / "Raw/Transcript/Segmented/Combined/plain.txt", "plain___0___0.0___0.5___hm\n")
    with pytest.raises(BuildError, match="column happy missing.*layout: csd"):
        read(tmp_path)


@given(
    video=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    clip=st.integers(0, 999),
    start=st.floats(0, 9999),
    text=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1),
)
def test_any_id_and_text_survive_a_transcript_line(video, clip, start, text):
    line = f"{video}___{clip}___{start}___{start + 1}___{text}"
    parsed = cmu_mosei.parse(line, video)
    assert parsed == (str(clip), start, start + 1, text)


@given(st.text(max_size=60))
def test_any_line_is_parsed_or_not(line):
    for text in (line, f"v___{line}"):
        parsed = cmu_mosei.parse(text, "v")
        assert parsed is None or abs(parsed.start_s) < float("inf")


# --- the HDF5 reader -------------------------------------------------------------------------------------------------


def damaged(tmp_path, change) -> str:
    import h5py

    fixture.write_csd(tmp_path / "x.csd", fixture.segments())
    with h5py.File(tmp_path / "x.csd", "r+") as file:
        change(file["All Labels/data"], h5py)
    return str(tmp_path)


def replace(videos, name, data) -> None:
    del videos[name]
    videos[name] = data


CHANGES = {
    "a link to another file": lambda videos, h5py: videos.__setitem__(
        "y", h5py.ExternalLink("/etc/passwd", "/")
    ),
    "a link to itself": lambda videos, h5py: videos.__setitem__("y", h5py.SoftLink("/All Labels/data")),
    "text instead of numbers": lambda videos, h5py: replace(videos, "plain/features", ["a", "b", "c"]),
    "too few columns": lambda videos, h5py: replace(videos, "plain/features", [[1.0, 2.0]] * 3),
    "more intervals than features": lambda videos, h5py: replace(videos, "plain/intervals", [[0.0, 1.0]] * 4),
    "data of another file": lambda videos, h5py: (
        videos.__delitem__("plain/intervals"),
        videos.create_dataset("plain/intervals", (3, 2), "f8", external=[("/etc/passwd", 0, 48)]),
    ),
    "no intervals": lambda videos, h5py: videos.__delitem__("plain/intervals"),
    "a million rows that take no space": lambda videos, h5py: (
        videos.__delitem__("plain/intervals"),
        videos.create_dataset("plain/intervals", (10**12, 2), "f8", chunks=(1024, 2)),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_hostile_sequence_is_an_error_that_names_the_file(tmp_path, change):
    with pytest.raises(BuildError, match=r"x\.csd: not a computational sequence"):
        hdf5.sequence(damaged(tmp_path, change), "x.csd", 7)


def test_damaged_sequences_end_as_numbers_or_a_clear_error(tmp_path):
    fixture.write_csd(tmp_path / "x.csd", fixture.segments())
    whole = (tmp_path / "x.csd").read_bytes()
    draw = random.Random(3)
    errors = 0
    for _ in range(5):
        data = bytearray(whole)
        for _ in range(20):
            data[draw.randrange(len(data) // 4)] = draw.randrange(256)
        (tmp_path / "y.csd").write_bytes(data[: draw.choice([len(data), len(data) // 2])])
        try:
            hdf5.sequence(str(tmp_path), "y.csd", 7)
        except BuildError:
            errors += 1
    assert errors >= 2
    assert len(hdf5.sequence(str(tmp_path), "x.csd", 7)) == len(fixture.VIDEOS)


def test_a_crash_of_the_library_is_an_error_of_its_file(tmp_path, monkeypatch):
    crash = media.write(tmp_path / "crash.py", "import os, sys\nsys.stdin.buffer.read()\nos.abort()\n")
    media.write(tmp_path / "x.csd", b"x")
    monkeypatch.setattr(hdf5, "__file__", str(crash))
    with pytest.raises(BuildError, match=r"x\.csd: .*the HDF5 library ended with -6"):
        hdf5.sequence(str(tmp_path), "x.csd", 7)
