"""A small EmoBench and tiny random models, one per fold, as a training would leave them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from emollm.evaluate.plan import Shard
from tests.emollm.evaluate.emobench import FOLDS, write_emobench
from tests.fixtures.tiny_models import LANGUAGE, VISION, write_tiny_models


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emobench(tmp_path_factory.mktemp("emobench"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, bench: Path) -> Path:
    """Fold models that differ, and whose answers depend on the picture (MVP's last layers are no longer zero)."""
    import torch

    from emollm.config import TrainRecipe
    from emollm.train.build import initial_model

    folder = tmp_path_factory.mktemp("trained")
    write_tiny_models(folder / "foundations")
    recipe = TrainRecipe.model_validate(
        {
            "name": "tiny",
            "data": str(bench),
            "out": str(folder / "model"),
            "foundation": {
                "vision": str(folder / "foundations" / VISION),
                "language": str(folder / "foundations" / LANGUAGE),
                "image_size": 56,
            },
            "mvp": {
                "width": 16,
                "heads": 2,
                "content_queries": 2,
                "tokens_per_image": 4,
                "tokens_per_frame": 1,
            },
            "lora": {"rank": 2},
        }
    )
    folds = []
    for fold in range(FOLDS):
        model, processor = initial_model(recipe, seed=fold)
        torch.manual_seed(fold)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.trained_names():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / "model" / f"fold-{fold}")
        processor.save_pretrained(folder / "model" / f"fold-{fold}")
        folds.append({"fold": fold, "path": f"fold-{fold}"})
    training: dict[str, Any] = {
        "schema_version": "1.0", "inputs_digest": "tiny", "model_digest": "tiny-weights", "folds": folds,
        "recipe": recipe.model_dump(mode="json"), "data_digest": json.loads((bench / "manifest.json").read_text())["digest"],
    }  # fmt: skip
    (folder / "model" / "training.json").write_text(json.dumps(training))
    return folder / "model"


def in_this_process(shards: Sequence[Shard], job: Any, workers: int) -> Iterator[int]:
    """Scores shards as an actor does, without the processes around it."""
    from emollm.evaluate.run import ShardScorer

    scorer = ShardScorer(job)
    for shard in shards:
        scorer.score(shard)
        yield len(shard.questions)


@pytest.fixture(scope="session")
def evaluation(bench: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole evaluation in batches of 8."""
    from emollm.config import EvaluateRecipe
    from emollm.evaluate import run
    from emollm.evaluate.results import evaluate

    out = tmp_path_factory.mktemp("evaluation")
    recipe = EvaluateRecipe.model_validate({"bootstrap": {"samples": 200}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_on_ray", in_this_process)
        evaluate(str(model_dir), str(bench), str(out), recipe)
    return out
