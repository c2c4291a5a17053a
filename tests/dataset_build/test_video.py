"""Clips: evenly spaced frames and sound from one ffmpeg process; playlists, stubs and endless files are refused."""

from __future__ import annotations

import io
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from dataset_build import convert as conversion
from dataset_build import decoder, dedup, index, media, splits, video
from dataset_build.recipe import MediaSettings
from dataset_build.schema import MediaRef, Record
from dataset_build.sources import emoji_clips
from tests.fixtures import index_rows
from tests.fixtures.emoji_tree import write_clip

SETTINGS = MediaSettings(video_frames=4, frame_side_px=32, max_seconds=20, timeout_s=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_clip(root / "plain.mp4", seed="plain", frames=24)
    write_clip(root / "sound.mkv", seed="sound", frames=24, sound=True)
    write_clip(root / "still.mp4", seed="still", frames=1)
    return root


def read(folder: Path, name: str, settings: MediaSettings = SETTINGS, **part) -> list[media.Medium]:
    return video.read_clip(str(folder), MediaRef("video", name, **part), settings)


def reason_of(call) -> str:
    with pytest.raises(media.MediaError) as caught:
        call()
    return caught.value.reason


def test_a_silent_clip_gives_its_frames_in_time_order(folder):
    (clip,) = read(folder, "plain.mp4")
    assert (clip.kind, len(clip.data)) == ("video", 4)
    assert clip.duration_s == pytest.approx(2.0, abs=0.1)
    assert clip.fps == pytest.approx(2.0, abs=0.1)
    pictures = [media.open_picture(frame) for frame in clip.data]
    assert {picture.size for picture in pictures} == {(32, 32)} == {(clip.width, clip.height)}
    assert len(set(clip.data)) == 4  # the discs drift


def test_sound_becomes_16_khz_mono(folder):
    clip, sound = read(folder, "sound.mkv")
    assert (clip.kind, sound.kind, sound.sample_rate) == ("video", "audio", 16_000)
    with wave.open(io.BytesIO(sound.data[0])) as stream:
        assert (stream.getframerate(), stream.getnchannels(), stream.getsampwidth()) == (16_000, 1, 2)
        assert stream.getnframes() == pytest.approx(32_000, rel=0.05)


def test_the_same_clip_gives_the_same_bytes(folder):
    assert read(folder, "plain.mp4") == read(folder, "plain.mp4")


def test_a_part_of_a_clip_is_another_clip(folder):
    whole, part = read(folder, "plain.mp4")[0], read(folder, "plain.mp4", start_s=0.5, end_s=1.0)[0]
    assert part.duration_s == pytest.approx(0.5, abs=0.1)
    assert part.source_sha256 == whole.source_sha256
    assert part.identity != whole.identity


def indexed(folder: Path, uid: str, split: str = "train", **part: float) -> index_rows.Row:
    """The hash columns of a record about a part of plain.mp4, without its perceptual hash."""
    ref = MediaRef("video", "plain.mp4", **part)
    record = Record(uid, "s", "emo_o", None, (ref,), "joy", "joy", "MIT")
    converted = conversion.convert(record, str(folder), emoji_clips, SETTINGS)
    assert isinstance(converted, conversion.Converted)
    row = converted.hashes
    return index_rows.Row(
        uid, sub_task="emo_o", label="joy", split=split, content=row["content"], media=tuple(row["media"])
    )


def test_parts_of_one_file_are_no_twins_and_the_same_part_is(folder):
    first, second = indexed(folder, "a", end_s=1.0), indexed(folder, "b", "test", start_s=1.0)
    again, whole = indexed(folder, "c", start_s=1.0), indexed(folder, "d")
    assert len({first.content, second.content, whole.content}) == 3
    facts = {"s": index.SourceFacts("official", "emoji", "photographs")}

    def removed(*rows: index_rows.Row) -> list[tuple[str, str, bool]]:
        found = index_rows.from_rows(rows, facts)
        places = splits.assign(found, splits.Shares(4, 0.3, 0, seed=1))
        gone = dedup.verdicts(found, places, dedup.Rules()).removed.values()
        return [(found.uid(one.row), found.uid(one.twin), one.across_splits) for one in gone]

    assert removed(first, second, whole) == []
    assert removed(first, second, again, whole) == [("c", "b", True)]
    in_folds = index_rows.from_rows([first, second, again, whole], {"s": facts["s"]._replace(mode="folds")})
    (tie,) = dedup.ties(in_folds, np.arange(4, dtype=np.int32), near_bits=4)
    assert tie.groups == ("b", "c")


def test_a_single_frame_is_repeated(folder):
    (clip,) = read(folder, "still.mp4")
    assert len(clip.data) == 4


@pytest.mark.parametrize(("start", "end"), [(-1.0, 2.0), (1.0, 1.0), (2.0, 1.0)])
def test_impossible_time_ranges_are_refused(folder, start, end):
    assert reason_of(lambda: read(folder, "plain.mp4", start_s=start, end_s=end)) == "bad_time_range"


def test_a_clip_longer_than_the_limit_is_refused(folder):
    short = SETTINGS.model_copy(update={"max_seconds": 0.5})
    assert reason_of(lambda: read(folder, "plain.mp4", short)) == "too_large"
    assert len(read(folder, "plain.mp4", short, start_s=0.2, end_s=0.6)[0].data) == 4


def test_too_many_pixels_a_frame_are_refused(folder):
    small = SETTINGS.model_copy(update={"max_pixels": 256})
    assert reason_of(lambda: read(folder, "plain.mp4", small)) == "too_large"


def test_a_decoder_that_takes_too_long_is_stopped(folder):
    hasty = SETTINGS.model_copy(update={"timeout_s": 0.001})
    assert reason_of(lambda: read(folder, "plain.mp4", hasty)) == "too_large"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.mp4", b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n"),
        ("concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        ("dash.mp4", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>'),
        ("pointer.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ],
)
def test_playlists_and_pointers_never_reach_ffmpeg(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(decoder.subprocess, "Popen", lambda *_: pytest.fail("ffmpeg was started"))
    assert reason_of(lambda: read(tmp_path, name)) == "not_media"


def test_ffmpeg_may_read_local_files_only_with_a_fixed_demuxer():
    line = video.command("/data/concat:a|b.mp4", "mov", decoder.Part(None, 5, False), SETTINGS)
    assert line[line.index("-protocol_whitelist") + 1] == "file,pipe"
    assert line[line.index("-i") + 1] == "file:/data/concat:a|b.mp4"
    assert line.index("-f") < line.index("-i")
    assert line[line.index("-f") + 1] == "mov"


def test_broken_clips_are_undecodable(folder, tmp_path):
    whole = (folder / "plain.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index at the end is gone
    (tmp_path / "header.mp4").write_bytes(whole[:40] + bytes(4000))
    assert reason_of(lambda: read(tmp_path, "cut.mp4")) == "undecodable"
    assert reason_of(lambda: read(tmp_path, "header.mp4")) == "undecodable"


def convert(source: Path, target: Path, *options: str) -> None:
    command = [video.ffmpeg_binary(), "-y", "-loglevel", "error", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("fast.mp4", False),
        ("fast.mp4", True),
        ("clip.mkv", False),
        ("clip.mkv", True),
        ("clip.avi", False),
        ("clip.flv", True),
    ],
)
def test_a_truncated_clip_is_no_shorter_clip(tmp_path, name, sound):
    write_clip(tmp_path / "plain.mp4", seed="plain", frames=48, sound=sound)
    convert(tmp_path / "plain.mp4", tmp_path / name, "-c", "copy", "-movflags", "+faststart")
    assert read(tmp_path, name)[0].duration_s == pytest.approx(4.0, abs=0.2)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    assert reason_of(lambda: read(tmp_path, name)) == "undecodable"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_damage_in_the_middle_is_no_clip(tmp_path, name):
    write_clip(tmp_path / "plain.mp4", seed="plain", frames=48)
    convert(tmp_path / "plain.mp4", tmp_path / name, "-c", "copy")
    data = bytearray((tmp_path / name).read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 400):
        data[place] = (data[place] * 7 + 13) % 256
    (tmp_path / name).write_bytes(data)
    assert reason_of(lambda: read(tmp_path, name)) == "undecodable"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("open.mkv", ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=10:bframes=3:scenecut=0")),
        ("part.mkv", ("-c:v", "mpeg2video", "-r", "25", "-bf", "2", "-g", "10")),
        ("part.ts", ("-c", "copy")),
        ("part.mpg", ("-r", "25")),
        ("part.flv", ("-c", "copy")),
        ("part.avi", ("-c", "copy")),
    ],
)
def test_whole_clips_of_every_kind_and_ranges_of_them_are_good(tmp_path, name, options):
    """A range begins between key frames: what ffmpeg says about the pictures before it is no damage."""
    write_clip(tmp_path / "plain.mp4", seed="plain", frames=48)
    convert(tmp_path / "plain.mp4", tmp_path / name, *options)
    assert read(tmp_path, name)[0].duration_s == pytest.approx(4.0, abs=0.3)
    part = read(tmp_path, name, start_s=1.3, end_s=2.3)[0]
    assert part.duration_s == pytest.approx(1.0, abs=0.1)


def test_output_that_is_too_large_is_not_cut_short(folder, monkeypatch):
    monkeypatch.setattr(video, "_MAX_CHUNK", 100)
    assert reason_of(lambda: read(folder, "plain.mp4")) == "undecodable"


@pytest.mark.parametrize("side", [16, 29, 30, 31, 32])  # rows of pixels are filled up to four bytes
def test_plain_frames_are_the_pixels_that_packed_ones_hold(folder, monkeypatch, side):
    settings = SETTINGS.model_copy(update={"frame_side_px": side})
    plain = read(folder, "sound.mkv", settings)
    monkeypatch.setattr(video, "_PLAIN_BYTES", 0)
    assert read(folder, "sound.mkv", settings) == plain
    assert max(plain[0].width, plain[0].height) == side


def test_a_plain_frame_of_another_size_is_no_picture():
    assert video._picture(bytes(12 * 2), (3, 2), "a.mp4").size == (3, 2)
    with pytest.raises(media.MediaError, match="a frame of 12 bytes among those of 3x2"):
        video._picture(bytes(12), (3, 2), "a.mp4")


def test_frames_are_held_sparsely_however_long_the_stream():
    chunk = b"00dc" + (4).to_bytes(4, "little") + b"abcd"
    decoded = video._collect(io.BytesIO(b"RIFF\0\0\0\0AVI " + chunk * 5000))
    assert decoded.n_frames == 5000
    assert 64 <= len(decoded.frames) <= 256
    picked = video._evenly(video.Decoded([(n, bytes([n])) for n in range(100)], 100, b""), 4)
    assert [frame[0] for frame in picked] == [12, 37, 62, 87]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """Six seconds at 10 frames a second; the grey of frame n is 40 + 3 n. In every container, with few key frames."""
    root = tmp_path_factory.mktemp("numbered")
    for name, options in {
        "a.mkv": ("-c:v", "libx264", "-g", "25", "-bf", "2"),
        "a.mp4": ("-c:v", "libx264", "-g", "60", "-bf", "2"),
        "a.avi": ("-c:v", "mpeg4", "-g", "30"),
        "a.flv": ("-c:v", "flv1", "-g", "15"),
        "a.ts": ("-c:v", "libx264", "-g", "10"),
        "a.webm": ("-c:v", "libvpx", "-g", "20"),
        "a.ogv": ("-c:v", "libtheora", "-g", "10"),
    }.items():
        source = "color=black:size=32x32:rate=10:duration=6,geq=lum='40+N*3':cb=128:cr=128"
        line = [video.ffmpeg_binary(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", source, *options]
        subprocess.run([*line, "-q:v", "2", "-color_range", "pc", str(root / name)], check=True, timeout=60)
    return root


NUMBERED = ("a.mkv", "a.mp4", "a.avi", "a.flv", "a.ts", "a.webm", "a.ogv")


def shades(clip: media.Medium) -> list[float]:
    return [float(np.asarray(media.open_picture(frame)).mean()) for frame in clip.data]


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.0, 3.0), (2.35, 4.75), (3.14, 5.9)])
def test_a_range_is_exact_within_a_frame_in_every_container(numbered, name, start, end):
    whole = shades(read(numbered, name, SETTINGS.model_copy(update={"video_frames": 60}))[0])
    (clip,) = read(numbered, name, start_s=start, end_s=end)
    assert clip.duration_s == pytest.approx(end - start, abs=0.1)
    for part, shade in enumerate(shades(clip)):
        at = start + (end - start) * (2 * part + 1) / 8  # the middle of each quarter
        nearest = min(range(60), key=lambda frame: abs(whole[frame] - shade))
        assert nearest / 10 - 0.1 <= at <= nearest / 10 + 0.2, f"frame {nearest} for {at:.2f} s"


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize(
    ("start", "end"), [(6.5, 7.0), (50.0, None), (5e6, 6e6), (3.0, 9.0), (1.0, float("nan"))]
)
def test_a_range_behind_the_end_is_a_bad_time_range_in_every_container(numbered, name, start, end):
    assert reason_of(lambda: read(numbered, name, start_s=start, end_s=end)) == "bad_time_range"


@pytest.mark.parametrize("name", NUMBERED)
def test_an_end_that_was_rounded_up_is_the_end_of_the_file(numbered, name):
    (clip,) = read(numbered, name, start_s=4.0, end_s=6.8)
    assert clip.duration_s == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(
    ("name", "part"), [("plain.mp4", {}), ("sound.mkv", {}), ("sound.mkv", {"start_s": 0.5})]
)
def test_without_sound_in_the_recipe_the_frames_are_the_same(folder, name, part):
    silent = SETTINGS.model_copy(update={"audio": False})
    assert read(folder, name, silent, **part) == read(folder, name, **part)[:1]
