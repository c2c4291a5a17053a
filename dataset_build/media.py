"""Every byte from outside goes through here: paths, pictures and clips, each with limits.

Failures are `MediaError`s whose `reason` is a key of `schema.REJECT_REASONS`, so that one bad file costs one row.

What is stored for a picture: its own bytes, if it is one PNG, JPEG or WebP frame within `max_side_px`, upright, and
not padded with foreign data. Transparency is kept then; everybody who opens the bytes gets it composited on white by
`open_picture`. Anything else is decoded (JPEG at reduced scale), put upright, composited on white, cropped where the
annotation says so, scaled down and stored as JPEG. What is stored for a clip: N evenly spaced frames as JPEG, and its
sound as 16 kHz mono WAV, if any (`dataset_build.video`, `dataset_build.audio`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import stat
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dataset_build import schema
from dataset_build.crops import Box, box_of
from dataset_build.errors import MediaError

if TYPE_CHECKING:
    from PIL import Image

    from dataset_build.recipe import MediaSettings

# Raise it when the stored bytes for the same source file change.
VERSION = "3"

# Default bound for `open_picture`: what a picture may decode to, whoever made the file.
MAX_PIXELS = 50_000_000
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_KEPT_FORMATS = ("PNG", "JPEG", "WEBP")
# A picture file larger than this is refused whatever `max_file_mb` allows for clips: it would be read whole.
_MAX_PICTURE_MB = 256
# What a file cannot help: too many open files or too little memory, a full disk, a file server that does not answer.
# A reject is kept with its shard until the row's inputs change, so these must not become one.
MACHINE_TROUBLE = frozenset(
    (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EAGAIN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    )
)
# Of a source that has a folder for every clip not all are remembered.
_FOLDERS_KEPT = 4096
# Where in memory an object lies, as Python's error messages say it.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Medium:
    """One converted medium. `data` holds encoded bytes (one picture, the frames of a clip, or one sound file).

    `source_sha256` is the digest of the source file, `identity` that of the file and the part of it that was taken:
    two media are the same picture or clip if and only if their identities are equal. `phash` is 16 hex digits, of the
    middle frame for a clip, empty for sound.
    """

    kind: schema.MediaKind
    data: tuple[bytes, ...]
    source_sha256: str
    identity: str
    phash: str
    width: int
    height: int
    duration_s: float | None = None
    fps: float | None = None
    sample_rate: int | None = None


class Place(Protocol):
    """Where the media of a source lie: `Folder`, or `dataset_build.roots.Fetched`."""

    def file(self, path: str) -> str:
        """The local file of an annotation's `path`. Raises as `resolve` does."""
        ...


Root = str | Place


