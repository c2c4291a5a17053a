"""Clips: N evenly spaced frames and the sound, from one ffmpeg process that reads one local file.

The process writes one AVI stream to its standard output: small PNG frames on a 25 per second grid, and 16 kHz mono
PCM where the file has sound. The frames are thinned out while they arrive (every second one is dropped whenever too
many are held), so neither the length of the clip nor its frame rate decides how much memory this takes. Neither
ffprobe nor a second pass is needed. The demuxer is fixed from the file's first bytes: a playlist is never opened.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import wave
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NamedTuple

from dataset_build import media, schema
from dataset_build.media import MediaError, Medium

if TYPE_CHECKING:
    from dataset_build.recipe import MediaSettings

GRID_FPS = 25
SAMPLE_RATE = 16_000
_HELD_FRAMES = 256
# A chunk of our own AVI stream larger than this is not a small PNG frame or a stretch of sound.
_MAX_CHUNK = 64 << 20
# Containers that may begin and be cut anywhere: the pictures before the first key frame never decode.
_STREAMS = ("mpegts", "mpeg")
# What demuxers say about a file whose end is gone or whose structure is broken, while ffmpeg still returns 0.
_DAMAGE = (
    "partial file",
    "file ended prematurely",
    "exceeds containing master element",
    "invalid as first byte of an ebml number",
    "crc mismatch",
)


class Decoded(NamedTuple):
    """What came out of ffmpeg: frames (PNG) held with their place on the grid, how many there were, PCM bytes."""

    frames: list[tuple[int, bytes]]
    n_frames: int
    pcm: bytes


def ffmpeg_binary() -> str:
    """ffmpeg of the system, else the one that imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def container_format(head: bytes) -> str | None:
    """The ffmpeg demuxer for a file that starts with these bytes; None for anything that is not a known container."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"\x00\x00\x01\xba"):
        return "mpeg"
    if head[:1] == b"\x47" and head[188:189] == b"\x47" and head[376:377] == b"\x47":
        return "mpegts"
    return None


def read_clip(root: str, ref: schema.MediaRef, settings: MediaSettings) -> list[Medium]:
    """The frames of a clip and, where it has sound, its sound. Raises MediaError.

    A damaged or truncated file is `undecodable`, not a shorter clip. (Ogg, FLV and MPEG streams declare no length: one
    that was cut between two packets looks whole.)
    """
    full = media.resolve(root, ref.path)
    head = media.check_file(full, ref.path, settings.max_file_mb)
    container = container_format(head)
    if container is None:
        raise MediaError("not_media", f"{ref.path}: not a video, it starts with {head[:16]!r}")
    if container == "avi" and (whole := int.from_bytes(head[4:8], "little") + 8) > os.path.getsize(full):
        raise MediaError("undecodable", f"{ref.path}: cut off; its header announces {whole} bytes")
    start, length = _range(ref, settings)
    decoded, log = _run(full, container, start, length, ref.path, settings)
    seconds = decoded.n_frames / GRID_FPS
    if seconds > settings.max_seconds:
        limit = f"media.max_seconds = {settings.max_seconds:g}"
        raise MediaError(
            "too_large", f"{ref.path}: longer than the recipe's {limit}; raise it or give a range"
        )
    if not decoded.frames:
        raise MediaError("undecodable", f"{ref.path}: no picture came out: {_reason(log)}")
    digest = _sha256(full)
    identity = digest
    if ref.start_s is not None or ref.end_s is not None:
        identity = hashlib.sha256(f"{digest}:{ref.start_s}:{ref.end_s}".encode()).hexdigest()
    pictures = [media.open_picture(png) for png in _evenly(decoded, settings.video_frames)]
    jpegs = tuple(media.encode_jpeg(picture, settings.jpeg_quality) for picture in pictures)
    middle = pictures[len(pictures) // 2]
    stored_fps = round(len(jpegs) / seconds, 6)
    clip = Medium(
        "video",
        jpegs,
        digest,
        identity,
        media.phash(middle),
        middle.width,
        middle.height,
        round(seconds, 6),
        stored_fps,
    )
    if not decoded.pcm:
        return [clip]
    sound_s = round(len(decoded.pcm) / 2 / SAMPLE_RATE, 6)
    sound = Medium("audio", (_wav(decoded.pcm),), digest, identity, "", 0, 0, sound_s, None, SAMPLE_RATE)
    return [clip, sound]


def _range(ref: schema.MediaRef, settings: MediaSettings) -> tuple[float | None, float]:
    """Where to start, and how many seconds to read at most (a little more than allowed, to notice the excess)."""
    start, end = ref.start_s, ref.end_s
    if start is not None and start < 0 or end is not None and end <= (start or 0):
        raise MediaError("bad_time_range", f"{ref.path}: start {start}, end {end}")
    length = settings.max_seconds + 1
    return start, length if end is None else min(length, end - (start or 0))


def command(
    full: str, container: str, start: float | None, length: float, settings: MediaSettings
) -> list[str]:
    """The ffmpeg command line that decodes one file to an AVI stream on standard output."""
    import ffmpeg

    limits = {"protocol_whitelist": "file,pipe", "max_pixels": settings.max_pixels, "threads": 1}
    seek = {} if start is None else {"ss": start}
    # The `file:` prefix keeps a name such as `concat:a|b` a name.
    source = ffmpeg.input(f"file:{full}", format=container, t=length, **limits, **seek)
    side = settings.frame_side_px
    stream = source.output(
        "pipe:1",
        format="avi",
        vf=f"fps={GRID_FPS},scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease:"
        "flags=bicubic+accurate_rnd+full_chroma_int+bitexact",
        **{"c:v": "png", "c:a": "pcm_s16le", "pix_fmt": "rgb24", "compression_level": 1, "pred": "none"},
        ar=SAMPLE_RATE,
        ac=1,
        sn=None,
        dn=None,
        flags="bitexact",
        fflags="bitexact",
    )
    strict = () if container in _STREAMS else ("-xerror",)
    return ffmpeg.compile(
        stream.global_args("-nostdin", "-hide_banner", "-loglevel", "error", *strict), cmd=ffmpeg_binary()
    )


def _run(
    full: str, container: str, start: float | None, length: float, name: str, settings: MediaSettings
) -> tuple[Decoded, str]:
    late = threading.Event()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(full, container, start, length, settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=os.sep,
        )

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(settings.timeout_s, stop)
        timer.start()
        assert process.stdout is not None
        try:
            decoded = _collect(process.stdout)
            left_over = bool(process.stdout.read(1))
            if left_over:  # more than `_collect` takes, which is no clip of ours either
                process.kill()
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        log.seek(0)
        text = log.read(200_000).decode("utf-8", "replace")
    if late.is_set():
        raise MediaError(
            "too_large", f"{name}: not decoded within media.timeout_s = {settings.timeout_s:g} s"
        )
    said = text.lower()
    if (code or not decoded.frames) and "max pixel" in said:
        raise MediaError(
            "too_large", f"{name}: more pixels a frame than media.max_pixels = {settings.max_pixels}"
        )
    if code or left_over or any(damage in said for damage in _DAMAGE):
        raise MediaError("undecodable", f"{name}: damaged or cut off: {_reason(text)}")
    return decoded, text


def _collect(stream: IO[bytes]) -> Decoded:
    """Read an AVI stream to its end, holding an even selection of at most `_HELD_FRAMES` frames and all sound."""
    held: list[tuple[int, bytes]] = []
    step, count = 1, 0
    pcm = bytearray()
    for name, chunk in _chunks(stream):
        if name[2:] == b"wb":
            pcm += chunk
        elif name[2:] in (b"dc", b"db"):
            # An empty chunk says: the frame before, once more.
            if chunk and count % step == 0:
                held.append((count, chunk))
                if len(held) > _HELD_FRAMES:
                    step *= 2
                    held = [frame for frame in held if frame[0] % step == 0]
            count += 1
    return Decoded(held, count, bytes(pcm))


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The data chunks of an AVI stream, in order. A stream cut short ends the iteration."""
    while len(header := stream.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        if name in (b"RIFF", b"LIST"):
            kind = stream.read(4)
            if kind in (b"AVI ", b"AVIX", b"movi", b"rec "):
                continue  # a container of chunks (its size is not known on a pipe): go into it
            size -= 4
        if size > _MAX_CHUNK:
            return
        body = stream.read(size + size % 2)
        if len(body) < size:
            return
        if name[:2].isdigit():
            yield name, body[:size]


def _evenly(decoded: Decoded, wanted: int) -> list[bytes]:
    """The frames nearest to the middles of `wanted` equal parts of the clip; a very short clip repeats frames."""
    targets = [(2 * part + 1) * decoded.n_frames / (2 * wanted) for part in range(wanted)]
    return [min(decoded.frames, key=lambda frame: abs(frame[0] + 0.5 - target))[1] for target in targets]


def _wav(pcm: bytes) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(pcm)
    return buffer.getvalue()


def _sha256(full: str) -> str:
    with open(full, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reason(log: str) -> str:
    """ffmpeg's first complaint, without memory addresses."""
    lines = [
        re.sub(r"\[(\S+) @ 0x[0-9a-f]+\]", r"[\1]", line).strip() for line in log.splitlines() if line.strip()
    ]
    return (lines[0] if lines else "ffmpeg gave no reason")[:200]
