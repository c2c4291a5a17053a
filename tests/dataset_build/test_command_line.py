"""The command line used wrongly: one line that says what to do, exit code 2 (1 for the data), never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build import recipe_file
from dataset_build.__main__ import main
from dataset_build.errors import UsageError
from dataset_build.recipe import load_recipe

ONE_SOURCE = "sources: [{name: jokes, root: .}]\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse
        code = int(str(left.code))
    return code, capsys.readouterr().err


RECIPES = {
    "a tab": ("name: x\nsources:\n\t- {name: jokes}\n", "line 3, column 1: .*replace the tab"),
    "an object tag": ("name: !!python/object/apply:os.system ['touch pwned']\n", "take the tag away"),
    "a name tag": ("name: !!python/name:os.system\n", "take the tag away"),
    "an alias": ("a: &a [x, x]\nb: [*a, *a]\n", r"\*a: aliases are not read, write the value out"),
    "nested without end": ("[" * 50_000, "nested too deeply"),
    "not UTF-8": (b"\xff\xfe\x00a", "save it as UTF-8"),
    "a NUL": ("a\x00b", "unacceptable character"),
    "a key twice": ("name: x\nname: y\n", "line 2, column 1: .*'name' is there twice"),
    "a date that is none": ("name: 2024-13-45\n", "month must be in"),
    "a list as key": ("? [a, b]\n: c\n", "unhashable key"),
    "open brackets": ("a: {b: [c\n", "expected ',' or '\\]'"),
    "nothing": ("", "a mapping of keys to values, found nothing"),
    "a list": ("- a\n", "found a list"),
    "too large": ("#" * (recipe_file.MAX_BYTES + 1), "too large for a recipe"),
    "no sources": ("name: x\nout: o\n", "sources: is missing"),
    "empty sources": ("name: x\nout: o\nsources: []\n", "expected a list with at least one entry, found \\[\\]"),
    "a number of sources": ("name: x\nout: o\nsources: 5\n", "sources: expected a list, found 5"),
    "odd sources": ("name: x\nout: o\nsources: [1, {name: jokes}]\n", "sources.0: expected keys with values, found 1; "),
    "an unknown source": ("name: x\nout: o\nsources: [{name: joks, root: .}]\n", "no source 'joks'; did you mean 'jokes'"),
    "a wrong key": (f"name: x\nout: o\nsede: 3\n{ONE_SOURCE}", "unknown key 'sede'; did you mean 'seed'"),
    "a wrong key of rewriting": (
        f"name: x\nout: o\nrewriting: {{base_url: 'http://h/v1', model: m, api_key: k}}\n{ONE_SOURCE}",
        "unknown key 'rewriting.api_key'; did you mean 'api_key_env'",
    ),
    "an unknown style": (f"name: x\nout: o\ninstructions: {{answer_style: rhyme}}\n{ONE_SOURCE}", "answer_style: .*rhyme"),
    "wrong types": (f"name: x\nout: o\nroot: 5\nmedia: 7\n{ONE_SOURCE}", "root: expected text, found 5; media: expected keys"),
    "a number as key": (f"name: x\nout: o\n1: 2\n{ONE_SOURCE}", "1: Keys should be strings"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_recipe_is_one_line_with_a_remedy(name, tmp_path, capsys, monkeypatch):
    content, words = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, error = run(capsys, "build", str(path), "--dry-run")
    assert code == 2
    assert error.startswith(f"dataset_build: {path}") and error.count("\n") == 1 and len(error) < 700
    with pytest.raises(UsageError, match=words):
        load_recipe(str(path))
    assert os.listdir(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "quickstat"], 2, "did you mean 'quickstart'?"),
        (["build", "x" * 5_000], 2, "there is no recipe"),
        (["build", "a\x00b"], 2, "there is no recipe"),
        (["build", "FOLDER"], 2, "is a folder; name the YAML file in it"),
        (["build", "smoke", "--workers", "0"], 2, "at least one is needed"),
        (["build", "smoke", "--workers", "x"], 2, "invalid int value: 'x'"),
        (["build", "smoke", "--set", "sources.jokes.options=3"], 2, "expected keys with values, found 3"),
        (["build", "smoke", "--set", "seed=!!python/name:os.system"], 2, "take the tag away"),
        (["build", "smoke", "--set", "seed=[*a]"], 2, "aliases are not read"),
        (["build", "smoke", "--set", "root=FOLDER", "--set", "out=FOLDER/out", "--dry-run"], 1, "is not there"),
        (["build", "smoke", "--set", "root=FOLDER", "--set", "out=FOLDER/out"], 1, "its folder FOLDER/emoji is not there"),
        (["build", "smoke", "--set", "root=FOLDER", "--set", "out=FOLDER/emoji/"], 2, "out is the folder of source 'emoji_pictures'"),
        (["verify", "FOLDER"], 1, "holds no finished build; run `python -m dataset_build build`"),
        (["stats", "FOLDER"], 1, "holds no finished build"),
        (["stats", "FOLDER/file"], 1, "holds no finished build"),
        (["stats"], 2, "the following arguments are required: out"),
        (["sell"], 2, "invalid choice: 'sell'"),
        ([], 2, "required: COMMAND"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_explained(arguments, code, words, tmp_path, capsys):
    (tmp_path / "file").write_text("{")
    found, error = run(capsys, *(part.replace("FOLDER", str(tmp_path)) for part in arguments))
    assert found == code
    assert words.replace("FOLDER", str(tmp_path)) in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "missing; build again"), ('{"digest": 1}', "missing; build again")],
)
@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_broken_manifest_is_explained(command, content, words, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text(content)
    code, error = run(capsys, command, str(tmp_path))
    assert code == 1 and words in error and error.count("\n") == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["name", "out", "root", "seed", "sources", "media", "splits", "instructions", "rewriting", "x"]
)


@given(st.dictionaries(keys, values, max_size=6))
@settings(deadline=None, max_examples=80)
def test_any_values_in_a_recipe_are_a_usage_error_or_a_recipe(tmp_path_factory, content):
    import yaml

    path = tmp_path_factory.mktemp("any") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UsageError) as refused:  # none of these has a good list of sources
        load_recipe(str(path))
    assert "\n" not in str(refused.value)


@given(st.text(max_size=40) | st.text(alphabet="{}[]:,-&*!|>'\"# \n\tab", max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_text_as_a_value_is_yaml_or_a_usage_error(text):
    try:
        recipe_file.parse(text, "--set")
    except UsageError as error:
        assert "\n" not in str(error)


def test_every_command_shows_examples():
    import shlex

    for command in ("sources", "check", "build", "verify", "stats"):
        done = subprocess.run(
            [sys.executable, "-m", "dataset_build", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        examples = [
            line.strip() for line in done.stdout.split("examples:\n")[1].split("\n\n")[0].splitlines()
        ]
        assert examples and all(
            shlex.split(line)[:4] == ["python", "-m", "dataset_build", command] for line in examples
        )
        assert "Exit codes: 0 done, 1 a problem with the data or their store, 2" in done.stdout


def test_a_reader_that_stops_early_gets_no_traceback(tmp_path):
    line = f"{sys.executable} -m dataset_build sources | head -1"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert (
        done.stdout.startswith("source ")
        and "Traceback" not in done.stderr
        and "Exception" not in done.stderr
    )
