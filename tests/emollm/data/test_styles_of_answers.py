"""A sample whose message asks for a letter is trained on and scored by letters; its answer column keeps the word."""

from __future__ import annotations

import pytest

from dataset_build import instructions
from dataset_build.labels import EMOJI_FEELINGS
from dataset_build.schema import MediaRef, Record
from emollm.config import TrainRecipe
from emollm.data.collate import SampleError, encode_text
from emollm.data.masking import IGNORED
from emollm.evaluate.ablation import TEXT_ONLY, ablated
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.replica import encode_prompts
from emollm.train.build import initial_processor
from tests.emollm.train.small_emobench import sample


@pytest.fixture
def processor(tiny_recipe: TrainRecipe):
    return initial_processor(tiny_recipe)


def asked(style: str) -> dict:
    """A row as a build with this answer style writes it."""
    row = sample(1, fold=0, split="train", label="joy")
    record = Record(
        row["uid"], "s", "emo_c", None, (MediaRef("image", "a.png"),), "joy", "joy", "MIT", EMOJI_FEELINGS
    )
    made = instructions.ask(record, ["image"], instructions.Wording(answer_style=style))
    changes = {"messages": [{"role": "user", "content": made.content}], "options": list(made.options)}
    return {**row, **changes, "provenance": {**row["provenance"], "template_id": made.template_id}}


def forms(row: dict, style: str) -> list[str]:
    letters = "ABCDEFGH"
    return {
        "word": row["options"],
        "letter": list(letters),
        "letter_word": [f"({letter}) {word}" for letter, word in zip(letters, row["options"])],
    }[style]


@pytest.mark.parametrize("style", ["word", "letter", "letter_word"])
def test_the_supervised_tokens_are_in_the_form_that_the_message_asks_for(processor, style: str) -> None:
    row = asked(style)
    encoded = encode_text(row, processor, supervise=True)
    supervised = [label for label in encoded.labels if label != IGNORED]
    expected = forms(row, style)[row["options"].index("joy")]
    assert processor.decode(supervised) == f" {expected}<|im_end|>"
    assert row["answer"] == "joy"


@pytest.mark.parametrize("style", ["word", "letter", "letter_word"])
def test_options_are_scored_in_that_form_and_order(processor, style: str) -> None:
    row = asked(style)
    (prompt,) = encode_prompts([ablated(row, TEXT_ONLY)], processor)
    said = [processor.decode(ids).removesuffix("<|im_end|>").strip() for ids in prompt.options]
    assert said == forms(row, style)  # so the index of the best one is that of row["options"]


def test_an_unknown_form_is_an_error_that_names_the_sample(processor) -> None:
    row = asked("letter")
    row["provenance"]["template_id"] = "emo_c-00+rhyme"
    with pytest.raises(SampleError, match=f"{row['uid']}.*answer style 'rhyme'"):
        encode_text(row, processor, supervise=True)
    with pytest.raises(EvaluationError, match=f"{row['uid']}.*answer style 'rhyme'"):
        encode_prompts([ablated(row, TEXT_ONLY)], processor)
