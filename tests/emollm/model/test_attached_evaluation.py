"""A fold of an attached model evaluated from end to end, without the processes of Ray around it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from emollm.config import EvaluateRecipe, FoundationConfig, TrainRecipe
from emollm.evaluate import run
from emollm.evaluate.results import evaluate
from emollm.train.build import initial_model
from emollm.train.loop import train_fold
from tests.emollm.evaluate.conftest import in_this_process
from tests.emollm.evaluate.emobench import make_rows, write_emobench
from tests.fixtures import tiny_mllms


def test_every_row_is_answered_by_its_fold_and_batch_size_changes_nothing(
    tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_on_ray", in_this_process)
    rows = make_rows()
    for row in rows:
        if row["source"] == "jokes":  # their cards are 192 x 64
            row["media"][0] |= {"width": 192, "height": 64}
    bench = write_emobench(tmp_path / "bench", rows)
    tiny_mllms.write("qwen2_5_vl", tmp_path / "mllm")
    foundation = FoundationConfig(family="attached", mllm=str(tmp_path / "mllm"), max_side_px=32)
    recipe = tiny_recipe.model_copy(
        update={"foundation": foundation, "data": str(bench), "out": str(tmp_path / "model")}
    )
    folds = []
    for fold in sorted({row["fold"] for row in rows if row["fold"] is not None}):
        model, processor = initial_model(recipe, fold)
        torch.manual_seed(fold)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.trained_names():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "model" / f"fold-{fold}")
        processor.save_pretrained(tmp_path / "model" / f"fold-{fold}")
        folds.append({"fold": fold, "path": f"fold-{fold}"})
    training = {
        "schema_version": "1.0", "inputs_digest": "tiny", "model_digest": "tiny-weights", "folds": folds,
        "recipe": recipe.model_dump(mode="json"), "data_digest": json.loads((bench / "manifest.json").read_text())["digest"],
    }  # fmt: skip
    (tmp_path / "model" / "training.json").write_text(json.dumps(training))
    found = []
    for batch_size in (1, 8):
        settings = EvaluateRecipe.model_validate(
            {"bootstrap": {"samples": 100}, "batch_size": batch_size, "linear_probe": batch_size == 8}
        )
        out = tmp_path / f"out-{batch_size}"
        evaluate(str(tmp_path / "model"), str(bench), str(out), settings)
        records = pq.read_table(out / "samples.parquet").to_pylist()
        found.append(
            [
                tuple(r[n] for n in ("uid", "answer", "status", "text_only_answer", "untrained_answer"))
                for r in records
            ]
        )
    assert found[0] == found[1] and found[0]
    closed = {record["status"] for record in records if record["sub_task"] != "emo_o"}
    assert closed == {"ok"} and len({answer for _, answer, *_ in found[0]}) > 1


def test_with_both_perspectives_off_training_ends_and_reports_none(
    tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    tiny_mllms.write("smolvlm", tmp_path / "mllm")
    foundation = FoundationConfig(family="attached", mllm=str(tmp_path / "mllm"))
    mvp = tiny_recipe.mvp.model_copy(update={"content": False, "relation": False})
    result = train_fold(tiny_recipe.model_copy(update={"foundation": foundation, "mvp": mvp}), 0, "off")
    assert result["perspectives"] == {}
