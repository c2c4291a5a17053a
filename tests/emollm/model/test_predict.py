"""`predict` and `export` on every family, through the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from emollm.__main__ import main
from emollm.config import FoundationConfig, TrainRecipe
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import picture
from tests.fixtures import tiny_mllms
from tests.fixtures.sources import base

OPTIONS = "joy,sadness,anger"


def saved(recipe: TrainRecipe, folder: Path) -> str:
    """A model as training leaves it: what it trains has moved."""
    model, processor = initial_model(recipe, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def said(capsys: pytest.CaptureFixture, *arguments: str) -> list[tuple[str, float]]:
    """(option, per cent) lines of `predict`, most probable first."""
    assert main(["predict", *arguments, "--options", OPTIONS]) == 0, capsys.readouterr().err
    lines = re.findall(r"^ +([\d.]+)%  (\w+)$", capsys.readouterr().out, re.MULTILINE)
    return [(option, float(share)) for share, option in lines]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    image = tmp_path / "face.png"
    image.write_bytes(picture("joy", 3, side=47))
    return [str(image), str(base.clip(tmp_path / "clip.mp4"))]


@pytest.mark.parametrize(
    "family, tuning",
    [
        *((family, "lora") for family in sorted(tiny_mllms.MLLMS)),
        ("smolvlm", "full"),
        ("qwen2_5_vl", "tied"),
        ("llava_onevision", "tied"),
    ],
)
def test_an_attached_model_answers_for_pictures_and_videos_and_so_does_its_export(
    tiny_recipe: TrainRecipe, family: str, tuning: str, tmp_path: Path, files: list[str], capsys
) -> None:
    tiny_mllms.write(family, tmp_path / "mllm", tied=tuning == "tied")
    recipe = TrainRecipe.model_validate(
        {
            **tiny_recipe.model_dump(),
            "foundation": FoundationConfig(
                family="attached", mllm=str(tmp_path / "mllm"), max_side_px=32
            ).model_dump(),
            "lora": tiny_recipe.lora.model_dump() if tuning == "lora" else None,
            "full_language": tuning != "lora",
        }
    )
    fold = saved(recipe, tmp_path / "fold")
    expected = said(capsys, *files, "--model", fold, "--text", "Well done!")
    assert len(expected) == 6 and len({share for _, share in expected}) > 1
    assert main(["export", fold, str(tmp_path / "whole")]) == 0
    (tmp_path / "mllm").rename(tmp_path / "gone")  # an export needs no foundation
    capsys.readouterr()
    assert said(capsys, *files, "--model", str(tmp_path / "whole"), "--text", "Well done!") == expected
    (tmp_path / "gone").rename(tmp_path / "mllm")
    assert main(["export", fold, str(tmp_path / "merged"), "--merge"]) == 0
    capsys.readouterr()
    merged = said(capsys, *files, "--model", str(tmp_path / "merged"), "--text", "Well done!")
    assert [option for option, _ in merged] == [option for option, _ in expected]
    assert [share for _, share in merged] == pytest.approx([share for _, share in expected], abs=0.11)


@pytest.mark.parametrize("hears", [False, True])
def test_a_composed_model_sees_the_frames_of_a_video_and_hears_its_sound(
    tiny_recipe: TrainRecipe, foundations: Path, tmp_path: Path, files: list[str], capsys, hears: bool
) -> None:
    from tests.fixtures.tiny_models import AUDIO

    audio = str(foundations / AUDIO) if hears else None
    foundation = tiny_recipe.foundation.model_copy(update={"audio": audio, "tokens_per_audio": 2})
    fold = saved(tiny_recipe.model_copy(update={"foundation": foundation}), tmp_path / "fold")
    silent = str(base.clip(tmp_path / "silent.mp4", seed="clip", sound=False))
    two, four = (said(capsys, files[1], "--model", fold, "--frames", frames) for frames in ("2", "4"))
    assert len(two) == 3 and two != four
    assert main(["export", fold, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert said(capsys, files[1], "--model", str(tmp_path / "whole")) == four
    assert len(said(capsys, silent, "--model", fold)) == 3


def test_a_file_that_is_neither_picture_nor_video_is_named(
    tiny_recipe: TrainRecipe, tmp_path: Path, capsys
) -> None:
    fold = saved(tiny_recipe, tmp_path / "fold")
    (tmp_path / "text.png").write_text("not a picture")
    assert main(["predict", str(tmp_path / "text.png"), "--model", fold]) == 1
    assert "text.png: neither a picture nor a video that can be used" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.png"), "--model", fold]) == 1
    assert "none.png: cannot be read" in capsys.readouterr().err
