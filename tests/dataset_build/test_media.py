"""Pictures from outside: hostile paths and bytes become MediaErrors with the right reason; good ones keep their bytes."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from dataset_build import cards, media
from dataset_build.recipe import MediaSettings

SETTINGS = MediaSettings(max_side_px=64, max_pixels=200_000)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def read(
    tmp_path: Path, data: bytes, name: str = "a.png", settings: MediaSettings = SETTINGS
) -> media.Medium:
    (tmp_path / name).write_bytes(data)
    return media.read_picture(str(tmp_path), name, settings)


def reason_of(call) -> str:
    with pytest.raises(media.MediaError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "a/../../secret.png", "/etc/passwd", "..\\secret.png", "\\\\host\\x.png", "a\x00.png"],
)
def test_paths_that_leave_the_root_are_refused(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encoded(gradient(), "PNG"))
    root = tmp_path / "root"
    root.mkdir()
    assert reason_of(lambda: media.resolve(str(root), path)) == "path_outside_root"


@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*"]
)
def test_what_is_said_of_a_broken_picture_depends_on_its_bytes_alone(tmp_path, head):
    """Rejects are part of a build's digest: no memory address, no folder."""
    texts = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        with pytest.raises(media.MediaError) as caught:
            read(tmp_path / folder, head + b"\xff" * 40)
        texts.append(str(caught.value))
        assert "0x" not in texts[-1] and str(tmp_path) not in texts[-1]
    assert texts[0] == texts[1]