def check_path(path: str) -> None:
    """Raises MediaError (path_outside_root, bad_row) for a path that no file below a root can have."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise MediaError("bad_row", f"{path!r}: not the name of a file ({error.reason})") from error
    parts = path.replace("\\", "/").split("/")
    if "\x00" in path or os.path.isabs(path) or path.startswith(("/", "\\")) or ".." in parts:
        raise MediaError("path_outside_root", f"{path!r} leaves the source's folder")


def missing(path: str) -> str:
    return f"{path}: the annotation names it, but it is not there"


def resolve(root: Root, path: str) -> str:
    """The absolute path of an annotation's `path`, which must stay inside `root`, links resolved.

    Raises MediaError: path_outside_root, missing_media, not_media, bad_row (no file name can hold this text); and OSError
    for `MACHINE_TROUBLE`.
    """
    return (Folder(root) if isinstance(root, str) else root).file(path)


class Folder:
    """A local root, for one reading of its source or one shard: what its folders really are is looked up once each.

    A folder that is replaced by a link while an instance lives is still taken for what it was.
    """

    def __init__(self, root: str) -> None:
        """Raises OSError for `MACHINE_TROUBLE`."""
        self._real, _ = _real(root)
        self._folders: dict[str, str] = {}

    def file(self, path: str) -> str:
        """See `resolve`."""
        return self.look_up(path)[0]

    def look_up(self, path: str) -> tuple[str, os.stat_result]:
        """The file of `path` and what the file system says of it: one question where its folder is known. See `resolve`."""
        check_path(path)
        full = os.path.normpath(os.path.join(self._real, path))
        if full != self._real:
            folder, name = os.path.split(full)
            full = os.path.join(self._folder(folder, path), name)
        try:
            found = os.lstat(full)
            if stat.S_ISLNK(found.st_mode):
                full = self._inside(full, path)
                found = os.lstat(full)
        except OSError as error:
            if error.errno in MACHINE_TROUBLE:
                raise
            raise MediaError("missing_media", missing(path)) from None
        if not stat.S_ISREG(found.st_mode):
            raise MediaError("not_media", f"{path}: not a regular file")
        return full, found

    def _folder(self, folder: str, path: str) -> str:
        if folder not in self._folders:
            if len(self._folders) >= _FOLDERS_KEPT:
                self._folders.clear()
            self._folders[folder] = self._inside(folder, path)
        return self._folders[folder]

    def _inside(self, full: str, path: str) -> str:
        """What is there at `full`, links resolved. Raises as `resolve` does."""
        real, there = _real(full)
        if os.path.commonpath([self._real, real]) != self._real:
            # Not where it leads: that depends on where the source lies, and a reject is part of the build's digest.
            raise MediaError("path_outside_root", f"{path}: a link leads out of the source's folder")
        if not there:
            raise MediaError("missing_media", missing(path))
        return real


def _real(path: str) -> tuple[str, bool]:
    """`path` with links resolved, and whether all of it is there; where it is not, links may be left behind what is missing."""
    try:
        return os.path.realpath(path, strict=True), True
    except OSError as error:
        if error.errno in MACHINE_TROUBLE:
            raise
        return os.path.realpath(path), False


def fingerprint(root: str | Folder, path: str) -> list[int] | str:
    """What a file is without reading it: size and modification time, or the reason why it cannot be used.

    Raises OSError for `MACHINE_TROUBLE`: nothing is known of the file then.
    """
    try:
        _, found = (Folder(root) if isinstance(root, str) else root).look_up(path)
    except MediaError as error:
        return error.reason
    return [found.st_size, found.st_mtime_ns]


def check_file(full: str, path: str, max_file_mb: int) -> bytes:
    """The first bytes of a file that is neither empty, nor too large, nor a stand-in for media.

    Raises MediaError, and OSError as it comes for `MACHINE_TROUBLE`.
    """
    try:
        size = os.path.getsize(full)
        with open(full, "rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        if error.errno in MACHINE_TROUBLE:
            raise
        raise MediaError("missing_media", f"{path}: cannot be read ({error.strerror})") from error
    if size == 0 or not head:
        raise MediaError("empty_file", f"{path}: 0 bytes")
    check_size(size, path, max_file_mb)
    if head.startswith(_GIT_LFS):
        raise MediaError("not_media", f"{path}: a git-lfs pointer; run `git lfs pull` in the source")
    return head


def check_size(size: int, path: str, max_file_mb: int) -> None:
    """Raises MediaError (too_large) for a file of more bytes than the recipe allows."""
    if size > max_file_mb << 20:
        raise MediaError(
            "too_large", f"{path}: {size >> 20} MiB; the recipe allows media.max_file_mb = {max_file_mb}"
        )


def picture_format(head: bytes) -> str | None:
    """The picture format that the first bytes announce; None where they announce none that is read here."""
    for magic, name in (
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\x00", "TIFF"),
        (b"MM\x00*", "TIFF"),
    ):
        if head.startswith(magic):
            return name
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def read_picture(root: Root, path: str, settings: MediaSettings, crop: schema.Crop | None = None) -> Medium:
    """A picture of a source, or a part of it, verified by decoding it. Raises MediaError."""
    full = resolve(root, path)
    head = check_file(full, path, min(settings.max_file_mb, _MAX_PICTURE_MB))
    if picture_format(head) is None:
        raise MediaError("not_media", f"{path}: not a picture, it starts with {head[:16]!r}")
    with open(full, "rb") as stream:
        return picture_from_bytes(stream.read(), path, settings, crop)


def read_clip(path: str, video_frames: int) -> list[Medium]:
    """A clip (and its sound) of a file that is in no source, stored as by a build's defaults. Raises MediaError."""
    from dataset_build import recipe, video

    folder, name = os.path.split(os.path.realpath(path))
    settings = recipe.MediaSettings(video_frames=video_frames)
    return video.read_clip(folder, schema.MediaRef("video", name), settings)


