"""A second build leaves the files alone that it would write just so again, and only those."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_build import media, pipeline, provenance
from dataset_build.recipe import BuildRecipe
from tests.benchmarks.build_scale import write_tree
from tests.fixtures import plain_build

WRITE_FILE, STORED_SIZE = pipeline.write_file, media.stored_size


def build(out: Path, **roots: Path) -> dict[str, Any]:
    settings = {
        "name": "written",
        "out": str(out),
        "sources": [{"name": name, "root": str(root)} for name, root in roots.items()],
        "shard_rows": 4,
        "rows_per_file": 5,
    }
    return plain_build.build(BuildRecipe.model_validate(settings))


def faces(root: Path, seed: int) -> Path:
    """Two train and two test pictures in RAF-DB's layout."""
    write_tree(root / "made", 4 + seed, 24)
    lines = []
    for number, path in enumerate(sorted((root / "made/image").rglob("*.jpg"))[:4]):
        name = f"{('train', 'test')[number % 2]}_{number:05d}"
        target = root / f"basic/Image/aligned/{name}_aligned.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        lines.append(f"{name}.jpg {number + 1}")
    (root / "basic/EmoLabel").mkdir()
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished build of two sources below `out`, the sources beside it."""
    folder = tmp_path_factory.mktemp("written")
    write_tree(folder / "scenes", 30, 24)
    faces(folder / "faces", 1)
    faces(folder / "other faces", 2)
    build(folder / "out", emoset=folder / "scenes", raf_db=folder / "faces")
    return folder


class Copy:
    """A copy of the build without its manifest, so that it is built again; what is written and opened then."""

    def __init__(self, made: Path, out: Path) -> None:
        self.out, self.wrote, self.opened = out, list[str](), 0
        shutil.copytree(made / "out", out)
        (out / "manifest.json").unlink()

    def write_file(self, task: dict[str, Any]) -> dict[str, Any]:
        self.wrote.append(task["path"])
        return WRITE_FILE(task)

    def stored_size(self, data: bytes) -> tuple[int, int]:
        self.opened += 1
        return STORED_SIZE(data)


@pytest.fixture
def copy(made, tmp_path, monkeypatch) -> Copy:
    found = Copy(made, tmp_path / "out")
    monkeypatch.setattr(pipeline, "write_file", found.write_file)
    monkeypatch.setattr(media, "stored_size", found.stored_size)
    return found


def test_a_build_that_was_only_asked_for_again_writes_and_opens_nothing(made, copy):
    before = json.loads((made / "out/manifest.json").read_text())
    after = build(copy.out, emoset=made / "scenes", raf_db=made / "faces")
    assert (copy.wrote, copy.opened) == ([], 0)
    assert (after["digest"], after["files"]) == (before["digest"], before["files"])


def test_a_changed_source_costs_its_own_files_and_gives_what_a_new_build_gives(made, copy, tmp_path):
    after = build(copy.out, emoset=made / "scenes", raf_db=made / "other faces")
    assert copy.wrote and all("raf_db" in path for path in copy.wrote)
    assert copy.opened == 4
    new = build(tmp_path / "new", emoset=made / "scenes", raf_db=made / "other faces")
    assert (after["digest"], after["files"]) == (new["digest"], new["files"])


@pytest.mark.parametrize("harm", ["one bit", "cut", "gone"])
def test_a_file_that_is_no_longer_as_it_was_is_written_again(made, copy, harm):
    path = "train/emoset-00000.parquet"
    whole = bytearray((copy.out / path).read_bytes())
    if harm == "one bit":
        whole[len(whole) // 2] ^= 1
        (copy.out / path).write_bytes(whole)
    elif harm == "cut":
        (copy.out / path).write_bytes(whole[:-1])
    else:
        (copy.out / path).unlink()
    after = build(copy.out, emoset=made / "scenes", raf_db=made / "faces")
    assert copy.wrote == [path]
    assert after["digest"] == json.loads((made / "out/manifest.json").read_text())["digest"]


def test_other_code_writes_everything_again(made, copy, monkeypatch):
    digest = provenance.code_digest

    def other(packages, leave_out=()):
        return digest(packages, leave_out) if leave_out else "of other code"

    monkeypatch.setattr(provenance, "code_digest", other)
    after = build(copy.out, emoset=made / "scenes", raf_db=made / "faces")
    assert sorted(copy.wrote) == sorted(path for path in after["files"] if "/" in path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"train/emoset-00000.parquet": {}}'])
def test_a_list_that_says_nothing_costs_only_the_writing(made, copy, text):
    (copy.out / ".work/written.json").write_text(text)
    after = build(copy.out, emoset=made / "scenes", raf_db=made / "faces")
    assert sorted(copy.wrote) == sorted(path for path in after["files"] if "/" in path)


def test_a_build_whose_files_do_not_verify_remembers_none(made, copy, monkeypatch):
    os.unlink(copy.out / ".work/written.json")
    monkeypatch.setattr(media, "stored_size", lambda data: (1, 1))
    with pytest.raises(ValueError, match="the written files do not verify"):
        build(copy.out, emoset=made / "scenes", raf_db=made / "faces")
    assert not (copy.out / ".work/written.json").exists()
