"""Sound files alone: 16 kHz mono whatever they were, ranges, limits, and what is no sound."""

from __future__ import annotations

import io
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from dataset_build import audio, media, video
from dataset_build import convert as conversion
from dataset_build.recipe import MediaSettings
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import emoset
from tests.fixtures.emoji_tree import write_clip
from tests.fixtures.sources import base

SETTINGS = MediaSettings(video_frames=2, frame_side_px=32, max_seconds=20, timeout_s=30)
CODECS = {
    "a.wav": ["-c:a", "pcm_s24le"],
    "a.mp3": ["-c:a", "libmp3lame", "-b:a", "128k"],
    "a.flac": [],
    "a.ogg": ["-c:a", "libvorbis"],
    "a.m4a": ["-c:a", "aac"],
}


def ffmpeg(*arguments: str) -> None:
    subprocess.run([video.ffmpeg_binary(), "-y", "-loglevel", "error", *arguments], check=True, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three seconds of stereo at 44.1 kHz: 400 Hz, then 1600 Hz, then 400 Hz again, in every format."""
    root = tmp_path_factory.mktemp("sounds")
    tone = "0.4*sin(2*PI*t*if(between(t\\,1\\,2)\\,1600\\,400))"
    source = f"aevalsrc={tone}|{tone}:s=44100:d=3"
    for name, options in CODECS.items():
        ffmpeg("-f", "lavfi", "-i", source, *options, str(root / name))
    return root


def read(folder: Path, name: str, settings: MediaSettings = SETTINGS, **part: float) -> media.Medium:
    return audio.read_sound(str(folder), MediaRef("audio", name, **part), settings)


def samples(medium: media.Medium) -> np.ndarray:
    with wave.open(io.BytesIO(medium.data[0])) as stream:
        assert (stream.getframerate(), stream.getnchannels(), stream.getsampwidth()) == (16_000, 1, 2)
        return np.frombuffer(stream.readframes(stream.getnframes()), np.int16)


def pitch(values: np.ndarray) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values))))
    return float(np.argmax(spectrum) * 16_000 / len(values))


def reason_of(call) -> str:
    with pytest.raises(media.MediaError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize("name", CODECS)
def test_every_format_becomes_16_khz_mono(folder, name):
    sound = read(folder, name)
    assert (sound.kind, sound.sample_rate, sound.phash) == ("audio", 16_000, "")
    assert sound.duration_s == pytest.approx(3.0, abs=0.08)
    values = samples(sound)
    assert [round(pitch(values[second * 16_000 : (second + 1) * 16_000]), -2) for second in range(3)] == [
        400,
        1600,
        400,
    ]
    assert read(folder, name) == sound


@pytest.mark.parametrize("name", CODECS)
def test_a_range_is_the_part_it_says(folder, name):
    part = read(folder, name, start_s=0.75, end_s=1.25)
    assert part.duration_s == pytest.approx(0.5, abs=0.03)
    values = samples(part)
    assert pitch(values[:3200]) == pytest.approx(400, abs=10)
    assert pitch(values[-3200:]) == pytest.approx(1600, abs=10)
    whole = read(folder, name)
    assert part.source_sha256 == whole.source_sha256
    assert part.identity != whole.identity == whole.source_sha256


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("start", "end"), [(3.5, 4.0), (30.0, None), (1.0, 9.0), (2.0, 1.0), (-1.0, 1.0)])
def test_a_range_that_is_not_in_the_file_is_a_bad_time_range(folder, name, start, end):
    part = {"start_s": start, "end_s": end}
    assert reason_of(lambda: read(folder, name, **part)) == "bad_time_range"


def test_an_end_that_was_rounded_up_is_the_end_of_the_file(folder):
    assert read(folder, "a.wav", start_s=2.0, end_s=3.9).duration_s == pytest.approx(1.0, abs=0.01)


def test_the_sound_of_a_clip_may_be_taken_alone(tmp_path):
    write_clip(tmp_path / "with.mp4", seed="with", frames=24, sound=True)
    write_clip(tmp_path / "without.mp4", seed="without", frames=24)
    assert read(tmp_path, "with.mp4").duration_s == pytest.approx(2.0, abs=0.1)
    assert reason_of(lambda: read(tmp_path, "without.mp4")) == "undecodable"


def test_an_album_cover_is_no_picture_of_the_sound(folder, tmp_path):
    base.picture(tmp_path / "cover.png")
    cover = ["-i", str(folder / "a.m4a"), "-i", str(tmp_path / "cover.png"), "-map", "0", "-map", "1"]
    ffmpeg(*cover, "-c", "copy", "-disposition:v:0", "attached_pic", str(tmp_path / "a.m4a"))
    assert samples(read(tmp_path, "a.m4a")).tolist() == samples(read(folder, "a.m4a")).tolist()


def test_limits_hold_for_sound(folder):
    short = SETTINGS.model_copy(update={"max_seconds": 1})
    for name in CODECS:
        assert reason_of(lambda name=name: read(folder, name, short)) == "too_large"
        assert read(folder, name, short, start_s=1, end_s=1.5).duration_s == pytest.approx(0.5, abs=0.03)
    hasty = SETTINGS.model_copy(update={"timeout_s": 0.001})
    assert reason_of(lambda: read(folder, "a.mp3", hasty)) == "too_large"
    small = SETTINGS.model_copy(update={"max_file_mb": 1})
    with open(folder / "large.wav", "wb") as stream:
        stream.write((folder / "a.wav").read_bytes())
        stream.truncate(3 << 20)
    assert reason_of(lambda: read(folder, "large.wav", small)) == "too_large"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wav", b"", "empty_file"),
        ("a.mp3", b"#EXTM3U\nhttp://127.0.0.1:9/secret.mp3\n", "not_media"),
        ("a.wav", base.GIT_LFS_POINTER, "not_media"),
        ("a.mp3", b"a text, whatever its name says", "not_media"),
        ("a.wav", b"RIFF\x00\x00\x00\x00WAVE" + bytes(2000), "undecodable"),
        ("a.flac", b"fLaC" + bytes(2000), "undecodable"),
        ("a.mp3", b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(5000), "undecodable"),
        ("a.m4a", b"\x00\x00\x00\x18ftypM4A " + bytes(500), "undecodable"),
    ],
)
def test_what_is_no_sound_says_why(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason_of(lambda: read(tmp_path, name)) == reason


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_a_file_that_was_cut_off_is_no_shorter_sound(folder, tmp_path, name):
    whole = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    assert reason_of(lambda: read(tmp_path, name)) == "undecodable"


def test_a_wav_file_that_was_written_to_a_pipe_announces_no_length(folder, tmp_path):
    data = bytearray((folder / "a.wav").read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert read(tmp_path, "a.wav").duration_s == pytest.approx(3.0, abs=0.01)


def record(*refs: MediaRef) -> Record:
    return Record(
        "emoset/train/1",
        "emoset",
        "emo_c",
        "train",
        refs,
        "amusement",
        "amusement",
        "x",
        ("amusement", "awe"),
    )


def test_a_record_may_have_sound_alone_beside_a_clip_or_be_told_to_do_without(folder, tmp_path):
    write_clip(tmp_path / "with.mp4", seed="with", frames=24, sound=True)
    (tmp_path / "a.wav").write_bytes((folder / "a.wav").read_bytes())
    sound, clip = MediaRef("audio", "a.wav"), MediaRef("video", "with.mp4")
    silent = SETTINGS.model_copy(update={"audio": False})

    def kinds(settings: MediaSettings, *refs: MediaRef) -> list[str]:
        kept = conversion.convert(record(*refs), str(tmp_path), emoset, settings)
        assert isinstance(kept, conversion.Converted), kept
        text = kept.sample["messages"][0]["content"]
        assert text.count("<audio>") == sum(medium["kind"] == "audio" for medium in kept.sample["media"])
        return [medium["kind"] for medium in kept.sample["media"]]

    assert kinds(SETTINGS, sound) == ["audio"]
    assert kinds(SETTINGS, clip) == ["video", "audio"]
    assert kinds(silent, clip) == ["video"]
    assert kinds(silent, clip, sound) == ["video"]
    frames = [video.read_clip(str(tmp_path), clip, settings)[0] for settings in (SETTINGS, silent)]
    assert frames[0] == frames[1]
    refused = conversion.convert(record(sound), str(tmp_path), emoset, silent)
    assert isinstance(refused, Reject)
    assert refused.reason == "not_media"
    assert "media.audio = false" in refused.detail