def picture_from_bytes(
    data: bytes, name: str, settings: MediaSettings, crop: schema.Crop | None = None
) -> Medium:
    """Encoded picture bytes, checked and brought within the limits; `name` is for messages."""
    picture, keep, box = _decode(data, name, settings, crop)
    stored = data if keep else encode_jpeg(picture, settings.jpeg_quality)
    digest = identity = hashlib.sha256(data).hexdigest()
    if box is not None:
        identity = hashlib.sha256(f"{digest}:box:{':'.join(map(str, box))}".encode()).hexdigest()
    return Medium("image", (stored,), digest, identity, phash(picture), picture.width, picture.height)


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS, draft_px: int | None = None) -> Image.Image:
    """Stored picture bytes as RGB: upright, transparency composited on white, 16-bit grey scaled to 8.

    Only the formats of `picture_format` are opened. `draft_px` is for callers who scale down anyway: a JPEG may then
    be decoded at a half, a quarter or an eighth of its size, as long as neither side falls below `draft_px`; other
    formats come at full size. `max_pixels` holds for the size that the file declares. Raises MediaError.
    """
    with _opened(data, "picture", max_pixels) as opened:
        if draft_px is not None and opened.format == "JPEG":
            opened.draft("RGB", (draft_px, draft_px))
        return _flat(_upright(_load(opened, "picture"), "picture"), "picture")


def stored_size(data: bytes) -> tuple[int, int]:
    """Width and height of stored picture bytes after decoding them, as `open_picture` gives them. Raises MediaError.

    A JPEG is decoded at an eighth of its size: all its bytes are read for that, too, and it takes half the time.
    """
    with _opened(data, "picture", MAX_PIXELS) as opened:
        size = opened.size
        if opened.format != "JPEG":
            return open_picture(data).size
        opened.draft("RGB", (1, 1))
        _flat(_upright(_load(opened, "picture"), "picture"), "picture")
        return size[::-1] if opened.getexif().get(0x0112, 1) in (5, 6, 7, 8) else size


def encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def phash(picture: Image.Image) -> str:
    """The 64-bit DCT perceptual hash, as 16 hex digits."""
    import imagehash

    return str(imagehash.phash(picture))


