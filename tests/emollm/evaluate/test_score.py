"""Option log-likelihoods against a naive full forward per option; predictions against batch size, on tiny random models."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import pytest
import torch

from emollm.evaluate.score import Prompt, Scorer, option_probabilities, option_token_ids

VOCABULARY = 97
END = 1


class TokensOnly(NamedTuple):
    """The part of `Encoded` that a text prompt needs."""

    uid: str
    input_ids: list[int]


def collate(encoded: list[TokensOnly]) -> dict[str, torch.Tensor]:
    longest = max(len(one.input_ids) for one in encoded)
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(encoded):
        ids[row, : len(one.input_ids)] = torch.tensor(one.input_ids)
        mask[row, : len(one.input_ids)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def tiny_llama(seed: int = 0, spread: float = 0.15) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=spread, bos_token_id=0, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def scorer(model: Any, batch_size: int, **extra: Any) -> Scorer:
    return Scorer(model, collate, lambda ids: " ".join(map(str, ids)), [END], batch_size, **extra)


def prompts(
    count: int, open_share: float = 0.0, seed: int = 0, later: tuple[int, ...] = (0, 0, 0, 1, 3)
) -> list[Prompt]:
    generator = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(2, VOCABULARY) for _ in range(count)]

    made = []
    for number in range(count):
        options: list[list[int]] = []
        if generator.random() >= open_share:
            firsts = generator.sample(range(2, VOCABULARY), generator.randrange(2, 9))
            options = [[first, *tokens(generator.choice(later))] for first in firsts]
        made.append(Prompt(TokensOnly(f"u{number}", tokens(generator.randrange(3, 40))), options))  # type: ignore[arg-type]
    return made


def naive_log_prob(model: Any, prompt: list[int], option: list[int]) -> float:
    """One full forward over prompt + option, alone, without cache or padding."""
    with torch.inference_mode():
        log_probs = torch.log_softmax(
            model(input_ids=torch.tensor([prompt + option])).logits[0].double(), dim=-1
        )
    return sum(float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(option))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_option_scores_equal_a_full_forward_per_option(batch_size: int) -> None:
    model = tiny_llama()
    asked = prompts(23)
    for prompt, answer in zip(asked, scorer(model, batch_size).answers(asked)):
        expected = [naive_log_prob(model, prompt.encoded.input_ids, option) for option in prompt.options]
        assert answer.log_probs == pytest.approx(expected, abs=1e-5)
        assert answer.choice == expected.index(max(expected))


def test_more_rows_than_one_cache_copy_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_llama(), prompts(12, seed=3)
    whole = scorer(model, 12).answers(asked)
    monkeypatch.setattr("emollm.evaluate.score.MAX_CONTINUED_ROWS", 3)
    for one, other in zip(whole, scorer(model, 12).answers(asked)):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_predictions_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    model, asked = tiny_llama(), prompts(100, open_share=0.3, seed=1)
    alone, together = scorer(model, 1).answers(asked), scorer(model, batch_size).answers(asked)
    assert len(together) == 100
    for one, other in zip(alone, together):
        assert (one.choice, one.text, one.token_ids) == (other.choice, other.text, other.token_ids)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_near_ties_are_decided_on_the_sample_alone() -> None:
    """With nearly equal logits everything is closer than the margin: answers are then bit-identical to batch size 1."""
    model, asked = tiny_llama(spread=1e-4), prompts(40, open_share=0.3, seed=2, later=(0,))
    alone, together = scorer(model, 1).answers(asked), scorer(model, 8).answers(asked)
    assert max(answer.gap for answer in alone) < 1e-3
    assert together == alone


def test_greedy_decoding_equals_argmax_of_full_forwards() -> None:
    model, asked = tiny_llama(), prompts(9, open_share=1.0, seed=4)
    for prompt, answer in zip(asked, scorer(model, 4, max_new_tokens=5).answers(asked)):
        ids = list(prompt.encoded.input_ids)
        expected: list[int] = []
        while len(expected) < 5:
            with torch.inference_mode():
                token = int(model(input_ids=torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token == END:
                break
            expected.append(token)
        assert answer.token_ids == expected
        assert answer.choice is None


def test_decoding_stops_at_the_end_token() -> None:
    model, asked = tiny_llama(), prompts(3, open_share=1.0, seed=5)
    first = scorer(model, 1, max_new_tokens=4).answers(asked)[0]
    assert len(first.token_ids) == 4
    ending = Scorer(model, collate, str, [first.token_ids[1]], batch_size=3, max_new_tokens=4)
    assert ending.answers(asked)[0].token_ids == first.token_ids[:1]


def letters(text: str) -> list[int]:
    """An id for every character."""
    return [ord(letter) for letter in text.strip()]


def test_end_token_joins_all_options_only_where_one_begins_another() -> None:
    assert option_token_ids(["ab", "ba"], letters, 7) == [[97, 98], [98, 97]]
    assert option_token_ids(["ab", "abc"], letters, 7) == [[97, 98, 7], [97, 98, 99, 7]]


def test_options_that_look_alike_to_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="not distinct"):
        option_token_ids(["ab", "ab "], letters, 7)
    with pytest.raises(ValueError, match="no tokens"):
        option_token_ids(["ab", " "], letters, 7)


def test_option_probabilities_are_a_softmax() -> None:
    assert option_probabilities([math.log(1), math.log(3)]) == pytest.approx([0.25, 0.75])
    assert sum(option_probabilities([-900.0, -901.0])) == pytest.approx(1.0)
