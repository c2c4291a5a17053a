"""Sound files, and the sound of clips: 16 kHz mono WAV through ffmpeg, one process and one local file each."""

from __future__ import annotations

import hashlib
import io
import wave
from typing import IO, TYPE_CHECKING

from dataset_build import decoder, media, schema
from dataset_build.decoder import SAMPLE_RATE, Part, ffmpeg_binary
from dataset_build.media import MediaError, Medium

if TYPE_CHECKING:
    from dataset_build.recipe import MediaSettings

_BYTES_A_SECOND = 2 * SAMPLE_RATE


def sound_format(head: bytes) -> str | None:
    """The ffmpeg demuxer for a sound file, or a clip taken for its sound, that starts with these bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head.startswith(b"fLaC"):
        return "flac"
    # An ID3v2 tag, or the frame header of MPEG audio layer III (of AAC in ADTS, the layer is 0).
    if head.startswith(b"ID3") or head[:1] == b"\xff" and head[1:2] in (b"\xfb", b"\xfa", b"\xf3", b"\xf2"):
        return "mp3"
    return decoder.container_format(head)


def read_sound(root: media.Root, ref: schema.MediaRef, settings: MediaSettings) -> Medium:
    """The sound of a file, or of a part of it. Raises MediaError.

    MP3 and Ogg declare no length: a file that was cut between two packets looks whole.
    """
    full, head = decoder.local_file(root, ref, settings)
    container = sound_format(head)
    if container is None:
        raise MediaError("not_media", f"{ref.path}: not a sound file, it starts with {head[:16]!r}")
    part = decoder.part_of(ref, settings)
    decoder.check_header(full, ref, container, head, part, settings)
    most = round((settings.max_seconds + 1) * _BYTES_A_SECOND)

    def collect(stream: IO[bytes]) -> bytes:
        return stream.read(most)

    pcm, ended = decoder.run(command(full, container, part, settings), ref, full, part, settings, collect)
    decoder.check_end(ended, ref.path, not pcm, settings)
    if not pcm:
        if part.start is not None and not ended.errors:
            raise MediaError("bad_time_range", f"{ref.path}: no sound from {part.start:g} s on")
        raise MediaError("undecodable", f"{ref.path}: no sound came out: {decoder.first_line(ended.errors)}")
    decoder.check_length(ref, len(pcm) / _BYTES_A_SECOND, settings)
    digest = sha256_of(full)
    return sound(pcm, digest, identity_of(digest, ref))


def command(full: str, container: str, part: Part, settings: MediaSettings) -> list[str]:
    """The ffmpeg command line that decodes one file to 16-bit samples on standard output."""
    import ffmpeg

    source = ffmpeg.input(f"file:{full}", **decoder.input_options(container, part, settings))
    # The first sound stream only, and no picture: an album cover is a video stream.
    stream = source.output(
        "pipe:1",
        format="s16le",
        map="0:a:0",
        **{"c:a": "pcm_s16le"},
        ar=SAMPLE_RATE,
        ac=1,
        flags="bitexact",
        **decoder.output_options(container, part),
    )
    return ffmpeg.compile(stream.global_args(*decoder.global_options(container)), cmd=ffmpeg_binary())


def sound(pcm: bytes, source_sha256: str, identity: str) -> Medium:
    """16-bit samples as the medium that is stored."""
    seconds = round(len(pcm) / _BYTES_A_SECOND, 6)
    return Medium("audio", (_wav(pcm),), source_sha256, identity, "", 0, 0, seconds, None, SAMPLE_RATE)


def identity_of(digest: str, ref: schema.MediaRef) -> str:
    """The digest of a file and the part of it that `ref` takes: time range and crop, as the annotation says them."""
    parts = [digest]
    if ref.start_s is not None or ref.end_s is not None or ref.crop is not None:
        parts += [str(ref.start_s), str(ref.end_s)]
    if ref.crop is not None:
        crop = ref.crop
        corners = (float(corner) for corner in (crop.left, crop.top, crop.right, crop.bottom))
        parts += [crop.unit, *map(str, corners)]
    return digest if len(parts) == 1 else hashlib.sha256(":".join(parts).encode()).hexdigest()


def sha256_of(full: str) -> str:
    with open(full, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wav(pcm: bytes) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(SAMPLE_RATE)
        stream.writeframes(pcm)
    return buffer.getvalue()
