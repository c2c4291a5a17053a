"""Tiny foundations, a small EmoBench and a recipe over them, made once for all tests of the model and the training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def foundations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fixtures.tiny_models import write_tiny_models

    folder = tmp_path_factory.mktemp("foundations")
    write_tiny_models(folder)
    return folder


@pytest.fixture(scope="session")
def small_emobench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.emollm.train.small_emobench import write_emobench

    return write_emobench(tmp_path_factory.mktemp("data") / "emobench")


@pytest.fixture
def tiny_overrides(foundations: Path, small_emobench: Path, tmp_path: Path) -> list[str]:
    return [
        f"data={small_emobench}",
        f"out={tmp_path / 'model'}",
        f"foundation.vision={foundations / 'dinov2-small'}",
        f"foundation.language={foundations / 'smollm2-135m-instruct'}",
    ]


@pytest.fixture
def tiny_recipe(tiny_overrides: list[str]):
    from emollm.config import load_recipe

    return load_recipe("smoke", tiny_overrides)
