"""Clips: N evenly spaced frames and the sound, from one ffmpeg process that reads one local file.

The process writes one AVI stream to its standard output: small frames on a 25 per second grid, and 16 kHz mono PCM where
the file has sound. The frames are plain pixels; as PNG, which takes longer to pack than many a clip to decode, they come
only where the recipe's frames are so large that those held would take much memory. They are thinned out while they
arrive (every second one is dropped whenever too many are held), so neither the length of the clip nor its frame rate
decides how much memory this takes. Neither ffprobe nor a second pass is needed. What holds for every ffmpeg process is in `dataset_build.decoder`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NamedTuple

from dataset_build import audio, crops, decoder, media, schema
from dataset_build.decoder import Part, ffmpeg_binary
from dataset_build.media import MediaError, Medium

if TYPE_CHECKING:
    from PIL import Image

    from dataset_build.recipe import MediaSettings

__all__ = ["ffmpeg_binary", "read_clip"]

GRID_FPS = 25
_HELD_FRAMES = 256
# What the held frames may take as plain pixels: 256 square ones of 350 px.
_PLAIN_BYTES = 96 << 20
# A chunk of our own AVI stream larger than this is not a small frame or a stretch of sound.
_MAX_CHUNK = 64 << 20
# The format of a stream of pictures (BITMAPINFOHEADER) has so many bytes; that of sound has fewer.
_PICTURE_HEADER = 40
_EPSILON_PX = 0.000001
_FARTHEST_PX = 1e6


class Decoded(NamedTuple):
    """What came out of ffmpeg: frames held with their place on the grid, how many there were, PCM bytes, frame size."""

    frames: list[tuple[int, bytes]]
    n_frames: int
    pcm: bytes
    size: tuple[int, int] = (0, 0)


def read_clip(root: media.Root, ref: schema.MediaRef, settings: MediaSettings) -> list[Medium]:
    """The frames of a clip and, where it has sound that the recipe wants, its sound. Raises MediaError.

    A damaged or truncated file is `undecodable`, not a shorter clip. (Ogg, FLV and MPEG streams declare no length: one
    that was cut between two packets looks whole.) A range that begins behind the file's end, or ends more than
    `decoder.TAIL_S` behind it, is a `bad_time_range`.
    """
    full, head = decoder.local_file(root, ref, settings)
    container = decoder.container_format(head)
    if container is None:
        raise MediaError("not_media", f"{ref.path}: not a video, it starts with {head[:16]!r}")
    part = decoder.part_of(ref, settings)
    decoder.check_header(full, ref, container, head, part, settings)
    if ref.crop:
        crops.check_crop(ref.crop, ref.path)
    decoded, ended = decoder.run(
        command(full, container, part, settings, ref.crop), ref, full, part, settings, _collect
    )
    if ref.crop and ended.code and "non positive size" in ended.errors:
        raise MediaError("bad_row", crops.empty_crop(ref.crop, ref.path))
    decoder.check_end(ended, ref.path, not decoded.frames, settings)
    seconds = decoded.n_frames / GRID_FPS
    if not decoded.frames:
        if part.start is not None and not ended.errors:
            raise MediaError("bad_time_range", f"{ref.path}: no picture from {part.start:g} s on")
        raise MediaError(
            "undecodable", f"{ref.path}: no picture came out: {decoder.first_line(ended.errors)}"
        )
    decoder.check_length(ref, seconds, settings)
    digest = audio.sha256_of(full)
    identity = audio.identity_of(digest, ref)
    chosen = _evenly(decoded, settings.video_frames)
    if _plain(settings):
        pictures = [_picture(frame, decoded.size, ref.path) for frame in chosen]
    else:
        pictures = [media.open_picture(frame) for frame in chosen]
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
    return [clip, audio.sound(decoded.pcm, digest, identity)] if decoded.pcm else [clip]


def command(
    full: str, container: str, part: Part, settings: MediaSettings, crop: schema.Crop | None = None
) -> list[str]:
    """The ffmpeg command line that decodes one file to an AVI stream on standard output."""
    import ffmpeg

    # The `file:` prefix keeps a name such as `concat:a|b` a name.
    source = ffmpeg.input(f"file:{full}", **decoder.input_options(container, part, settings))
    side = settings.frame_side_px
    cropped = f"{_crop_filter(crop)}," if crop else ""
    filters = (
        f"fps={GRID_FPS},{cropped}scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease:"
        "flags=bicubic+accurate_rnd+full_chroma_int+bitexact,format=rgb24"
    )
    frames: dict[str, object]
    if _plain(settings):
        frames = {"c:v": "rawvideo", "pix_fmt": "bgr24"}  # the order that AVI knows
    else:
        frames = {"c:v": "png", "pix_fmt": "rgb24", "compression_level": 1, "pred": "none"}
    with_sound = {"c:a": "pcm_s16le", "ar": decoder.SAMPLE_RATE, "ac": 1} if settings.audio else {"an": None}
    stream = source.output(
        "pipe:1",
        format="avi",
        vf=filters,
        **frames,
        **with_sound,
        **decoder.output_options(container, part),
        sn=None,
        dn=None,
        flags="bitexact",
        fflags="bitexact",
    )
    return ffmpeg.compile(stream.global_args(*decoder.global_options(container)), cmd=ffmpeg_binary())


def _plain(settings: MediaSettings) -> bool:
    """Whether frames come as plain pixels."""
    return 3 * settings.frame_side_px**2 * _HELD_FRAMES <= _PLAIN_BYTES


def _picture(frame: bytes, size: tuple[int, int], name: str) -> Image.Image:
    """A plain frame as RGB: rows of blue, green and red, each row filled up to a multiple of four bytes."""
    from PIL import Image

    stride = (3 * size[0] + 3) // 4 * 4
    if len(frame) != stride * size[1]:
        raise MediaError(
            "undecodable", f"{name}: a frame of {len(frame)} bytes among those of {size[0]}x{size[1]}"
        )
    return Image.frombytes("RGB", size, frame, "raw", "BGR", stride, 1)


def _crop_filter(crop: schema.Crop) -> str:
    """ffmpeg's crop filter, which takes the pixels that `crops.box_of` would, whatever the size of the frames."""
    across, down = ("iw", "ih") if crop.unit == "share" else ("1", "1")

    def edge(rounded: str, corner: float, scale: str, sign: str, limit: str) -> str:
        near = min(max(corner, -_FARTHEST_PX), _FARTHEST_PX)
        return f"{rounded}(clip({near:.9f}*{scale}{sign}{_EPSILON_PX:.6f},0,{limit}))"

    left, top = edge("floor", crop.left, across, "+", "iw"), edge("floor", crop.top, down, "+", "ih")
    right, bottom = edge("ceil", crop.right, across, "-", "iw"), edge("ceil", crop.bottom, down, "-", "ih")
    # exact: without it, sides and corners are rounded to whole chroma samples.
    return f"crop=w='{right}-{left}':h='{bottom}-{top}':x='{left}':y='{top}':exact=1"


