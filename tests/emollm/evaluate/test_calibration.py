"""Calibration against a content-free prompt: the formula by hand, what it takes away, and no influence of batches."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emollm.config import RecipeError, evaluate_recipe
from emollm.evaluate import replica
from emollm.evaluate.ablation import CONTENT_FREE, ablated
from emollm.evaluate.asking import Asking
from emollm.evaluate.careful import CarefulScorer
from emollm.evaluate.score import Prompt, option_probabilities
from tests.emollm.evaluate.emobench import make_rows
from tests.emollm.evaluate.test_score import naive_log_prob, prompts, scorer, tiny_llama


def content_free(asked: list[Prompt]) -> list[Prompt | None]:
    """For every prompt another with the same options; open ones have none."""
    others = prompts(len(asked), seed=77)
    return [
        Prompt(other.encoded, prompt.options) if prompt.options else None
        for prompt, other in zip(asked, others, strict=True)
    ]


def test_probabilities_are_divided_by_those_of_the_content_free_prompt() -> None:
    model, asked = tiny_llama(), prompts(13, open_share=0.2)
    bare = content_free(asked)
    plain = scorer(model, 4).answers(asked)
    for prompt, other, answer, before in zip(
        asked, bare, scorer(model, 4).calibrated(asked, bare), plain, strict=True
    ):
        if other is None:
            assert answer.token_ids == before.token_ids
            continue
        p = [math.exp(naive_log_prob(model, prompt.encoded.input_ids, option)) for option in prompt.options]
        p_cf = [math.exp(naive_log_prob(model, other.encoded.input_ids, option)) for option in prompt.options]
        ratios = [one / empty for one, empty in zip(p, p_cf, strict=True)]
        expected = [ratio / sum(ratios) for ratio in ratios]  # W = diag(p_cf)^-1, b = 0
        assert option_probabilities(answer.log_probs) == pytest.approx(expected, rel=1e-4)
        assert answer.choice == expected.index(max(expected))


def test_a_leaning_towards_a_word_is_taken_away() -> None:
    """A model that finds some words likelier whatever is asked: calibrated, it chooses as one without the leaning."""
    model, asked = tiny_llama(), prompts(40, seed=5, later=(0,))
    leaning = torch.zeros(97)
    leaning[::3] = 4.0

    class Leaning:
        def eval(self) -> Leaning:
            return self

        def __call__(self, **inputs: Any) -> Any:
            output = model(**inputs)
            return SimpleNamespace(
                logits=output.logits + leaning, past_key_values=getattr(output, "past_key_values", None)
            )

    bare = content_free(asked)
    fair, leant = (scorer(one, 8).answers(asked) for one in (model, Leaning()))
    assert [a.choice for a in fair] != [a.choice for a in leant]
    fair, leant = (scorer(one, 8).calibrated(asked, bare) for one in (model, Leaning()))
    assert [a.choice for a in fair] == [a.choice for a in leant]


def test_near_ties_are_decided_on_the_sample_and_its_content_free_prompt_alone() -> None:
    model, asked = tiny_llama(spread=1e-4), prompts(40, seed=2, later=(0,))
    bare = content_free(asked)
    alone, together = (scorer(model, size).calibrated(asked, bare) for size in (1, 8))
    assert max(answer.gap for answer in alone) < 1e-3
    assert together == alone


def test_an_emollm_is_calibrated_with_the_question_and_options_of_the_sample(model_dir: Path) -> None:
    own = replica.load_own(str(model_dir), "fold-0", None)
    rows = [row for row in make_rows() if row["split"] == "test"][::9]
    given = replica.answers(own, rows, Asking(calibrate=True), 8)
    fast = own.scorer(8, 4)
    naive = CarefulScorer(own.model, fast.collate, fast.decode, list(fast.end_ids), 16)
    shown = naive.answers(own.prompts(rows, Asking()))
    bare = naive.answers(own.prompts([ablated(row, CONTENT_FREE) for row in rows], Asking()))
    assert any(row["options"] for row in rows) and not all(row["options"] for row in rows)
    for row, answer, one, empty in zip(rows, given, shown, bare, strict=True):
        if row["options"]:
            expected = [a - b for a, b in zip(one.log_probs, empty.log_probs, strict=True)]
            assert answer.log_probs == pytest.approx(expected, abs=2e-5)
        else:
            assert answer.text == one.text


def test_generated_answers_cannot_be_calibrated() -> None:
    with pytest.raises(RecipeError, match="calibrate divides option probabilities"):
        evaluate_recipe(["mode=generate", "calibrate=true"])


def test_options_are_scored_in_the_form_that_is_asked_for_or_in_another() -> None:
    row = next(row for row in make_rows() if row["options"])
    words, letters = (Asking(option_form=form).options(row) for form in ("word", "letter"))
    assert Asking().options(row) == words == row["options"]
    assert (
        letters == list("ABCDEFGH") and Asking(option_form="letter_word").options(row)[0] == f"(A) {words[0]}"
    )
    assert Asking(mode="generate").options(row) == []
