"""Parts of pictures and clips, and pictures written out as numbers: the right pixels, or a reject that says why."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_build import convert as conversion
from dataset_build import crops, grey_values, media, plan, roots, video
from dataset_build.recipe import MediaSettings
from dataset_build.schema import Crop, MediaRef, Record, Reject
from dataset_build.sources import emoset
from tests.fixtures.sources import base

SETTINGS = MediaSettings(max_side_px=64, frame_side_px=64, video_frames=2)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(width: int = 40, height: int = 30) -> Image.Image:
    """Red, green over blue, white: one colour a quarter."""
    picture = Image.new("RGB", (width, height), "white")
    picture.paste("red", (0, 0, width // 2, height // 2))
    picture.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    picture.paste("blue", (0, height // 2, width // 2, height))
    return picture


def reason_of(call) -> str:
    with pytest.raises(media.MediaError) as caught:
        call()
    return caught.value.reason


def colour(medium: media.Medium, part: int = 0) -> str:
    """The one colour of a stored picture."""
    pixels = np.asarray(media.open_picture(medium.data[part])).reshape(-1, 3).astype(int)
    assert np.ptp(pixels, axis=0).max() < 30, "more than one colour"
    red, green, blue = (pixels.mean(axis=0) > 128).tolist()
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return names[int(red), int(green), int(blue)]


CROPS = [
    (Crop(0, 0, 20, 15), "red", (20, 15)),
    (Crop(20, 0, 40, 15), "green", (20, 15)),
    (Crop(0.5, 0.5, 1, 1, "share"), "white", (20, 15)),
    (Crop(0, 0.5, 0.5, 1, "share"), "blue", (20, 15)),
    (Crop(-100, -3, 20, 15), "red", (20, 15)),  # clamped to the picture
    (Crop(30, 20, 4000, 3000), "white", (10, 10)),
    (Crop(21.2, 2.9, 29.5, 14.1), "green", (9, 13)),  # every pixel that the box touches
    (Crop(0.7, 0.7, 0.8, 0.9, "share"), "white", (4, 6)),
]


@pytest.mark.parametrize(("crop", "expected", "size"), CROPS)
def test_a_crop_takes_the_pixels_it_touches_of_pictures_and_of_every_frame(tmp_path, crop, expected, size):
    quarters().save(tmp_path / "a.png")
    medium = media.read_picture(str(tmp_path), "a.png", SETTINGS, crop)
    assert (colour(medium), (medium.width, medium.height)) == (expected, size)
    assert media.picture_format(medium.data[0]) == "JPEG"
    whole = media.read_picture(str(tmp_path), "a.png", SETTINGS)
    assert medium.source_sha256 == whole.source_sha256
    assert medium.identity != whole.identity

    lossless(tmp_path / "a.mkv", tmp_path / "a.png")
    (clip,) = video.read_clip(str(tmp_path), MediaRef("video", "a.mkv", crop=crop), SETTINGS)
    assert (colour(clip), colour(clip, 1), (clip.width, clip.height)) == (expected, expected, size)
    (uncropped,) = video.read_clip(str(tmp_path), MediaRef("video", "a.mkv"), SETTINGS)
    assert clip.source_sha256 == uncropped.source_sha256
    assert clip.identity != uncropped.identity


def lossless(path: Path, picture: Path) -> None:
    command = [
        video.ffmpeg_binary(),
        "-y",
        "-loglevel",
        "error",
        "-loop",
        "1",
        "-i",
        str(picture),
        "-t",
        "0.4",
    ]
    subprocess.run([*command, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(path)], check=True, timeout=60)


def test_the_two_halves_of_a_split_screen_are_two_clips(tmp_path):
    """IEMOCAP films show both actors side by side; half the width may be an odd number of pixels."""
    picture = Image.new("RGB", (66, 48), "blue")
    picture.paste("red", (0, 0, 33, 48))
    picture.save(tmp_path / "a.png")
    command = [video.ffmpeg_binary(), "-y", "-loglevel", "error", "-loop", "1", "-i", str(tmp_path / "a.png")]
    # h264 with chroma at half the resolution, as films have it
    subprocess.run(
        [*command, "-t", "0.4", "-crf", "1", "-pix_fmt", "yuv420p", str(tmp_path / "a.mp4")], check=True
    )
    halves = [Crop(0, 0, 0.5, 1, "share"), Crop(0.5, 0, 1, 1, "share")]
    left, right = (
        video.read_clip(str(tmp_path), MediaRef("video", "a.mp4", crop=half), SETTINGS)[0] for half in halves
    )
    assert {(clip.width, clip.height) for clip in (left, right)} == {(33, 48)}
    for clip, channel in ((left, 0), (right, 2)):
        pixels = np.asarray(media.open_picture(clip.data[0])).astype(int)
        middle = pixels[:, 3:-3].reshape(-1, 3).mean(axis=0)
        assert middle[channel] > 200 and middle[2 - channel] < 60
    assert left.identity != right.identity


def test_a_crop_of_everything_is_no_crop(tmp_path):
    data = encoded(quarters())
    (tmp_path / "a.png").write_bytes(data)
    for crop in (Crop(0, 0, 40, 30), Crop(-1, -1, 2, 2, "share")):
        medium = media.read_picture(str(tmp_path), "a.png", SETTINGS, crop)
        assert (medium.data, medium.identity) == ((data,), medium.source_sha256)


@pytest.mark.parametrize(
    "crop",
    [
        Crop(40, 0, 60, 10),  # right of the picture
        Crop(0, -9, 40, 0),  # above it
        Crop(10, 10, 10, 20),  # no width
        Crop(20, 20, 10, 10),  # the corners the wrong way round
        Crop(1, 0, 1.2, 1, "share"),
        Crop(float("nan"), 0, 10, 10),
        Crop(0, 0, float("inf"), 10),
    ],
)
def test_a_crop_without_a_pixel_is_a_bad_row(tmp_path, crop):
    quarters().save(tmp_path / "a.png")
    lossless(tmp_path / "a.mkv", tmp_path / "a.png")
    assert reason_of(lambda: media.read_picture(str(tmp_path), "a.png", SETTINGS, crop)) == "bad_row"
    ref = MediaRef("video", "a.mkv", crop=crop)
    assert reason_of(lambda: video.read_clip(str(tmp_path), ref, SETTINGS)) == "bad_row"


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.lists(st.floats(-1e308, 1e308), min_size=4, max_size=4),
    st.sampled_from(["px", "share"]),
)
@settings(max_examples=150, deadline=None)
def test_every_crop_is_a_box_inside_the_picture_or_a_bad_row(width, height, corners, unit):
    try:
        box = crops.box_of(Crop(*corners, unit=unit), width, height, "a.png")
    except media.MediaError as error:
        assert error.reason == "bad_row"
    else:
        if box:
            assert 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height


def test_a_crop_of_a_large_photograph_is_decoded_at_the_scale_it_needs(tmp_path):
    """The box is in pixels of the file, whatever scale the decoder chose; it is 400 pixels wide, so 64 are enough."""
    quarters(1600, 1200).save(tmp_path / "a.jpg", quality=95)
    medium = media.read_picture(str(tmp_path), "a.jpg", SETTINGS, Crop(1000, 100, 1400, 500))
    assert (colour(medium), medium.width, medium.height) == ("green", 64, 64)


def test_a_crop_is_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the lower left quarter comes to the upper left
    (tmp_path / "a.jpg").write_bytes(encoded(quarters(60, 40), "JPEG", exif=exif, quality=95, subsampling=0))
    medium = media.read_picture(str(tmp_path), "a.jpg", SETTINGS, Crop(2, 2, 18, 28))
    assert (colour(medium), medium.width, medium.height) == ("blue", 16, 26)


# --- pictures written out as numbers -----------------------------------------------------------------------------------


def grey(pixels: str, crop: Crop | None = None, settings: MediaSettings = SETTINGS) -> media.Medium:
    return grey_values.read_picture(pixels, "fer2013.csv", settings, crop)


def test_grey_values_become_the_picture_they_spell():
    values = [(x * 5 + y) % 256 for y in range(48) for x in range(48)]
    medium = grey(" ".join(map(str, values)))
    assert media.picture_format(medium.data[0]) == "PNG"
    assert np.asarray(Image.open(io.BytesIO(medium.data[0]))).ravel().tolist() == values
    assert (medium.kind, medium.width, medium.height) == ("image", 48, 48)
    assert medium.identity == medium.source_sha256
    assert medium.identity == hashlib.sha256(b"grey:48:" + bytes(values)).hexdigest()
    assert grey("\n".join(f"{value:03d}" for value in values)).identity == medium.identity  # other spelling
    part = grey(" ".join(map(str, values)), Crop(0, 0, 24, 24))
    assert part.source_sha256 == medium.identity != part.identity
    small = grey(" ".join(map(str, values)), settings=SETTINGS.model_copy(update={"max_side_px": 24}))
    assert (small.width, small.identity) == (24, medium.identity)


@pytest.mark.parametrize(
    "pixels",
    [
        "",
        "   ",
        "1 2 3",
        "0 " * 48 * 47,
        "0 0 0 256",
        "0 0 0 -1",
        "0 0 0 1.0",
        "0 0 0 x",
        "0 0 0 0x1",
        "0 0 0 1_0",
        "0 0 0 ٣",
        "0 0 0 0000",
        "0 " * 513 * 513,
        "9" * 5_000_000,
        "\ud800",
    ],
)
def test_numbers_that_are_no_square_of_grey_values_are_a_bad_row(pixels):
    assert reason_of(lambda: grey(pixels)) == "bad_row"


@given(st.text(st.sampled_from("0123456789 \n\t-+.x٣"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_square_picture_or_a_bad_row(pixels):
    try:
        medium = grey(pixels)
    except media.MediaError as error:
        assert error.reason == "bad_row"
    else:
        assert medium.width == medium.height == len(pixels.split()) ** 0.5


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


def test_a_record_may_hold_its_picture_and_its_table_is_not_opened(tmp_path):
    ref = MediaRef("image", "not there.csv", pixels="0 10 20 30")
    kept = conversion.convert(record(ref), str(tmp_path), emoset, SETTINGS)
    assert isinstance(kept, conversion.Converted)
    assert kept.sample["media"][0]["width"] == 2
    assert roots.fingerprint(media.Folder(str(tmp_path)), ref) == [0, 0]
    wrong = conversion.convert(
        record(MediaRef("video", "a.csv", pixels="0")), str(tmp_path), emoset, SETTINGS
    )
    assert isinstance(wrong, Reject) and wrong.reason == "bad_row"


def test_crops_and_grey_values_travel_through_a_plan_file(tmp_path):
    refs = (
        MediaRef("image", "a.jpg", crop=Crop(1, 2, 3.5, 4, "share")),
        MediaRef("image", "t.csv", pixels="0 1 2 3"),
    )
    base.write(tmp_path / "p.json", json.dumps([plan._plain(record(*refs))]))
    assert plan.read_records(str(tmp_path / "p.json")) == [record(*refs)]


def test_two_faces_of_one_photograph_are_two_pictures(tmp_path):
    quarters().save(tmp_path / "a.png")
    boxes = [Crop(0, 0, 20, 15), Crop(20, 0, 40, 15), Crop(0.0, 0.0, 0.5, 0.5, "share")]
    rows = [
        conversion.convert(record(MediaRef("image", "a.png", crop=box)), str(tmp_path), emoset, SETTINGS)
        for box in boxes
    ]
    first, second, again = (row.hashes["media"] for row in rows)
    assert first != second
    assert first == again  # the same pixels, in whatever unit