def _collect(stream: IO[bytes]) -> Decoded:
    """Read an AVI stream to its end, holding an even selection of at most `_HELD_FRAMES` frames and all sound."""
    held: list[tuple[int, bytes]] = []
    step, count, size = 1, 0, (0, 0)
    pcm = bytearray()
    for name, chunk in _chunks(stream):
        if name == b"strf" and len(chunk) >= _PICTURE_HEADER:
            width, height = struct.unpack_from("<ii", chunk, 4)
            size = (width, abs(height))  # negative: the first row is the uppermost
        elif name[2:] == b"wb":
            pcm += chunk
        elif name[2:] in (b"dc", b"db"):
            # An empty chunk says: the frame before, once more.
            if chunk and count % step == 0:
                held.append((count, chunk))
                if len(held) > _HELD_FRAMES:
                    step *= 2
                    held = [frame for frame in held if frame[0] % step == 0]
            count += 1
    return Decoded(held, count, bytes(pcm), size)


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The data chunks of an AVI stream and the formats of its streams, in order. One cut short ends the iteration."""
    while len(header := stream.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        if name in (b"RIFF", b"LIST"):
            kind = stream.read(4)
            if kind in (b"AVI ", b"AVIX", b"hdrl", b"strl", b"movi", b"rec "):
                continue  # a container of chunks (its size is not known on a pipe): go into it
            size -= 4
        if size > _MAX_CHUNK:
            return
        body = stream.read(size + size % 2)
        if len(body) < size:
            return
        if name[:2].isdigit() or name == b"strf":
            yield name, body[:size]


def _evenly(decoded: Decoded, wanted: int) -> list[bytes]:
    """The frames nearest to the middles of `wanted` equal parts of the clip; a very short clip repeats frames."""
    targets = [(2 * part + 1) * decoded.n_frames / (2 * wanted) for part in range(wanted)]
    return [min(decoded.frames, key=lambda frame: abs(frame[0] + 0.5 - target))[1] for target in targets]
