"""Hostile annotations, media and recipes through whole builds: nothing is run, nothing outside the root is read."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import dataset_build
from dataset_build import convert, manifest, plan, quality, sources
from dataset_build.errors import UsageError
from dataset_build.recipe import BuildRecipe, MediaSettings, load_recipe
from dataset_build.schema import Record, Reject
from tests.fixtures import sources as fixtures
from tests.fixtures.sources import base

PACKAGE = Path(dataset_build.__file__).parent
PROJECT = PACKAGE.parent


def canary(folder: Path) -> Path:
    """Files that nobody may read: media that decode and annotations that parse."""
    folder.mkdir()
    for suffix in (".jpg", ".png", ".bmp"):
        base.picture(folder / f"secret{suffix}")
    for suffix in (".mp4", ".avi"):
        base.clip(folder / f"secret{suffix}")
    base.sound(folder / "secret.wav")
    for suffix in ("", ".csv", ".json", ".txt", ".npy", ".p", ".mat", ".tsv", ".jsonl"):
        base.write(folder / f"secret{suffix}", "the secret of this machine")
    return folder


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What a process touched that read every fixture with poisoned annotations; see `tests.fixtures.audited`."""
    folder = tmp_path_factory.mktemp("audited").resolve()
    canary(folder / "canary")
    for name in fixtures.NAMES:
        planted = fixtures.build(name, folder / name)
        (folder / f"{name}.json").write_text(json.dumps(dict(planted.options)))
    command = [sys.executable, "-m", "tests.fixtures.audited", str(folder), *fixtures.NAMES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


def test_no_poisoned_annotation_makes_anybody_read_outside_the_root(audited):
    folder, result = audited
    assert not [path for path in result["touched"] if "canary" in path or "secret" in path]
    # What remains: the trees themselves, and what any Python program and ffmpeg read.
    roots = [f"{folder}/{name}/" for name in fixtures.NAMES]
    allowed = [
        str(PROJECT),
        sys.prefix,
        sys.base_prefix,
        tempfile.gettempdir() + "/tmp",
        "/dev/null",
        "/usr/",
        "/lib",
    ]
    strangers = []
    for path in result["touched"]:
        place = path.removeprefix("process ")
        inside = any(f"{place}/".startswith(root) for root in roots)
        if not inside and not any(place.startswith(start) for start in allowed):
            strangers.append(path)
    assert not strangers


def test_no_poisoned_medium_is_kept_and_links_out_are_rejected(audited):
    found = audited[1]["found"]
    assert set(found) == set(fixtures.NAMES)
    total: Counter[str] = Counter()
    for name, counts in found.items():
        assert not [reason for reason in counts if reason.endswith("KEPT")], (name, counts)
        total.update(counts)
    assert total["link: path_outside_root"] >= len(found) / 2, "links were to be tried with most sources"
    assert total["media: path_outside_root"] >= 100, "poisoned paths were to reach the media"


def items(tree: Path, name: str) -> list[Reject | convert.Converted]:
    """All items of a source after conversion, in this process."""
    raw = {
        "name": "x",
        "out": str(tree / "out"),
        "root": str(tree),
        "sources": [{"name": name, "root": name}],
    }
    recipe = BuildRecipe.model_validate(raw)
    adapter = sources.adapter(name)
    found: list[Reject | convert.Converted] = []
    for item in adapter.read(str(tree / name), adapter.Options()):
        stored = plan._storable(item)
        if isinstance(stored, Record):
            found.append(convert.convert(stored, str(tree / name), adapter, recipe.media))
        else:
            found.append(stored)
    return found


PATHS = {
    "../canary/secret.jpg": "path_outside_root",
    "image/../../canary/secret.jpg": "path_outside_root",
    "image/../image/awe/awe_00011.jpg": "path_outside_root",
    "{canary}/secret.jpg": "path_outside_root",
    "/etc/passwd": "path_outside_root",
    "\\\\server\\share\\x.jpg": "path_outside_root",
    "..\\canary\\secret.jpg": "path_outside_root",
    "link.jpg": "path_outside_root",
    "up/secret.jpg": "path_outside_root",
    "loop.jpg": "missing_media",
    "image": "not_media",
    "pipe.jpg": "not_media",
    "http://127.0.0.1/x.jpg": "missing_media",
    "file:///etc/passwd": "missing_media",
    "a\x00b.jpg": "path_outside_root",
    "\ud800.jpg": "bad_row",
    "x" * 10_000: "missing_media",
}


def test_each_hostile_path_in_an_annotation_costs_its_row_with_the_right_reason(tmp_path):
    secret = canary(tmp_path / "canary")
    root = tmp_path / "emoset"
    fixtures.build("emoset", root)
    (root / "link.jpg").symlink_to(secret / "secret.jpg")
    (root / "up").symlink_to(secret)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    whole = json.loads((root / "test.json").read_text())
    rows = [["awe", f"bad_{number}", path.format(canary=secret), ""] for number, path in enumerate(PATHS)]
    (root / "test.json").write_text(json.dumps([*rows, *whole]))
    found = items(tmp_path, "emoset")
    reasons = [item.reason for item in found if isinstance(item, Reject) and "/test/bad_" in item.uid]
    assert reasons == list(PATHS.values())
    kept = [item.sample for item in found if isinstance(item, convert.Converted)]
    assert len([sample for sample in kept if "/test/" in sample["uid"]]) == len(whole)
    hidden = {path.read_bytes() for path in secret.iterdir()}
    assert not [
        part for sample in kept for medium in sample["media"] for part in medium["data"] if part in hidden
    ]


def test_archives_in_a_root_are_never_unpacked_and_nothing_is_written_there(tmp_path):
    """Users unpack what they downloaded; no adapter opens an archive, so a hostile one stays a file."""
    root = tmp_path / "emoset"
    fixtures.build("emoset", root)
    with zipfile.ZipFile(root / "image.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "x")
        archive.writestr("/tmp/escaped.txt", "x")
    with tarfile.open(root / "annotation.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("image/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    items(tmp_path, "emoset")
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_adapters_have_nothing_to_open_run_or_unpack_with():
    """They read through `readers`, `pickles` and the modules for other formats beside them."""
    forbidden = {
        "os",
        "io",
        "pathlib",
        "shutil",
        "subprocess",
        "socket",
        "urllib",
        "requests",
        "pickle",
        "marshal",
    }
    forbidden |= {
        "shelve",
        "tarfile",
        "zipfile",
        "gzip",
        "bz2",
        "lzma",
        "ctypes",
        "importlib",
        "glob",
        "pandas",
        "yaml",
    }
    for name in fixtures.NAMES:
        path = PROJECT / f"{sources.REGISTRY[name].replace('.', '/')}.py"
        assert not imported(path) & forbidden, name
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "eval", "exec", "compile", "__import__", "globals"}, name


def test_nothing_in_the_package_unpickles_evaluates_or_unpacks():
    unpacking = {"shelve", "marshal", "zipfile", "dill", "joblib", "cloudpickle"}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        assert not imported(path) & unpacking, name
        assert "pickle" not in imported(path) or name == "sources/pickles.py"
        assert "tarfile" not in imported(path) or name == "exports/tar_shards.py"  # which only writes


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_of_100_mb_is_one_reject(tmp_path):
    root = tmp_path / "hateful_memes"
    fixtures.build("hateful_memes", root)
    whole = items(tmp_path, "hateful_memes")
    before = Counter(isinstance(item, Reject) for item in whole)
    kept = next(item.sample["uid"] for item in whole if isinstance(item, convert.Converted))
    _, split, native = kept.split("/")
    path = root / f"{split}.jsonl"
    lines = path.read_text().split("\n")
    number = next(
        n for n, line in enumerate(lines) if f'"id": {native}' in line or f'"id": "{native}"' in line
    )
    lines[number] = json.dumps({**json.loads(lines[number]), "text": "x" * (100 << 20)})
    path.write_text("\n".join(lines))
    started = time.monotonic()
    found = items(tmp_path, "hateful_memes")
    assert time.monotonic() - started < 60
    after = Counter(isinstance(item, Reject) for item in found)
    assert after.total() == before.total() and after[True] == before[True] + 1
    huge = [item for item in found if isinstance(item, Reject) and item.reason == "too_large"]
    assert len(huge) == 1 and str(quality.MAX_TEXT_CHARS) in huge[0].detail and len(huge[0].detail) < 500


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {marker}']",
        "name: !!python/object/new:subprocess.Popen [['touch', '{marker}']]",
        "? !!python/object/apply:os.system ['touch {marker}']\n: 1",
        "sources: [!!python/name:os.system]",
        "!!python/object/apply:eval [\"open('{marker}', 'w')\"]",
        "a: &a [x, x]\n" + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(25)),
        "a: &a [*a]",
        "[" * 100_000,
        "a: " * 50_000,
        "seed: " + "9" * 5000,
        "name: 2024-99-99",
        "name: x\nname: y",
        "x" * (2 << 20),
        "\x00",
        "a: \ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_a_hostile_recipe_is_a_clear_error_that_runs_nothing(tmp_path, text):
    marker, path = tmp_path / "ran", tmp_path / "recipe.yaml"
    path.write_text(text.replace("{marker}", str(marker)), encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        load_recipe(str(path))
    assert str(path) in str(error.value) and len(str(error.value)) < 2000
    assert not marker.exists() and time.monotonic() - started < 10


def test_a_hostile_override_is_a_clear_error_that_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    for value in (
        f"seed=!!python/object/apply:os.system ['touch {marker}']",
        f"sources.emoji_pictures.options=!!python/object/apply:os.system ['touch {marker}']",
        "__class__.__init__=1",
        "seed=" + "[" * 50_000,
    ):
        with pytest.raises(UsageError):
            load_recipe("smoke", [value])
    assert not marker.exists()


def test_a_manifest_that_lies_is_a_clear_error(tmp_path):
    for text in ("", "[]", "{}", '{"schema_version": "9"}', "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises((ValueError, RecursionError)) as error:
            manifest.read_manifest(str(tmp_path))
        assert "manifest.json" in str(error.value)


def test_the_limits_of_media_can_be_set_but_not_taken_away():
    for name in ("max_pixels", "max_file_mb", "max_seconds", "timeout_s", "max_side_px", "video_frames"):
        for value in (0, -1, float("nan"), None):
            with pytest.raises(ValueError):
                MediaSettings.model_validate({name: value})
