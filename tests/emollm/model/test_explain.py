"""`predict --explain`: the reasoning that a model writes, and the answer read behind it, on every family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from emollm import predict
from emollm.__main__ import main
from emollm.config import FoundationConfig, TrainRecipe
from emollm.data.collate import collate, encode_sample
from emollm.evaluate.score import Answer
from emollm.predict import Predictor
from emollm.prompting import ANSWER_MARK, REASON_ALOUD, SCAFFOLDS, TrainingPrompt
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import picture
from tests.fixtures import tiny_mllms

OPTIONS = ["joy", "Ask for help", "sadness"]
REASONING = "The mouth is open, the eyes shine."


@pytest.fixture
def face(tmp_path: Path) -> str:
    path = tmp_path / "face.png"
    path.write_bytes(picture("joy", 3, side=47))
    return str(path)


def saved(recipe: TrainRecipe, folder: Path) -> str:
    model, processor = initial_model(recipe, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["composed", *sorted(tiny_mllms.MLLMS)])
def model_folder(request: pytest.FixtureRequest, tiny_recipe: TrainRecipe, tmp_path: Path) -> str:
    recipe = tiny_recipe.model_copy(update={"prompt": "emoprompt"})
    if request.param != "composed":
        tiny_mllms.write(request.param, tmp_path / "mllm")
        foundation = FoundationConfig(family="attached", mllm=str(tmp_path / "mllm"), max_side_px=32)
        recipe = recipe.model_copy(update={"foundation": foundation})
    return saved(recipe, tmp_path / "fold")


def test_options_behind_the_reasoning_are_scored_where_training_has_the_answer(
    model_folder, face, monkeypatch
):
    """The model is made to say one thing; its shares are then those of whole training rows, teacher-forced."""
    predictor = Predictor(model_folder)
    scorer = predictor._scorer
    asked: list[Any] = []

    def speaking(max_new_tokens: int = 16) -> Any:
        made = scorer(max_new_tokens)
        if max_new_tokens == predict.REASONING_TOKENS:

            def answers(prompts: list[Any]) -> list[Answer]:
                asked.extend(prompts)
                return [Answer(None, f"{REASONING}\n Answer: joy", [5, 6], [], 1.0)]

            made.answers = answers
        return made

    monkeypatch.setattr(predictor, "_scorer", speaking)
    told = predictor.explain(face, "emo_c", OPTIONS)
    assert (told.reasoning, told.whole) == (REASONING, True)
    heard = predictor.processor.decode(asked[0].encoded.input_ids)
    assert f"{SCAFFOLDS['emo_c']} {REASON_ALOUD}" in heard
    assert sum(told.prediction.probabilities.values()) == pytest.approx(1)
    assert told.prediction.answer == max(told.prediction.probabilities, key=told.prediction.probabilities.get)

    sample = predict._sample(face, "emo_c", OPTIONS, "", 4)
    training = TrainingPrompt("emoprompt", rationales={face: REASONING})
    scores = []
    for option in OPTIONS:
        row = encode_sample(
            {**sample, "answer": option}, predictor.processor, supervise=True, training=training
        )
        n_prompt = len(row.labels) - sum(label != -100 for label in row.labels)
        assert predictor.processor.decode(row.input_ids[n_prompt:-1]).strip() == (
            f"{REASONING}{ANSWER_MARK}{option}"
        )
        with torch.no_grad():
            batch = collate([row], predictor.processor.pad_id)
            batch.pop("labels")
            log_probs = predictor.model(**batch).logits[0].log_softmax(-1)
        said = range(n_prompt - 1, len(row.input_ids) - 2)  # the rationale's part is the same for all options
        scores.append(sum(float(log_probs[at, row.input_ids[at + 1]]) for at in said))
    expected = torch.tensor(scores).softmax(0).tolist()
    assert list(told.prediction.probabilities.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model_folder", ["composed", "qwen2_5_vl"], indirect=True)
def test_explain_prints_the_answer_with_and_without_reasoning(model_folder, face, capsys, monkeypatch):
    monkeypatch.setattr(predict, "REASONING_TOKENS", 8)
    command = ["predict", face, "--model", model_folder, "--options", "joy,sadness"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--explain"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(plain), "the answer without reasoning stays what it was"
    told = re.fullmatch(
        r"  reasoning: (.+)\n  behind the reasoning: (joy|sadness)\n((?: +[\d.]+%  \w+\n){2})",
        said[len(plain) :],
    )
    assert told and "trained with prompt: direct" not in said
    assert main([*command[:4], "--task", "emo_o", "--explain"]) == 0
    assert re.search(r"\n  reasoning: .+\n  behind the reasoning: ", capsys.readouterr().out)


def test_a_model_trained_on_direct_questions_says_that_its_reasoning_is_not_trained(
    tiny_recipe, tmp_path, face, capsys, monkeypatch
):
    monkeypatch.setattr(predict, "REASONING_TOKENS", 4)
    folder = saved(tiny_recipe, tmp_path / "fold")
    assert main(["predict", face, "--model", folder, "--explain", "--options", "joy,sadness"]) == 0
    assert "trained with prompt: direct, so nothing has taught it" in capsys.readouterr().out


def test_generated_special_tokens_and_places_of_media_are_not_taken_for_real_ones(tiny_recipe, tmp_path):
    predictor = Predictor(saved(tiny_recipe, tmp_path / "fold"))
    assert predictor._plain("Look<image>\n here <|im_end|><video>\tagain") == "Look here again"