def _decode(
    data: bytes, name: str, settings: MediaSettings, crop: schema.Crop | None
) -> tuple[Image.Image, bool, Box | None]:
    """The picture as RGB within the limits, whether its own bytes can be stored as they are, and the part taken."""
    from PIL import Image

    with _opened(data, name, settings.max_pixels) as opened:
        try:
            orientation = opened.getexif().get(0x0112, 1)
            keep = (
                opened.format in _KEPT_FORMATS
                and max(opened.size) <= settings.max_side_px
                and orientation in (0, 1)
                # Uncompressed size plus some metadata: more is not this picture.
                and len(data) <= 8 * opened.width * opened.height + (64 << 10)
                and getattr(opened, "n_frames", 1) == 1  # last: of a GIF it walks through all frames
            )
        except Exception as error:  # reading metadata may already decode
            raise MediaError(
                "undecodable", f"{name}: {opened.format} does not decode: {_first_line(error)}"
            ) from error
        width, height = opened.size if orientation not in (5, 6, 7, 8) else opened.size[::-1]
        box = box_of(crop, width, height, name) if crop else None
        longest = max(width, height) if box is None else max(box.right - box.left, box.bottom - box.top)
        if opened.format == "JPEG" and longest > settings.max_side_px:
            scale = settings.max_side_px / longest
            opened.draft("RGB", (round(opened.width * scale), round(opened.height * scale)))
        upright = _upright(_load(opened, name), name)
        # What Pillow gives for RGB in RGB is a copy, 4 % of a photograph's conversion.
        flat = upright if opened.format == "JPEG" and upright.mode == "RGB" else _flat(upright, name)
    if box is not None:
        keep = False
        drafted_x, drafted_y = flat.width / width, flat.height / height  # 1 unless decoded at reduced scale
        flat = flat.crop(
            (
                math.floor(box.left * drafted_x),
                math.floor(box.top * drafted_y),
                max(math.ceil(box.right * drafted_x), math.floor(box.left * drafted_x) + 1),
                max(math.ceil(box.bottom * drafted_y), math.floor(box.top * drafted_y) + 1),
            )
        )
    if not keep and max(flat.size) > settings.max_side_px:
        flat.thumbnail((settings.max_side_px, settings.max_side_px), Image.Resampling.LANCZOS)
    return flat, keep, box


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    from PIL import Image

    kind = picture_format(data[:16])
    if kind is None:
        raise MediaError("not_media", f"{name}: not a picture, it starts with {data[:16]!r}")
    try:
        with warnings.catch_warnings():  # the pixel limit is ours, below, for every size
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=[kind])
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{name}: {error}") from error
    except Exception as error:  # Pillow's plugins raise whatever the hostile bytes make them
        # What Pillow says of a text or colour profile that unpacks to more than its limit of 1 MiB.
        bomb = "too large" in str(error).lower()
        raise MediaError(
            "too_large" if bomb else "undecodable",
            f"{name}: {kind} header, but it does not open: {_first_line(error)}",
        ) from error
    if opened.width * opened.height > max_pixels:
        size = f"{opened.width}x{opened.height}"
        opened.close()
        raise MediaError("too_large", f"{name}: {size} pixels; the limit is {max_pixels}")
    return opened


def _load(opened: Image.Image, name: str) -> Image.Image:
    try:
        opened.load()
    except Exception as error:  # as above
        raise MediaError(
            "undecodable", f"{name}: {opened.format} does not decode: {_first_line(error)}"
        ) from error
    return opened


def _upright(picture: Image.Image, name: str) -> Image.Image:
    """The picture turned as its EXIF orientation says (Pillow's own function also re-encodes the other tags)."""
    from PIL.Image import Transpose

    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception as error:  # metadata is as hostile as the rest
        raise MediaError("undecodable", f"{name}: its EXIF data is damaged: {_first_line(error)}") from error
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _flat(picture: Image.Image, name: str) -> Image.Image:
    """The picture as RGB, transparency composited on white, 16-bit grey scaled to 8 bits."""
    from PIL import Image

    try:
        if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # `convert` would clip instead of scale
            import numpy as np

            grey = np.asarray(picture.convert("I")).clip(0, 65_535)
            hidden = picture.info.get("transparency")
            if isinstance(hidden, int):  # the one transparent grey: scaled, others would equal it
                grey = np.where(grey == hidden, 65_535, grey)
            return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
        if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
            rgba = picture.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            white.alpha_composite(rgba)
            return white.convert("RGB")
        return picture.convert("RGB")
    except Exception as error:  # odd modes and metadata that no conversion knows
        raise MediaError(
            "undecodable", f"{name}: {picture.mode} does not convert to RGB: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    text = without_addresses(str(error)).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def without_addresses(text: str) -> str:
    """`image file <_io.BytesIO object at 0x7f01>` → `image file <_io.BytesIO object>`: rejects are part of a digest."""
    return _ADDRESS.sub("", text)
