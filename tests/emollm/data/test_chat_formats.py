"""Masking over tokenizers in the form of published language models: the supervised tokens are the answer, each of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emollm.data.collate import encode_text
from emollm.data.masking import IGNORED, EmptyMaskError
from emollm.model.chat import ChatTemplateError
from emollm.model.processor import EmoLLMProcessor
from tests.emollm.train.small_emobench import sample
from tests.fixtures import chat_formats

ANSWERS = ("joy", "Ask for help", "Yes", "A", "naïve 😀", "contempt, or anger?")
CHATS = ("own", "language")
PROCESSORS: dict[tuple[str, str], EmoLLMProcessor] = {}


def made(name: str, chat: str) -> EmoLLMProcessor:
    """The processor of a model over such a language model, in this project's chat format or the language model's own."""
    if (name, chat) not in PROCESSORS:
        PROCESSORS[name, chat] = EmoLLMProcessor(chat_formats.tokenizer(name), chat=chat)  # type: ignore[arg-type]
    return PROCESSORS[name, chat]


@pytest.fixture(
    params=[(name, chat) for name in sorted(chat_formats.FORMATS) for chat in CHATS], ids="-".join
)
def processor(request: pytest.FixtureRequest) -> EmoLLMProcessor:
    return made(*request.param)


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
    assert processor.decode(before).endswith("Answer:") == (processor.chat_format == "own")
    assert processor.continuation(answer) == own[:-1]
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
@pytest.mark.parametrize("chat", CHATS)
def test_any_answer_is_supervised_whole(name: str, chat: str, answer: str) -> None:
    processor = made(name, chat)
    if answer in processor.tokenizer.all_special_tokens:
        return
    _, own = supervised(sample(1, fold=0, split="train", label=answer), processor)
    assert processor.decode(own[:-1], clean_up_tokenization_spaces=False).strip() == answer


@pytest.mark.parametrize("name", sorted(chat_formats.FORMATS))
def test_the_language_models_own_chat_is_its_templates_token_by_token(name: str) -> None:
    """Words alone: all ids are those of the chat as the published template writes it, up to the end of the answer's turn."""
    processor = made(name, "language")
    tokenizer = processor.tokenizer
    question = {"role": "user", "content": "Which emotion does this show?"}
    turns = processor.render([question], "joy", [])
    whole = tokenizer.apply_chat_template([question, {"role": "assistant", "content": "joy"}], tokenize=False)
    begun = whole if whole.startswith(tokenizer.bos_token or "") else tokenizer.bos_token + whole
    expected = tokenizer(begun.rstrip(), add_special_tokens=False)["input_ids"]
    if (
        name == "llama-2-chat"
    ):  # its template writes a space between answer and end, which is not the answer's
        assert tokenizer.decode(expected[-2:-1]).strip() == ""
        del expected[-2]
    assert turns.input_ids == expected
    assert turns.supervised is not None and turns.supervised[1] == len(expected)


def test_a_model_keeps_the_chat_format_it_was_trained_in(tmp_path) -> None:
    processor = made("llama-3-instruct", "language")
    processor.save_pretrained(tmp_path)
    again = EmoLLMProcessor.from_pretrained(tmp_path)
    row = sample(1, fold=0, split="train", label="joy")
    assert again.settings() == processor.settings() and again.chat_template == processor.chat_template
    assert (
        encode_text(row, again, supervise=True).input_ids
        == encode_text(row, processor, supervise=True).input_ids
    )


def test_a_tokenizer_without_a_template_has_no_chat_format_of_its_own() -> None:
    """As lmsys/vicuna-7b-v1.5's: its format is in FastChat's code, not in its files."""
    tokenizer = chat_formats.tokenizer("vicuna-v1.5")
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        EmoLLMProcessor(tokenizer, chat="language")
    assert EmoLLMProcessor(tokenizer).end_id == tokenizer.eos_token_id
