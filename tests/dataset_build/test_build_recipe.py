"""Recipes: every published one loads, overrides reach every field, and mistakes name the nearest valid key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_build.errors import BuildError, UsageError
from dataset_build.recipe import inputs_digest, load_recipe, shipped_recipes
from tests.fixtures.emoji_tree import smoke_overrides, write_emoji_tree


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert all(recipe.source_options(spec) is not None for spec in recipe.sources)


def test_overrides_reach_sources_by_name_and_by_number():
    recipe = load_recipe(
        "smoke", ["sources.jokes.options.per_label=3", "sources.0.root=elsewhere", "seed=5", "splits.folds=3"]
    )
    assert recipe.source_options(recipe.sources[3]).per_label == 3
    assert (recipe.sources[0].root, recipe.seed, recipe.splits.folds) == ("elsewhere", 5, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("media.max_side=3", r"unknown key 'media.max_side'; did you mean 'max_side_px'\?"),
        ("sede=3", r"unknown key 'sede'; did you mean 'seed'\?"),
        ("sources.joke.root=x", r"no entry 'joke'; did you mean 'jokes'\?"),
        (
            "sources.jokes.options.per_lable=3",
            r"sources.jokes.options.per_lable'; did you mean 'per_label'\?",
        ),
        ("sources.gestures.options.tones=[green]", r"sources.gestures.options.tones"),
        ("sources.jokes.name=joks", r"no source 'joks'; did you mean 'jokes'\?"),
        ("seed=many", r"seed: .* found 'many'"),
        ("splits.test_share=0.95", "nothing is left to train on"),
        ("seed.deep=1", r"seed is a value"),
        ("seed", r"expected KEY=VALUE"),
        ("seed=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_a_usage_error_that_helps(override, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("smoke", [override])


def test_an_unknown_recipe_and_a_broken_file_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"no recipe 'quickstat'; did you mean 'quickstart'\?"):
        load_recipe("quickstat")
    for content, message in (
        ("- a list", "a recipe is a mapping"),
        ("a: [", "not a YAML file"),
        ("a: !!python/object:os.system {}", "not a YAML"),
    ):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(UsageError, match=message):
            load_recipe(str(tmp_path / "r.yaml"))


def test_the_inputs_digest_follows_recipe_and_files_but_not_folders(tmp_path):
    write_emoji_tree(tmp_path / "tree", emoji_per_feeling=1, clips=0, texts_per_kind=2)
    recipe = load_recipe("smoke", smoke_overrides(tmp_path / "tree", tmp_path / "out"))
    digest = inputs_digest(recipe)
    (tmp_path / "tree").rename(tmp_path / "moved")
    moved = load_recipe("smoke", smoke_overrides(tmp_path / "moved", tmp_path / "other"))
    assert inputs_digest(moved) == digest
    assert (
        inputs_digest(load_recipe("smoke", [*smoke_overrides(tmp_path / "moved", tmp_path), "seed=1"]))
        != digest
    )
    os.utime(tmp_path / "moved" / "emoji" / "google" / "img" / "1f600.png", ns=(1, 1))
    assert inputs_digest(moved) != digest
    with pytest.raises(BuildError, match="source emoji_pictures: its folder .* is not there"):
        inputs_digest(recipe)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["build", "nope"], 2, "no recipe"), (["verify", "nowhere"], 1, "no finished build")],
)
def test_the_command_line_explains_without_a_traceback(arguments, code, message):
    done = subprocess.run(
        [sys.executable, "-m", "dataset_build", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_counts_without_writing(tmp_path):
    write_emoji_tree(tmp_path / "tree", emoji_per_feeling=1, clips=1, texts_per_kind=2)
    overrides = [
        part
        for override in smoke_overrides(tmp_path / "tree", tmp_path / "out")
        for part in ("--set", override)
    ]
    line = [sys.executable, "-m", "dataset_build", "build", "smoke", *overrides, "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    counts = next(row.split() for row in done.stdout.splitlines() if row.startswith("emoji_pictures"))
    assert counts[:4] == ["emoji_pictures", "in", "folds", "60"]  # 24 emo_c, 24 emo_o, 12 left out
    assert not (tmp_path / "out").exists()


def test_sources_are_listed():
    done = subprocess.run(
        [sys.executable, "-m", "dataset_build", "sources"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "emoji_pictures" in done.stdout and "Apache-2.0" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys, dataset_build.__main__ as m\ntry:\n m.main(['--help'])\nexcept SystemExit:\n pass\n"
    code += "assert not {'pydantic', 'yaml', 'numpy', 'pyarrow', 'ray', 'torch', 'PIL'} & set(sys.modules), 'heavy import'"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
