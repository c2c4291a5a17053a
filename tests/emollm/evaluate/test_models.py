"""What `--model` may name, where its results go, and which rows it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emollm.config import EvaluateRecipe
from emollm.evaluate.models import EMOLLM, ENDPOINT, TRANSFORMERS, default_out, kind_of, read_model
from emollm.evaluate.protocol import EvaluationError, read_rows, select_rows
from emollm.evaluate.recipe import EndpointConfig
from tests.emollm.evaluate.emobench import FOLDS


def endpoint(**values: Any) -> EvaluateRecipe:
    return EvaluateRecipe(mode="generate", endpoint=EndpointConfig(url="http://127.0.0.1:1/v1"), **values)


def test_the_kind_is_read_from_the_spelling_or_the_folder(model_dir: Path, foundations: Path) -> None:
    assert kind_of(str(model_dir)) == kind_of(str(model_dir / "fold-0")) == EMOLLM
    assert kind_of("hf:owner/name") == kind_of(str(foundations / "smollm2-135m-instruct")) == TRANSFORMERS
    assert kind_of("openai:gpt") == ENDPOINT


@pytest.mark.parametrize(
    ("spec", "values", "out"),
    [
        ("runs/a/model", {}, "runs/a/evaluation"),
        ("runs/a/model/", {"mode": "generate"}, "runs/a/evaluation-generate"),
        ("runs/a/model", {"ablation": "image_only", "calibrate": True}, "runs/a/evaluation-image_only-calibrated"),
        ("runs/a/model", {"option_form": "letter"}, "runs/a/evaluation-as_letter"),
        ("hf:owner/name", {}, "runs/owner_name/evaluation"),
        ("hf:../../x y", {}, "runs/x_y/evaluation"),
        ("openai:a/b:c", {"mode": "generate"}, "runs/a_b_c/evaluation-generate"),
    ],
)  # fmt: skip
def test_each_way_of_asking_has_a_folder_of_its_own(spec: str, values: dict[str, Any], out: str) -> None:
    assert default_out(spec, EvaluateRecipe(**values)) == out


def test_a_look_at_some_rows_or_one_fold_leaves_the_results_of_all_alone() -> None:
    few = default_out("runs/a/model", EvaluateRecipe(), ["split=val", "sub_tasks=[emo_c, hate]", "limit=10"])
    assert few == "runs/a/evaluation-split_val-sub_tasks_emo_c_hate-limit_10"
    assert default_out("runs/a/model/fold-1/", EvaluateRecipe()) == "runs/a/model/evaluation-fold-1"


def test_other_models_answer_the_test_rows_of_every_protocol_and_ours_only_their_own(
    bench: Path, model_dir: Path
) -> None:
    rows = read_rows(str(bench), json.loads((bench / "manifest.json").read_text()))
    other, single = read_model("openai:m", endpoint()), read_model(str(model_dir / "fold-1"))
    assert other.protocols(rows) == tuple(range(FOLDS)) and single.protocols(rows) == (0,)
    asked, left_out = select_rows(rows, "test", ("emo_c",), None, other.protocols(rows))
    assert not left_out and {row.fold for row in asked} == set(range(FOLDS))


def test_the_same_name_at_another_endpoint_is_another_model() -> None:
    here, there = (
        read_model("openai:m", EvaluateRecipe(mode="generate", endpoint=EndpointConfig(url=url)))
        for url in ("http://a/v1", "http://b/v1")
    )
    again = read_model(
        "openai:m", EvaluateRecipe(mode="generate", endpoint=EndpointConfig(url="http://a/v1/"))
    )
    assert here.digest != there.digest and here.digest == again.digest and here.name == "m"


@pytest.mark.parametrize(
    ("spec", "recipe", "message"),
    [
        ("openai:", endpoint(), "names no model"),
        ("openai:m", EvaluateRecipe(mode="generate"), "--endpoint URL"),
        ("openai:m", endpoint().model_copy(update={"mode": "likelihood"}), "--mode generate"),
        ("nowhere", EvaluateRecipe(), "hf:NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_explained(spec: str, recipe: EvaluateRecipe, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_model(spec, recipe)
