"""Models of all families, ours and foreign ones, scored from one pass: the same as a whole forward pass per option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from emollm.config import EvaluateRecipe, FoundationConfig, TrainRecipe
from emollm.evaluate import careful, foreign, replica, run
from emollm.evaluate.asking import GENERATE, Asking
from emollm.evaluate.results import evaluate
from emollm.evaluate.score import Prompt
from emollm.train.build import initial_model
from tests.emollm.evaluate.conftest import in_this_process
from tests.emollm.train.small_emobench import in_words, sample
from tests.fixtures import tiny_mllms, tiny_processors

FOREIGN = sorted(tiny_mllms.MLLMS)
OWN = ("composed", "llava", "qwen2_5_vl")


def rows() -> list[dict[str, Any]]:
    """Stills, a clip and words alone; options of one and of several tokens, one of which begins another."""
    made = [sample(n, fold=0, split="test", label="joy", frames=3 if n == 2 else 0) for n in range(5)]
    made[3] = in_words(made[3])
    made[1]["options"] = ["joy", "joyful and calm", "Ask for help"]
    made[0]["provenance"]["template_id"] = "emo_c-00+letter"
    made[4]["provenance"]["template_id"] = "emo_c-00+letter_word"
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_processors.write(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(scope="module")
def loaded(folders: Callable[[str], Path]) -> Callable[[str], foreign.ForeignReplica]:
    made: dict[str, foreign.ForeignReplica] = {}

    def load(family: str) -> foreign.ForeignReplica:
        if family not in made:
            made[family] = foreign.load_foreign(str(folders(family)))
        return made[family]

    return load


def own(family: str, recipe: TrainRecipe, folder: Path) -> replica.OwnReplica:
    """An EmoLLM of the family whose trained parts are not at their start."""
    if family != "composed":
        tiny_mllms.write(family, folder)
        foundation = FoundationConfig(family="attached", mllm=str(folder), max_side_px=32)
        recipe = recipe.model_copy(update={"foundation": foundation})
    model, processor = initial_model(recipe, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return replica.OwnReplica(model.eval(), processor)


def check_against_whole_forwards(scorer: Any, naive: careful.CarefulScorer, prompts: list[Prompt]) -> None:
    assert {len(option) > 1 for prompt in prompts for option in prompt.options} == {True, False}
    assert len({len(prompt.encoded.input_ids) for prompt in prompts}) > 2
    for ours, theirs in zip(scorer.answers(prompts), naive.answers(prompts), strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
        assert ours.choice == theirs.choice


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", OWN)
def test_our_families_equal_a_whole_forward_per_option(
    family: str, padding_side: Any, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    model = own(family, tiny_recipe, tmp_path)
    scorer = replica.make_scorer(model.model, model.processor, 5, padding_side=padding_side)
    naive = careful.CarefulScorer(model.model, scorer.collate, scorer.decode, list(scorer.end_ids), 4)
    check_against_whole_forwards(scorer, naive, model.prompts(rows(), Asking()))


@pytest.mark.parametrize("family", FOREIGN)
def test_foreign_families_equal_a_whole_forward_per_option(family: str, loaded: Any) -> None:
    model = loaded(family)
    prompts = model.prompts(rows(), Asking())
    scorer = model.scorer(5, 4)
    assert not isinstance(scorer, careful.CarefulScorer)
    check_against_whole_forwards(scorer, model._careful_scorer(4), prompts)


@pytest.mark.parametrize("family", FOREIGN)
def test_generated_answers_are_those_of_transformers_own_generate(family: str, loaded: Any) -> None:
    model = loaded(family)
    prompts = model.prompts(rows(), Asking(GENERATE))
    for prompt, answer in zip(prompts, model.scorer(5, 6).answers(prompts), strict=True):
        inputs = model.collate([prompt.encoded])
        given = model.model.generate(**inputs, do_sample=False, max_new_tokens=6)
        said = given[0, len(prompt.encoded.input_ids) :].tolist()
        assert [token for token in said if token not in model.end_ids] == answer.token_ids


def test_pictures_reach_a_foreign_model_and_their_places_must_fit(loaded: Any) -> None:
    model = loaded("smolvlm")
    row, other = rows()[0], rows()[4]
    seen, changed = model.prompts([row, {**row, "media": other["media"]}], Asking())
    first, second = model.scorer(2, 4).answers([seen, changed])
    assert first.log_probs != second.log_probs
    with pytest.raises(ValueError, match=f"{row['uid']}.*no medium"):
        model.prompts([{**row, "media": []}], Asking())


def test_a_model_whose_batches_differ_is_scored_one_by_one(
    loaded: Any, folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for an architecture whose cache or padding does not hold: what a batch gives is shifted."""
    good = loaded("llava")
    model = foreign.load_foreign(str(folders("llava")))
    forward = model.model.forward

    def shifted(input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = forward(input_ids=input_ids, **inputs)
        if len(input_ids) > 1:
            output.logits = output.logits * 1.5
        return output

    shifted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.model.forward = shifted
    prompts = model.prompts(rows(), Asking())
    scorer = model.scorer(4, 4)
    assert isinstance(scorer, careful.CarefulScorer)
    assert "a forward pass of its own" in capsys.readouterr().out
    for ours, theirs in zip(scorer.answers(prompts), good.scorer(4, 4).answers(prompts), strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
    model._careful = (
        None  # as a replica is that has not answered yet: its first samples are scored that way too
    )
    for ours, theirs in zip(
        replica.answers(model, rows(), Asking(), 4), scorer.answers(prompts), strict=True
    ):
        assert ours.log_probs == theirs.log_probs
    generated = scorer.answers(model.prompts(rows(), Asking(GENERATE)))
    expected = good.scorer(4, 4).answers(good.prompts(rows(), Asking(GENERATE)))
    assert [a.token_ids for a in generated] == [a.token_ids for a in expected]


@pytest.mark.parametrize("mode", ["likelihood", "generate"])
def test_a_foreign_folder_is_evaluated_on_every_fold(
    mode: str, bench: Path, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_on_ray", in_this_process)
    recipe = EvaluateRecipe(
        mode=mode, baselines=("majority", "random"), bootstrap={"samples": 100}, limit=6, max_new_tokens=3
    )
    spec = str(folders("smolvlm")) if mode == "generate" else f"hf:{folders('smolvlm')}"
    results = evaluate(spec, str(bench), str(tmp_path), recipe)
    assert results["model"]["kind"] == "transformers"
    records = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert {record["fold"] for record in records} == {None, 0, 1, 2}
    closed = [record for record in records if record["options"]]
    if mode == "likelihood":
        assert {record["status"] for record in closed} == {"ok"} and all(r["scores"] for r in closed)
    else:  # a random model says nothing that can be read, and every row still counts
        assert all(
            r["generated"] is not None and not r["scores"] and r["probability"] is None for r in closed
        )
        tasks = [entry for entry in results["sub_tasks"].values() if entry["n"]]
        assert sum(sum(entry["invalid"].values()) for entry in tasks) > 0
        assert {r["status"] for r in closed} <= {"ok", "empty", "unparsed", "refused", "too_long"}


def test_what_is_no_picture_model_is_refused_by_name(tmp_path: Path, foundations: Path) -> None:
    from emollm.evaluate.models import read_model

    with pytest.raises(ValueError, match="'llama' model is not one that takes pictures"):
        read_model(f"hf:{foundations / 'smollm2-135m-instruct'}")
    with pytest.raises(ValueError, match="no such folder"):
        read_model("hf:./nowhere")


def test_a_model_without_logits_to_keep_and_with_one_row_of_positions_is_called_as_any_other() -> None:
    calls: list[dict[str, Any]] = []

    class Plain:
        def forward(self, input_ids: Any, **inputs: Any) -> Any:
            calls.append(inputs)
            return SimpleNamespace(logits=torch.arange(24.0).reshape(2, 4, 3))

        __call__ = forward

    model = foreign.ForeignModel(Plain())
    output = model(input_ids=None, logits_to_keep=torch.tensor([1, 3]), position_ids=torch.zeros(2, 4))
    assert output.logits.shape == (2, 2, 3) and calls[0]["position_ids"].shape == (2, 4)