def test_what_is_said_of_a_link_does_not_depend_on_where_the_root_is(tmp_path):
    texts = []
    for folder in ("one", "another"):
        root = tmp_path / folder / "root"
        root.mkdir(parents=True)
        (tmp_path / folder / "secret.png").write_bytes(encoded(gradient(), "PNG"))
        os.symlink("../secret.png", root / "outside.png")
        with pytest.raises(media.MediaError, match="outside.png: a link leads out") as caught:
            media.resolve(str(root), "outside.png")
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_links_are_followed_inside_the_root_only(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(gradient(), "PNG"))
    (root / "real.png").write_bytes(encoded(gradient(), "PNG"))
    os.symlink(root / "real.png", root / "inside.png")
    os.symlink(tmp_path / "secret.png", root / "outside.png")
    os.symlink(tmp_path, root / "folder")
    assert media.resolve(str(root), "inside.png").endswith("real.png")
    assert reason_of(lambda: media.resolve(str(root), "outside.png")) == "path_outside_root"
    assert reason_of(lambda: media.resolve(str(root), "folder/secret.png")) == "path_outside_root"


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A folder with links of every kind, itself behind one."""
    top = tmp_path_factory.mktemp("linked")
    real = top / "real"
    (real / "a" / "b").mkdir(parents=True)
    (top / "real-too").mkdir()
    for file in (real / "f", real / "a" / "f", real / "a" / "b" / "f", top / "f", top / "real-too" / "f"):
        file.touch()
    for name, target in {
        "in": "a",
        "out": "..",
        "beside": "../real-too",
        "loop": "loop",
        "deep": "deep/..",
        "gone": "nowhere",
        "fin": "f",
        "fout": "../f",
    }.items():
        os.symlink(target, real / name)
    os.symlink("../..", real / "a" / "up")
    os.symlink("../b", real / "a" / "b" / "in")
    os.mkfifo(real / "a" / "fifo")
    os.symlink(real, top / "root")
    return str(top / "root")


_NAMES = [
    "",
    ".",
    "a",
    "b",
    "f",
    "in",
    "out",
    "up",
    "beside",
    "loop",
    "deep",
    "gone",
    "fin",
    "fout",
    "fifo",
    "x" * 300,
]


@given(paths=st.lists(st.lists(st.sampled_from(_NAMES), max_size=5).map("/".join), min_size=1, max_size=8))
@example(paths=["in/f", "in/b/f", "a/b/in/f", "deep/in/f"])
@example(paths=["out/f", "beside/f", "a/up/f", "in/up/f", "deep/out/f", "deep/fout"])
@example(
    paths=[
        "f/",
        "f/.",
        "a/./f",
        "a//f",
        "f/f",
        "",
        ".",
        "a",
        "a/",
        "a/fifo",
        "fin",
        "fout",
        "gone",
        "gone/f",
        "loop/f",
    ]
)
@settings(deadline=None, max_examples=200)
def test_a_folder_that_remembers_says_of_every_path_what_the_file_system_says(linked, paths):
    def said(path):
        try:
            media.check_path(path)
        except media.MediaError as error:
            return error.reason
        root, full = os.path.realpath(linked), os.path.normpath(os.path.join(linked, path))
        if not f"{os.path.realpath(full)}/".startswith(f"{root}/"):
            return "path_outside_root"
        try:
            full = os.path.realpath(full, strict=True)
        except OSError:
            return "missing_media"
        return full if os.path.isfile(full) else "not_media"

    def found(path):
        try:
            return folder.file(path)
        except media.MediaError as error:
            return error.reason

    folder = media.Folder(linked)
    assert [found(path) for path in paths * 2] == [said(path) for path in paths * 2]


def test_a_loop_of_links_leads_nowhere(linked):
    """`os.path.realpath` gives up at it and takes the rest of the path by its spelling."""
    assert os.path.realpath(f"{linked}/deep/out/f") == f"{os.path.realpath(linked)}/out/f"
    assert reason_of(lambda: media.resolve(linked, "deep/out/f")) == "missing_media"


def test_a_folder_that_was_not_there_is_looked_up_again(tmp_path):
    (tmp_path / "f").touch()
    (tmp_path / "root").mkdir()
    folder = media.Folder(str(tmp_path / "root"))
    assert reason_of(lambda: folder.file("late/f")) == "missing_media"
    (tmp_path / "root" / "late").symlink_to("..")
    assert reason_of(lambda: folder.file("late/f")) == "path_outside_root"


def test_the_file_system_is_asked_once_for_a_file_in_a_known_folder(tmp_path, monkeypatch):
    asked = []

    def counting(real):
        return lambda path, **options: (asked.append(str(path)), real(path, **options))[1]

    for place in "abc":
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").touch()
        (tmp_path / place / "2.png").touch()
    monkeypatch.setattr(media, "_FOLDERS_KEPT", 2)
    folder = media.Folder(str(tmp_path))
    for path in ("a/1.png", "b/1.png", "c/1.png"):
        folder.file(path)
    modified = os.stat(tmp_path / "c/2.png").st_mtime_ns
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counting(getattr(os, name)))
    assert media.fingerprint(folder, "c/2.png") == [0, modified]
    assert asked == [str(tmp_path / "c/2.png")]
    folder.file("a/2.png")  # of more folders than are kept the first is forgotten
    assert len(asked) > 2


def test_a_file_server_that_does_not_answer_is_no_missing_file(tmp_path, monkeypatch):
    """A reject would be kept with its shard after the server is back."""

    def lstat(path, **_options):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    (tmp_path / "a.png").touch()
    folder = media.Folder(str(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(os, "lstat", lstat)
        for ask in (
            lambda: folder.file("a.png"),
            lambda: media.fingerprint(folder, "a.png"),
            lambda: folder.file("b/a.png"),
            lambda: media.Folder(str(tmp_path)),
        ):
            with pytest.raises(TimeoutError):
                ask()
    assert folder.file("a.png") == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"this is a text file, whatever its name says\n", "not_media"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not_media"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_media"),
        (encoded(gradient(), "PNG")[:60], "undecodable"),
        (encoded(gradient(60, 60), "JPEG")[:400], "undecodable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "undecodable"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 \x00\x00\x00\x00", "undecodable"),
    ],
)
def test_bytes_that_are_no_picture_say_why(tmp_path, data, reason):
    assert reason_of(lambda: read(tmp_path, data)) == reason


def test_missing_files_and_folders_say_why(tmp_path):
    assert reason_of(lambda: media.read_picture(str(tmp_path), "gone.png", SETTINGS)) == "missing_media"
    assert reason_of(lambda: media.read_picture(str(tmp_path), ".", SETTINGS)) == "not_media"


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(500, 401), (100_000, 100_000)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, size):
    assert reason_of(lambda: read(tmp_path, bomb(*size))) == "too_large"
    assert reason_of(lambda: media.open_picture(bomb(*size), max_pixels=200_000)) == "too_large"


def test_too_many_bytes_are_refused_before_reading(tmp_path):
    with open(tmp_path / "a.png", "wb") as stream:
        stream.write(encoded(gradient(), "PNG"))
        stream.truncate(3 << 20)
    settings = SETTINGS.model_copy(update={"max_file_mb": 2})
    assert reason_of(lambda: media.read_picture(str(tmp_path), "a.png", settings)) == "too_large"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGBA"), ("PNG", "L")],
)
def test_a_picture_within_the_limits_keeps_its_bytes(tmp_path, kind, mode):
    data = encoded(gradient().convert(mode), kind)
    medium = read(tmp_path, data)
    assert medium.data == (data,)
    assert (medium.width, medium.height) == media.open_picture(medium.data[0]).size == (40, 30)
    assert len(medium.phash) == 16


def test_transparency_is_composited_on_white():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    for data in (
        encoded(picture, "PNG"),
        encoded(picture, "WEBP", lossless=True),
        encoded(palette, "PNG", transparency=0),
    ):
        assert media.open_picture(data).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_larger_pictures_are_scaled_down_and_stored_as_jpeg(tmp_path, kind):
    medium = read(tmp_path, encoded(gradient(300, 150), kind))
    assert (medium.width, medium.height) == (64, 32) == media.open_picture(medium.data[0]).size
    assert media.picture_format(medium.data[0]) == "JPEG"


def test_a_turned_photograph_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    medium = read(tmp_path, encoded(gradient(40, 30), "JPEG", exif=exif))
    assert (medium.width, medium.height) == (30, 40) == media.open_picture(medium.data[0]).size


def test_an_animation_given_as_a_picture_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    medium = read(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    red, _, blue = media.open_picture(medium.data[0]).getpixel((10, 10))
    assert red > 200 > 100 > blue


def test_bytes_that_hide_in_a_small_picture_are_not_kept(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("payload", os.urandom(150_000).hex())
    data = encoded(gradient(), "PNG", pnginfo=info)
    assert len(read(tmp_path, data).data[0]) < len(data) / 10


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    picture = Image.new("I;16", (8, 8), 32768)
    assert media.open_picture(read(tmp_path, encoded(picture, "PNG")).data[0]).getpixel((4, 4))[
        0
    ] == pytest.approx(127, abs=1)


@pytest.mark.parametrize("hidden", [7, 40_000])
def test_sixteen_bit_grey_may_have_one_transparent_grey(hidden):
    picture = Image.new("I;16", (8, 8), 32_768)
    picture.putpixel((0, 0), hidden)
    opened = media.open_picture(encoded(picture, "PNG", transparency=hidden))
    assert (opened.getpixel((0, 0)), opened.getpixel((4, 4))) == ((255, 255, 255), (127, 127, 127))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("draft_px", [None, 100])
def test_stored_bytes_are_opened_upright_at_every_scale(kind, draft_px):
    """Pictures of other makers come to `open_picture` directly, with their EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (800, 600), "white")
    picture.paste("black", (0, 0, 400, 600))
    opened = media.open_picture(encoded(picture, kind, exif=exif), draft_px=draft_px)
    assert opened.width * 4 == opened.height * 3  # 600x800 or a scale of it
    top, bottom = (opened.getpixel((opened.width // 2, opened.height * part // 8)) for part in (1, 7))
    assert max(top) < 30 and min(bottom) > 225


@pytest.mark.parametrize("orientation", range(10))
def test_orientations_are_those_of_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.effect_noise((40, 30), 90).convert("RGB"), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert media.open_picture(data).tobytes() == expected.tobytes()


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 1000))
@settings(max_examples=25, deadline=None)
def test_a_draft_never_falls_below_the_size_asked_for(width, height, draft_px):
    full = Image.new("RGB", (width, height), "teal")
    opened = media.open_picture(encoded(full, "JPEG"), draft_px=draft_px)
    assert opened.width >= min(width, draft_px) and opened.height >= min(height, draft_px)
    if min(width, height) >= 2 * draft_px:
        assert opened.width < width and opened.height < height


def test_a_draft_does_not_get_around_the_pixel_limit():
    data = encoded(gradient(800, 600), "JPEG")
    assert media.open_picture(data, max_pixels=480_000, draft_px=10).width < 800
    assert reason_of(lambda: media.open_picture(data, max_pixels=479_999, draft_px=10)) == "too_large"


@given(
    place=st.floats(0, 1),
    how=st.sampled_from(("cut", "bit", "noise")),
    noise=st.binary(min_size=50, max_size=50),
)
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_checking_a_stored_picture_finds_what_opening_it_would(kind, place, how, noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = bytearray(encoded(gradient(80, 52), kind, exif=exif))
    assert media.stored_size(bytes(whole)) == media.open_picture(bytes(whole)).size == (52, 80)
    at = int(place * (len(whole) - 1))
    if how == "cut":
        del whole[at:]
    elif how == "bit":
        whole[at] ^= 1
    else:
        whole[at : at + len(noise)] = noise

    def said(check):
        try:
            return check(bytes(whole))
        except media.MediaError as error:
            return error.reason

    assert said(media.stored_size) == said(lambda data: media.open_picture(data).size)


@pytest.mark.parametrize("kind", ["ICO", "PPM", "PCX"])
def test_other_formats_are_not_opened(kind):
    assert reason_of(lambda: media.open_picture(encoded(gradient(), kind))) == "not_media"


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_a_media_error_at_most(noise, kind):
    data = encoded(gradient(), kind, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + noise)
    try:
        assert media.open_picture(data, draft_px=8).mode == "RGB"
    except media.MediaError as error:
        assert error.reason == "undecodable"


def test_identity_is_the_file_and_fingerprint_sees_its_changes(tmp_path):
    medium = read(tmp_path, encoded(gradient(), "PNG"))
    assert medium.identity == medium.source_sha256
    before = media.fingerprint(str(tmp_path), "a.png")
    read(tmp_path, encoded(gradient(41, 30), "PNG"))
    assert media.fingerprint(str(tmp_path), "a.png") != before
    assert media.fingerprint(str(tmp_path), "../a.png") == "path_outside_root"


def test_cards_are_legible_deterministic_and_bounded():
    card = cards.render("Escalators don't break down... they just turn into stairs.")
    assert card == cards.render("Escalators don't break down... they just turn into stairs.")
    picture = media.open_picture(card)
    assert picture.size == (cards.SIDE_PX, cards.SIDE_PX)
    black = sum(picture.convert("L").histogram()[:64])
    assert 500 < black < 20_000
    border = [picture.getpixel((x, y)) for x in (0, 255) for y in range(256)]
    assert set(border) == {(255, 255, 255)}
    assert reason_of(lambda: cards.render("word " * 400)) == "too_large"
    assert reason_of(lambda: cards.render("x" * 80)) == "too_large"
    assert reason_of(lambda: cards.render("  ")) == "bad_row"
