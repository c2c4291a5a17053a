"""One ffmpeg process that reads one local file: which demuxer, which limits, and what its log says.

The demuxer is fixed from the file's first bytes, so that a playlist is never opened whatever the file is called, and
only the protocols `file` and `pipe` exist for it. Its environment holds none of this process's secrets. It ends when
its output ends, when its time is up, or as soon as the file's header declares something that cannot be used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

from dataset_build import media
from dataset_build.media import MediaError
from dataset_build.schema import MediaRef

if TYPE_CHECKING:
    from dataset_build.recipe import MediaSettings

SAMPLE_RATE = 16_000
# Containers that may begin and be cut anywhere: the pictures before the first key frame never decode. And WAV, whose
# header tells more surely whether it is whole (`check_header`) than its last packet, which may well be a short one.
STREAMS = ("mpegts", "mpeg", "mp3", "wav")
# Where ffmpeg would jump to some place behind the start and begin at the next key frame: decoded from the beginning.
_WITHOUT_INDEX = ("mpegts", "mpeg")
# How much shorter than its range a clip may be. Annotations round, some to whole seconds.
TAIL_S = 1.0
_KEPT_LOG_CHARS = 200_000
_MOST_BOXES = 1000
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT")
_LEVEL = re.compile(r"^(?:\[[^\]]*\] )*\[(?:error|fatal|panic)\] ")
_DURATION = re.compile(r"^\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+)")
# What demuxers say about a file whose end is gone or whose structure is broken, while ffmpeg still returns 0.
_DAMAGE = (
    "partial file",
    "file ended prematurely",
    "exceeds containing master element",
    "invalid as first byte of an ebml number",
    "crc mismatch",
)

T = TypeVar("T")


class Part(NamedTuple):
    """What is read of a file: from `start` (None: the beginning), `length` seconds at most. `whole`: up to its end."""

    start: float | None
    length: float
    whole: bool


class Ended(NamedTuple):
    """How a process ended: what was collected from its output, its exit code, its errors, and whether output was left."""

    code: int
    errors: str
    left_over: bool


def ffmpeg_binary() -> str:
    """ffmpeg of the system, else the one that imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


@functools.cache
def ffmpeg_version() -> str:
    """The first line of `ffmpeg -version`: another ffmpeg may decode a clip to other bytes."""
    told = subprocess.run(
        [ffmpeg_binary(), "-version"], capture_output=True, text=True, timeout=60, check=True
    )
    return told.stdout.partition("\n")[0]


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


def check_header(
    full: str, ref: MediaRef, container: str, head: bytes, part: Part, settings: MediaSettings
) -> None:
    """Raises MediaError for a header that announces more than the file holds, or more than the recipe allows.

    The first is looked at in RIFF (AVI, WAV), the second in MP4; both for others in what ffmpeg logs.
    """
    declared = _movie_header_s(full) if container == "mov" else None
    if declared is not None and part.whole:
        refused = _verdict(ref, part, declared, settings)
        if refused and refused.reason == "too_large":
            raise refused
    announced = int.from_bytes(head[4:8], "little")
    if container not in ("avi", "wav") or announced in (0, 0xFFFFFFFF):  # a WAV that was written to a pipe
        return
    if announced + 8 > os.path.getsize(full):
        raise MediaError("undecodable", f"{ref.path}: cut off; its header announces {announced + 8} bytes")


def _movie_header_s(full: str) -> float | None:
    """The length that the movie header (`mvhd`) of an MP4 or QuickTime file declares, in seconds.

    ffmpeg goes by the sample tables where the two disagree; a file that announces ten hours is refused all the same.
    """
    with open(full, "rb") as stream:
        end, inside = os.path.getsize(full), b"moov"
        for _ in range(_MOST_BOXES):
            place, head = stream.tell(), stream.read(16)
            size, header = int.from_bytes(head[:4], "big"), 8
            if size == 1:
                size, header = int.from_bytes(head[8:16], "big"), 16
            if len(head) < 8 or size and size < header:
                return None
            if head[4:8] == inside == b"mvhd":
                stream.seek(place + header)
                body = stream.read(32)
                wide = 8 if body[:1] == b"\x01" else 4
                at = 4 + 2 * wide  # behind version and flags, and two times
                scale = int.from_bytes(body[at : at + 4], "big")
                ticks = int.from_bytes(body[at + 4 : at + 4 + wide], "big")
                return ticks / scale if scale and ticks != 256**wide - 1 else None
            if head[4:8] == inside:
                inside = b"mvhd"
                stream.seek(place + header)
            else:
                stream.seek(place + size if size else end)
    return None


def part_of(ref: MediaRef, settings: MediaSettings) -> Part:
    """Where to start and how many seconds to read (a little more than allowed, to notice the excess)."""
    start, end = ref.start_s, ref.end_s
    numbers = [number for number in (start, end) if number is not None]
    if (
        not all(abs(number) < 1e7 for number in numbers)  # neither nan nor infinite
        or start is not None
        and start < 0
        or end is not None
        and end <= (start or 0)
    ):
        raise MediaError("bad_time_range", f"{ref.path}: start {start}, end {end}")
    longest = settings.max_seconds + 1
    return Part(start, longest if end is None else min(longest, end - (start or 0)), end is None)


def check_length(ref: MediaRef, seconds: float, settings: MediaSettings) -> None:
    """Raises MediaError where what came out is longer than allowed or ends well before its range does."""
    if seconds > settings.max_seconds:
        limit = f"media.max_seconds = {settings.max_seconds:g}"
        raise MediaError(
            "too_large", f"{ref.path}: longer than the recipe's {limit}; raise it or give a range"
        )
    if ref.end_s is not None and seconds < ref.end_s - (ref.start_s or 0) - TAIL_S:
        there = f"{seconds:.2f} s from {ref.start_s or 0:g} s on"
        raise MediaError(
            "bad_time_range", f"{ref.path}: it should end at {ref.end_s:g} s, but there are {there}"
        )


