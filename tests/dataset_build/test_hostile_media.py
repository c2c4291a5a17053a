"""Files made to harm: each ends as a reject with its reason, nothing outside the root is read, nobody is called."""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from dataset_build import convert as conversion
from dataset_build import decoder, media, video
from dataset_build.recipe import MediaSettings
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import emoset
from tests.fixtures.emoji_tree import write_clip

SETTINGS = MediaSettings(video_frames=2, frame_side_px=32, max_seconds=20, timeout_s=20)


class Listener:
    """A TCP listener on loopback that notes whether anybody ever came."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    with socket.create_connection(("127.0.0.1", found.port)):
        pass
    deadline = time.monotonic() + 5
    while not found.visits and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.visits == 1, "the listener notices visits"
    found.visits = 0
    yield found
    found.socket.close()


def reject_of(root: Path, kind: str, path: str, settings: MediaSettings = SETTINGS) -> Reject:
    """The reject of a record with this medium, through the whole conversion of a row."""
    refs = (MediaRef(kind, path),)
    record = Record(
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
    found = conversion.convert(record, str(root), emoset, settings)
    assert isinstance(found, Reject), "the file was taken"
    return found


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{file}'\nfile '{url}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
    "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "pls": "[playlist]\nFile1={url}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "ram": "{url}\n",
    "xspf": '<?xml version="1.0"?><playlist><trackList><track><location>{url}</location></track></trackList></playlist>',
    "rtsp": "[Reference]\nRef1={url}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
}


@pytest.mark.parametrize("kind", ["video", "audio", "image"])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_by_any_name_is_no_media_and_calls_nobody(tmp_path, listener, name, kind):
    secret = tmp_path / "secret.mp4"
    write_clip(secret, seed="secret", frames=4)
    root = tmp_path / "root"
    root.mkdir()
    url = f"http://127.0.0.1:{listener.port}/clip.ts"
    text = PLAYLISTS[name].format(url=url, file=secret, port=listener.port)
    for path in (f"a.{name}", "a.mp4", "a.mp3", "a.png"):
        (root / path).write_text(text)
        assert reject_of(root, kind, path).reason == "not_media"
    assert listener.visits == 0


def nut(text: bytes) -> bytes:
    return b"nut/multimedia container\x00" + text


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42", id="mp4"),
        pytest.param(b"\x1a\x45\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f", id="matroska"),
        pytest.param(b"RIFF\x00\x10\x00\x00AVI LIST", id="avi"),
        pytest.param(b"OggS\x00\x02" + bytes(20), id="ogg"),
        pytest.param(b"FLV\x01\x05\x00\x00\x00\x09", id="flv"),
        pytest.param(b"\x00\x00\x01\xba" + bytes(10), id="mpeg"),
        pytest.param(b"\x47" + (bytes(187) + b"\x47") * 3, id="mpegts"),
        pytest.param(b"RIFF\x00\x10\x00\x00WAVEfmt ", id="wav"),
        pytest.param(b"fLaC\x00\x00\x00\x22", id="flac"),
        pytest.param(b"ID3\x04\x00\x00\x00\x00\x00\x00", id="mp3"),
    ],
)
def test_a_playlist_behind_the_first_bytes_of_a_container_calls_nobody(tmp_path, listener, start):
    """The demuxer is the one of the first bytes: ffmpeg never looks for another."""
    url = f"http://127.0.0.1:{listener.port}/clip.ts"
    for text in PLAYLISTS.values():
        content = text.format(url=url, file="/etc/passwd", port=listener.port).encode()
        (tmp_path / "a.mp4").write_bytes(start + b"\n" + content * 40)
        for kind in ("video", "audio"):
            found = reject_of(tmp_path, kind, "a.mp4")
            assert found.reason in ("undecodable", "not_media")
            assert "root:" not in found.detail
    (tmp_path / "a.mp4").write_bytes(nut(PLAYLISTS["m3u8"].format(url=url).encode()))
    assert reject_of(tmp_path, "video", "a.mp4").reason == "not_media"
    assert listener.visits == 0


def test_what_would_open_the_url_is_held_back_by_us(tmp_path, listener):
    """The same ffmpeg without our two rules calls the listener: the tests above can fail."""
    (tmp_path / "a.m3u8").write_text(
        PLAYLISTS["m3u8"].format(url=f"http://127.0.0.1:{listener.port}/clip.ts", file="", port=0)
    )
    line = [decoder.ffmpeg_binary(), "-loglevel", "quiet", "-nostdin", "-protocol_whitelist", "file,http,tcp"]
    subprocess.run([*line, "-i", str(tmp_path / "a.m3u8"), "-f", "null", "-"], timeout=60, check=False)
    assert listener.visits >= 1


def test_a_name_that_looks_like_a_protocol_is_a_name(tmp_path, listener):
    names = [
        "concat:secret.mp4|b.mp4",
        f"http:127.0.0.1:{listener.port}",
        "data:video;base64,AAAA",
        "-i",
        "%d.mp4",
    ]
    for name in names:
        assert reject_of(tmp_path, "video", name).reason == "missing_media"
        write_clip(tmp_path / "plain.mp4", seed=name, frames=4)
        (tmp_path / "plain.mp4").rename(tmp_path / name)
        assert len(video.read_clip(str(tmp_path), MediaRef("video", name), SETTINGS)[0].data) == 2
    assert listener.visits == 0


def test_mp4_files_that_refer_to_other_files_do_not_open_them(tmp_path, listener, monkeypatch):
    """A data reference (`dref`) may say that the samples lie in another file: as written, they are looked for here."""
    secret = tmp_path / "secret.mp4"
    write_clip(secret, seed="secret", frames=8)
    data = secret.read_bytes()
    place = data.index(b"url \x00\x00\x00\x01") - 4
    reference = f"{secret}\x00".encode()
    entry = struct.pack(">I", 12 + len(reference)) + b"url \x00\x00\x00\x00" + reference
    grown = len(entry) - 12
    out = bytearray(data)
    out[place : place + 12] = entry
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = out.index(name) - 4
        out[at : at + 4] = struct.pack(">I", struct.unpack(">I", out[at : at + 4])[0] + grown)
    root = tmp_path / "root"
    root.mkdir()
    media_at = out.index(b"mdat") + 4
    size = struct.unpack(">I", out[media_at - 8 : media_at - 4])[0] - 8
    out[media_at : media_at + size] = bytes(size)  # nothing of its own
    (root / "a.mp4").write_bytes(out)
    assert reject_of(root, "video", "a.mp4").reason == "undecodable"


def test_ffmpeg_is_told_no_secret_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    write_clip(tmp_path / "a.mp4", seed="a", frames=4)
    seen = {}
    start = subprocess.Popen

    def watched(*arguments: object, **options: object) -> subprocess.Popen:
        seen.update(options)
        return start(*arguments, **options)

    monkeypatch.setattr(decoder.subprocess, "Popen", watched)
    video.read_clip(str(tmp_path), MediaRef("video", "a.mp4"), SETTINGS)
    assert "AWS_SECRET_ACCESS_KEY" not in seen["env"]


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_no_path_and_no_link_leads_out_of_the_root(tmp_path, kind):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    write_clip(tmp_path / "secret.mp4", seed="secret", frames=4, sound=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    os.symlink(tmp_path, root / "up")
    for name in ("secret.mp4", "secret.png"):
        os.symlink(tmp_path / name, root / name)
        os.symlink(f"../../{name}", root / "sub" / name)
        for path in (
            f"../{name}",
            f"sub/../../{name}",
            f"..\\{name}",
            str(tmp_path / name),
            f"up/{name}",
            name,
            f"sub/{name}",
            f"\\\\host\\{name}",
        ):
            assert reject_of(root, kind, path).reason == "path_outside_root", path


# --- bombs ---------------------------------------------------------------------------------------------------------------


def peak_of(call) -> tuple[object, int]:
    """What a call gives and how many bytes Python and Pillow held at most meanwhile, in a process of its own."""
    import multiprocessing
    import resource

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        theirs.send((call(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))

    process = context.Process(target=child)
    process.start()
    assert ours.poll(60), "no answer in a minute"
    result = ours.recv()
    process.join(10)
    return result


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *more: bytes, rows: bytes = bytes(4000)) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def packed(megabytes: int) -> bytes:
    squeeze = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    return b"".join(squeeze.compress(zeros) for _ in range(megabytes)) + squeeze.flush()


def animation(kind: str, frames: int, size: tuple[int, int]) -> bytes:
    pictures = [Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 9)) for number in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


BOMBS = {
    "many pixels": (lambda: png(100_000, 100_000), "too_large"),
    "just too many": (lambda: png(7072, 7071), "too_large"),
    "a profile of 300 MB": (
        lambda: png(8, 8, chunk(b"iCCP", b"x\x00\x00" + packed(300))),
        "too_large",
    ),
    "a text of 300 MB": (lambda: png(8, 8, chunk(b"zTXt", b"x\x00\x00" + packed(300))), "too_large"),
    "an international text of 300 MB": (
        lambda: png(8, 8, chunk(b"iTXt", b"x\x00\x01\x00\x00\x00" + packed(300))),
        "too_large",
    ),
    "a webp canvas of 268 megapixels": (
        lambda: (
            b"RIFF\x32\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00\xff\x3f\x00\xff\x3f\x00"
            + bytes(40)
        ),
        "too_large",
    ),
    "a lossless webp of 268 megapixels": (
        lambda: b"RIFF\x32\x00\x00\x00WEBPVP8L\x20\x00\x00\x00\x2f\xff\xff\xff\x0f" + bytes(40),
        "too_large",
    ),
    "a gif of 4 gigapixels": (
        lambda: (
            b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02\x44\x01\x00;"
        ),
        "too_large",
    ),
    "a bmp of 4 gigapixels": (
        lambda: (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        "too_large",
    ),
    "pixels that unpack to too much": (lambda: png(64, 64, rows=b""), "undecodable"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_reject_that_took_little_memory(tmp_path, name):
    make, reason = BOMBS[name]
    (tmp_path / "a.png").write_bytes(make())
    found, peak = peak_of(lambda: reject_of(tmp_path, "image", "a.png"))
    assert isinstance(found, Reject)
    assert found.reason == reason, found.detail
    assert peak < 200 << 20


def test_a_profile_inside_a_small_picture_is_not_kept(tmp_path):
    """A megabyte that travels with a picture of eight pixels is not this picture: it is stored without."""
    info = PngImagePlugin.PngInfo()
    info.add_text("payload", os.urandom(400_000).hex())
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "a.png", pnginfo=info, icc_profile=os.urandom(300_000))
    medium = media.read_picture(str(tmp_path), "a.png", SETTINGS)
    assert len(medium.data[0]) < 2000


@pytest.mark.parametrize(("kind", "frames"), [("GIF", 3000), ("WEBP", 3000), ("PNG", 3000)])
def test_an_animation_costs_no_more_than_its_first_frame(tmp_path, kind, frames):
    (tmp_path / "a.png").write_bytes(animation(kind, frames, (32, 32)))
    (tmp_path / "b.png").write_bytes(animation(kind, 2, (32, 32)))
    one = media.read_picture(str(tmp_path), "b.png", SETTINGS)  # what is imported on the way is paid here
    began = time.process_time()
    many = media.read_picture(str(tmp_path), "a.png", SETTINGS)
    assert time.process_time() - began < 1.0
    assert many.data == one.data
    assert len(many.data[0]) < 2000


def boxes_with(data: bytes, name: bytes) -> Iterator[int]:
    """The places where the content of a box begins."""
    place = data.find(name)
    while place >= 0:
        yield place + 4
        place = data.find(name, place + 4)


def ten_hours(data: bytes, frames: bool) -> bytes:
    """An mp4 whose headers declare 36,000 s; with `frames`, its last picture is shown that long, too."""
    out = bytearray(data)
    for name in (b"mvhd", b"mdhd"):
        for place in boxes_with(data, name):
            (scale,) = struct.unpack(">I", out[place + 12 : place + 16])
            out[place + 16 : place + 20] = struct.pack(">I", 36_000 * scale)
    (movie_scale,) = struct.unpack(">I", out[data.index(b"mvhd") + 16 :][:4])
    for place in boxes_with(data, b"tkhd"):
        out[place + 20 : place + 24] = struct.pack(">I", 36_000 * movie_scale)
    for place in boxes_with(data, b"elst"):
        out[place + 8 : place + 12] = struct.pack(">I", 36_000 * movie_scale)
    if frames:
        (scale,) = struct.unpack(">I", out[data.index(b"mdhd") + 16 :][:4])
        place = data.index(b"stts") + 4
        (entries,) = struct.unpack(">I", out[place + 4 : place + 8])
        last = place + 8 + 8 * (entries - 1) + 4
        out[last : last + 4] = struct.pack(">I", 3_600 * scale)
    return bytes(out)


@pytest.mark.parametrize("frames", [False, True])
def test_a_header_of_ten_hours_is_refused_at_once(tmp_path, frames):
    write_clip(tmp_path / "plain.mp4", seed="plain", frames=12)
    (tmp_path / "a.mp4").write_bytes(ten_hours((tmp_path / "plain.mp4").read_bytes(), frames))
    began = time.monotonic()
    found = reject_of(tmp_path, "video", "a.mp4")
    assert found.reason == "too_large"
    assert time.monotonic() - began < 5


def test_a_range_of_a_ten_hour_film_is_bounded_too(tmp_path):
    """A range says that the file may be long; its own length and the time limit still hold."""
    write_clip(tmp_path / "plain.mp4", seed="plain", frames=12)
    (tmp_path / "a.mp4").write_bytes(ten_hours((tmp_path / "plain.mp4").read_bytes(), frames=True))
    began = time.monotonic()
    with pytest.raises(media.MediaError) as caught:
        video.read_clip(str(tmp_path), MediaRef("video", "a.mp4", start_s=0.0, end_s=30_000.0), SETTINGS)
    assert caught.value.reason == "too_large"
    assert time.monotonic() - began < SETTINGS.timeout_s + 5


def test_rejects_do_not_depend_on_where_the_files_lie(tmp_path):
    (tmp_path / "one").mkdir()
    write_clip(tmp_path / "one" / "a.mp4", seed="a", frames=12)
    whole = (tmp_path / "one" / "a.mp4").read_bytes()
    (tmp_path / "one" / "a.mp4").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(tmp_path / "one", tmp_path / "another")
    first, second = (reject_of(tmp_path / folder, "video", "a.mp4") for folder in ("one", "another"))
    assert first == second
    assert str(tmp_path) not in first.detail
