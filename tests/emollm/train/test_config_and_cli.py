"""Recipes, overrides, digests, and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emollm.__main__ import main
from emollm.config import RecipeError, TrainRecipe, load_recipe, train_inputs_digest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["quickstart", "smoke"])
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.epoch=2", "unknown key 'tune.epoch'; did you mean 'tune.epochs'"),
        ("foundation.visoin=x", "did you mean 'foundation.vision'"),
        ("evaluate.bootstrap.sample=3", "did you mean 'evaluate.bootstrap.samples'"),
        ("tune.epochs=0", "tune.epochs.*greater than or equal to 1.*found 0"),
        ("align.sub_tasks=[humour]", "did you mean 'humor'"),
        ("mvp.tokens_per_image=15", "square number"),
        ("nonsense", "write KEY=VALUE"),
        ("name.deeper=1", "'name' is a plain value"),
    ],
)
def test_a_wrong_override_names_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", [override])


def test_overrides_are_read_as_yaml() -> None:
    recipe = load_recipe("quickstart", ["tune.learning_rate=1e-4", "folds=[0, 2]", "lora=null", "mix={}"])
    assert (
        recipe.tune.learning_rate == 1e-4
        and recipe.folds == (0, 2)
        and recipe.lora is None
        and recipe.mix == {}
    )


def test_digest_follows_what_matters(tiny_overrides: list[str], tmp_path: Path) -> None:
    def digest(*more: str, data: str = "d") -> str:
        return train_inputs_digest(load_recipe("smoke", [*tiny_overrides, *more]), data)

    assert digest() == digest(f"out={tmp_path}", "data=elsewhere", "evaluate.batch_size=3")
    assert len({digest(), digest("tune.epochs=3"), digest(data="other"), digest("seed=1")}) == 4


def test_dry_run_says_what_would_be_done(tiny_overrides: list[str], capsys: pytest.CaptureFixture) -> None:
    arguments = ["train", "smoke", "--dry-run"]
    for override in tiny_overrides:
        arguments += ["--set", override]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "fold 1: " in said and "steps of 8" in said and "M trained" in said and "GiB" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "smoke", "--set", "tun.epochs=1"], 2, "unknown key 'tun'; did you mean 'tune'"),
        (["train", "nothing"], 2, "no shipped recipe named 'nothing'"),
        (["train", "smoke", "--set", "data=/nowhere"], 1, "/nowhere/manifest.json: not there"),
        (["predict", "x.png", "--model", "/nowhere"], 1, "/nowhere: no trained model there"),
    ],
)
def test_errors_are_one_clean_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom emollm.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_predict_and_export_give_the_same_answer(
    tiny_recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import re

    from emollm.train.loop import train_fold
    from tests.emollm.train.small_emobench import picture

    train_fold(tiny_recipe, 0, "p")
    fold = str(Path(tiny_recipe.out) / "fold-0")
    image = tmp_path / "face.png"
    image.write_bytes(picture("joy", 3))
    assert main(["export", fold, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    said = []
    for model in (fold, str(tmp_path / "whole")):
        assert main(["predict", str(image), "--model", model, "--options", "joy,sadness,anger"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", said[0])]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=0.2)
    assert main(["export", fold, str(tmp_path / "whole")]) == 1
    (tmp_path / "text.png").write_text("not a picture")
    assert main(["predict", str(tmp_path / "text.png"), "--model", fold]) == 1


def test_absolute_paths_leave_parts_that_are_not_named_unnamed(tiny_recipe, monkeypatch, tmp_path) -> None:
    from emollm.train.run import with_absolute_paths

    absolute = with_absolute_paths(tiny_recipe)
    assert TrainRecipe.model_validate(absolute.model_dump()) == absolute
    assert absolute.foundation.mllm == "" and absolute.foundation.audio is None
    assert Path(absolute.foundation.vision).is_absolute()