def input_options(container: str, part: Part, settings: MediaSettings) -> dict[str, object]:
    """The options of ffmpeg's input that hold for every file."""
    seek: dict[str, object] = {} if part.start is None else {"ss": part.start}
    length = part.length
    if container in _WITHOUT_INDEX and part.start is not None:
        seek, length = {}, part.start + part.length
    return {
        "format": container,
        "t": length,
        "protocol_whitelist": "file,pipe",
        "max_pixels": settings.max_pixels,
        "threads": 1,
        **seek,
    }


def output_options(container: str, part: Part) -> dict[str, object]:
    """The options of ffmpeg's output that take the part. Its length holds here, too: a last picture may be long."""
    if container in _WITHOUT_INDEX and part.start is not None:
        return {"ss": part.start, "t": part.length}
    return {"t": part.length}


def global_options(container: str) -> Sequence[str]:
    strict = () if container in STREAMS else ("-xerror",)
    return ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", *strict)


def run(
    command: Sequence[str],
    ref: MediaRef,
    full: str,
    part: Part,
    settings: MediaSettings,
    collect: Callable[[IO[bytes]], T],
) -> tuple[T, Ended]:
    """Start ffmpeg, hand its output to `collect`, and see it end. Raises MediaError (too_large, bad_time_range)."""
    late = threading.Event()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=os.sep,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
    )

    def stop() -> None:
        late.set()
        process.kill()

    assert process.stdout is not None and process.stderr is not None
    log = _Log(process, process.stderr, lambda seconds: _verdict(ref, part, seconds, settings))
    timer = threading.Timer(settings.timeout_s, stop)
    timer.start()
    log.start()
    try:
        collected = collect(process.stdout)
        left_over = bool(process.stdout.read(1))
        if left_over:  # more than `collect` takes, which is nothing of ours either
            process.kill()
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        log.join()
        process.stdout.close()
    if log.refused:
        raise log.refused
    if late.is_set():
        raise MediaError(
            "too_large", f"{ref.path}: not decoded within media.timeout_s = {settings.timeout_s:g} s"
        )
    # The name in the annotation for that on disk: a message must not depend on where the file lies.
    errors = log.errors.replace(f"file:{full}", ref.path).replace(full, ref.path)
    return collected, Ended(code, errors, left_over)


def check_end(ended: Ended, name: str, nothing_came: bool, settings: MediaSettings) -> None:
    """Raises MediaError where ffmpeg failed, or said that the file is damaged."""
    said = ended.errors.lower()
    if (ended.code or nothing_came) and "max pixel" in said:
        raise MediaError(
            "too_large", f"{name}: more pixels a frame than media.max_pixels = {settings.max_pixels}"
        )
    if ended.code or ended.left_over or any(damage in said for damage in _DAMAGE):
        raise MediaError("undecodable", f"{name}: damaged or cut off: {first_line(ended.errors)}")


def first_line(errors: str) -> str:
    """ffmpeg's first complaint, without memory addresses."""
    lines = [re.sub(r"\[(\S+) @ 0x[0-9a-f]+\]", r"[\1]", line).strip() for line in errors.splitlines()]
    return next((line for line in lines if line), "ffmpeg gave no reason")[:200]


def _verdict(ref: MediaRef, part: Part, seconds: float, settings: MediaSettings) -> MediaError | None:
    """What is wrong with a file whose header declares this length."""
    start = part.start or 0
    if part.start is not None and part.start >= seconds:
        return MediaError("bad_time_range", f"{ref.path}: start {start:g} s, but it ends at {seconds:.2f} s")
    if part.whole and seconds - start > settings.max_seconds:
        limit = f"media.max_seconds = {settings.max_seconds:g}"
        return MediaError(
            "too_large",
            f"{ref.path}: its header declares {seconds:.0f} s, longer than the recipe's {limit}; raise it or give a range",
        )
    return None


class _Log(threading.Thread):
    """Reads ffmpeg's log to its end, keeps the errors, and kills the process when the declared length is refused."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stream: IO[bytes],
        verdict: Callable[[float], MediaError | None],
    ) -> None:
        super().__init__(daemon=True)
        self._process, self._stream, self._verdict = process, stream, verdict
        self._declared = False
        self.errors = ""
        self.refused: MediaError | None = None

    def run(self) -> None:
        with self._stream:
            while line := self._stream.readline(4096):
                text = line.decode("utf-8", "replace")
                found = None if self._declared else _DURATION.match(text)
                if found:
                    self._declared = True
                    hours, minutes, seconds = found.groups()
                    self.refused = self._verdict(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
                    if self.refused:
                        with contextlib.suppress(ProcessLookupError):
                            self._process.kill()
                elif _LEVEL.match(text) and len(self.errors) < _KEPT_LOG_CHARS:
                    self.errors += _LEVEL.sub(_context, text)


def _context(found: re.Match[str]) -> str:
    """`[mov @ 0x1] [error] ` without its level."""
    return re.sub(r"\[(?:error|fatal|panic)\] $", "", found.group())


def local_file(root: media.Root, ref: MediaRef, settings: MediaSettings) -> tuple[str, bytes]:
    """The file of a clip or sound and its first bytes. Raises MediaError."""
    full = media.resolve(root, ref.path)
    return full, media.check_file(full, ref.path, settings.max_file_mb)
