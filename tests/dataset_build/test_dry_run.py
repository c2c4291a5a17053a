"""The dry run: counts, files and bytes from the annotation and the file system alone, in seconds."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest

from dataset_build import dry, pipeline, sources, video
from dataset_build.errors import BuildError
from dataset_build.recipe import BuildRecipe
from dataset_build.schema import MediaRef, Record
from dataset_build.sources import base
from tests.fixtures import plain_build
from tests.fixtures import sources as fixtures


def recipe(name: str, root: Path, **more) -> BuildRecipe:
    raw = {
        "name": "dry",
        "out": str(root / "out"),
        "root": str(root),
        "sources": [{"name": name, "root": name}],
    }
    return BuildRecipe.model_validate({**raw, **more})


@pytest.fixture
def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run opened a medium")

    monkeypatch.setattr(PIL.Image, "open", refuse)
    monkeypatch.setattr(video, "read_clip", refuse)


def test_a_dry_run_counts_rows_files_and_bytes_and_opens_nothing(tmp_path, capsys, nothing_is_opened):
    planted = fixtures.build("emoset", tmp_path / "emoset")
    counted = pipeline.dry_run(recipe("emoset", tmp_path))["emoset"]
    assert Counter({split: one.records for split, one in counted.items()}) == planted.splits
    assert sum(one.rejects for one in counted.values()) == 2  # an unknown label and an id that repeats
    files = [path for path in (tmp_path / "emoset" / "image").rglob("*") if path.is_file()]
    assert sum(one.files for one in counted.values()) == len(files)
    assert sum(one.n_bytes for one in counted.values()) == sum(path.stat().st_size for path in files)
    assert sum(one.absent for one in counted.values()) == 3  # one missing, one empty, one outside the root
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("emoset", "train", "output, about", "KiB"))
    assert (
        "warning: the build would fail: emoset loses 5 of 35 rows, the recipe's reject_budget is 1.00%"
        in printed
    )
    assert f"To {tmp_path}/out: " in printed
    assert not (tmp_path / "out").exists()


def test_a_source_without_rows_is_an_error_and_not_a_build_without_it(tmp_path):
    fixtures.build("emoset", tmp_path / "emoset")
    for split in ("train", "val", "test"):
        (tmp_path / "emoset" / f"{split}.json").write_text("[]")
    with pytest.raises(BuildError, match="emoset: its annotation in .* holds no row; fetch"):
        pipeline.dry_run(recipe("emoset", tmp_path))
    with pytest.raises(BuildError, match="emoset: its annotation in .* holds no row; fetch"):
        plain_build.build(recipe("emoset", tmp_path))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_within_the_budget_give_no_warning(tmp_path, capsys):
    fixtures.build("emoset", tmp_path / "emoset")
    pipeline.dry_run(recipe("emoset", tmp_path, reject_budget=0.2))
    assert "warning" not in capsys.readouterr().out


def test_rows_whose_split_is_still_to_be_drawn_are_counted_apart(tmp_path, nothing_is_opened):
    planted = fixtures.build("fi", tmp_path / "fi")
    counted = dry.run(recipe("fi", tmp_path))["fi"]
    assert set(counted) == {"to draw"} and counted["to draw"].records == planted.records


def test_a_medium_that_many_rows_share_is_one_file(tmp_path, nothing_is_opened):
    fixtures.build("emoset", tmp_path / "emoset")
    once = dry.run(recipe("emoset", tmp_path))["emoset"]
    asked_twice = [{"name": "emoset", "root": "emoset", "options": {"ask": "both"}}]
    twice = dry.run(recipe("emoset", tmp_path, sources=asked_twice))["emoset"]
    for split, one in once.items():
        assert (twice[split].files, twice[split].n_bytes) == (one.files, one.n_bytes)
        assert twice[split].records == 2 * one.records


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BuildRecipe:
    """A source of 10,000 rows over 100 files."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.jpg").write_bytes(b"x" * 1000)
    adapter = types.ModuleType("large_source")
    adapter.NAME, adapter.VERSION, adapter.GROUP_KEY = "large", "1", "picture"
    adapter.PICTURES, adapter.SPLIT, adapter.Options = "photographs", "official", base.Options
    adapter.read = lambda root, options: (
        Record(
            f"large/train/{number}", "large", "humor", "train", (MediaRef("image", f"{number % 100}.jpg"),), "Yes", "1",
            "MIT", ("Yes", "No"), text=f"row {number} of a source that is larger than it looks", group_keys={"picture": str(number)},
        )
        for number in range(10_000)
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "large_source", adapter)
    monkeypatch.setitem(sources.REGISTRY, "large", "large_source")
    return recipe("large", tmp_path)


def test_ten_thousand_rows_take_less_than_three_seconds_of_cpu(large, nothing_is_opened):
    started = time.process_time()
    counted = dry.run(large)["large"]["train"]
    assert time.process_time() - started < 3
    assert (counted.records, counted.files, counted.n_bytes) == (10_000, 100, 100_000)


def test_the_command_prints_the_table_and_neither_torch_nor_ray_is_imported(tmp_path):
    fixtures.build("emoset", tmp_path / "emoset")
    content = recipe("emoset", tmp_path).model_dump_json()
    (tmp_path / "recipe.yaml").write_text(content)
    script = (
        "import sys\nfrom dataset_build.__main__ import main\n"
        f"code = main(['build', {str(tmp_path / 'recipe.yaml')!r}, '--dry-run'])\n"
        "assert not {'ray', 'torch'} & set(sys.modules)\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "output, about" in done.stdout
