"""Masking over tokenizers in the form of published language models: the supervised tokens are the answer, each of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emollm.data.collate import encode_text
from emollm.data.masking import IGNORED, EmptyMaskError
from emollm.model.processor import EmoLLMProcessor
from tests.emollm.train.small_emobench import sample
from tests.fixtures import chat_formats

ANSWERS = ("joy", "Ask for help", "Yes", "A", "naïve 😀", "contempt, or anger?")
PROCESSORS: dict[str, EmoLLMProcessor] = {}


@pytest.fixture(params=sorted(chat_formats.FORMATS))
def processor(request: pytest.FixtureRequest) -> EmoLLMProcessor:
    name = request.param
    if name not in PROCESSORS:
        PROCESSORS[name] = EmoLLMProcessor(chat_formats.tokenizer(name))
    return PROCESSORS[name]


def supervised(row: dict, processor: EmoLLMProcessor) -> tuple[list[int], list[int]]:
    """(ids before the answer, supervised ids)."""
    encoded = encode_text(row, processor, supervise=True)
    start = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    assert encoded.labels[start:] == encoded.input_ids[start:]
    return encoded.input_ids[:start], encoded.labels[start:]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("frames", [0, 3])
def test_supervised_tokens_are_the_answer_and_the_models_own_end_of_turn(processor, answer, frames) -> None:
    row = sample(1, fold=0, split="train", label=answer, frames=frames)
    before, own = supervised(row, processor)
    assert processor.decode(own[:-1]).strip() == answer
    assert own[-1] == processor.end_id and processor.end_id in processor.tokenizer.all_special_ids
    assert before == encode_text(row, processor, supervise=False).input_ids
    assert processor.decode(before).endswith("Answer:")
    # Token by token: each piece alone, put together, is the answer again.
    pieces = processor.tokenizer.convert_ids_to_tokens(own[:-1])
    assert processor.tokenizer.convert_tokens_to_string(pieces).strip() == answer


def test_the_chat_begins_with_the_models_own_first_token_once(processor) -> None:
    before, _ = supervised(sample(1, fold=0, split="train", label="joy"), processor)
    first = processor.tokenizer.bos_token_id
    assert first is None or (before[0] == first and before[1] != first)


def test_an_answer_that_would_be_cut_off_is_an_error_with_the_uid(processor) -> None:
    row = sample(7, fold=0, split="train", label="joy")
    length = len(encode_text(row, processor, supervise=True).input_ids)
    with pytest.raises(EmptyMaskError, match="drawn/all/0007"):
        encode_text(row, processor, supervise=True, max_tokens=length - 1)


@given(answer=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12))
@pytest.mark.parametrize("name", sorted(chat_formats.FORMATS))
def test_any_answer_is_supervised_whole(name: str, answer: str) -> None:
    processor = PROCESSORS.setdefault(name, EmoLLMProcessor(chat_formats.tokenizer(name)))
    if answer in processor.tokenizer.all_special_tokens:
        return
    _, own = supervised(sample(1, fold=0, split="train", label=answer), processor)
    assert processor.decode(own[:-1], clean_up_tokenization_spaces=False).strip() == answer
