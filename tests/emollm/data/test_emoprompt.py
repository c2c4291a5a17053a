"""EmoPrompt in training rows: what is asked, what carries loss, which rows of `mixed` are asked directly."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_build.schema import SUB_TASKS
from emollm.config import FoundationConfig, RecipeError, TrainRecipe, load_recipe
from emollm.data.collate import encode_text
from emollm.data.masking import IGNORED
from emollm.model.attached_processor import AttachedProcessor
from emollm.model.processor import EmoLLMProcessor
from emollm.prompting import ANSWER_MARK, REASON_ALOUD, SCAFFOLDS, TrainingPrompt, scaffolded
from emollm.train.build import initial_processor
from tests.emollm.train.small_emobench import sample
from tests.fixtures import tiny_mllms

RATIONALE = "The brows are drawn up and the eyes shine (wet?), as of somebody who is moved."
UID = "drawn/all/0001"


@pytest.fixture(scope="session")
def mllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoprompt-mllms")
    for family in tiny_mllms.MLLMS:
        tiny_mllms.write(family, folder / family)
    return folder


@pytest.fixture(params=["composed", *sorted(tiny_mllms.MLLMS)])
def processor(request: pytest.FixtureRequest, tiny_recipe: TrainRecipe, mllm_folder: Path):
    if request.param == "composed":
        return initial_processor(tiny_recipe.model_copy(update={"prompt": "emoprompt"}))
    foundation = FoundationConfig(family="attached", mllm=str(mllm_folder / request.param), max_side_px=32)
    return initial_processor(tiny_recipe.model_copy(update={"foundation": foundation, "prompt": "emoprompt"}))


def lettered(row: dict, style: str) -> dict:
    return {**row, "provenance": {**row["provenance"], "template_id": f"emo_c-00+{style}"}}


@pytest.mark.parametrize("style, said", [("word", "joy"), ("letter", "{}"), ("letter_word", "({}) joy")])
def test_supervised_tokens_decode_to_rationale_and_answer_and_nothing_else(processor, style, said):
    row = lettered(sample(1, fold=0, split="train", label="joy"), style)
    said = said.format(chr(65 + row["options"].index("joy")))
    training = TrainingPrompt("emoprompt", rationales={UID: RATIONALE})
    encoded = encode_text(row, processor, supervise=True, training=training)
    supervised = [label for label in encoded.labels if label != IGNORED]
    start = len(encoded.labels) - len(supervised)
    assert encoded.labels == [IGNORED] * start + encoded.input_ids[start:]
    assert supervised[-1] == processor.end_id and encoded.rationale == "used"
    assert processor.decode(supervised[:-1]).strip() == f"{RATIONALE}{ANSWER_MARK}{said}"
    asked = encode_text(row, processor, supervise=False, training=training, aloud=True).input_ids
    assert encoded.input_ids[:start] == asked, "trained behind the very prompt that asks to reason"
    assert f"{SCAFFOLDS['emo_c']} {REASON_ALOUD}" in processor.decode(asked)


def test_a_row_without_an_accepted_rationale_answers_at_once_behind_the_scaffold_alone(processor):
    row = sample(1, fold=0, split="train", label="joy")
    training = TrainingPrompt("emoprompt", rationales={"drawn/all/0002": RATIONALE})
    encoded = encode_text(row, processor, supervise=True, training=training)
    supervised = [label for label in encoded.labels if label != IGNORED]
    assert processor.decode(supervised[:-1]).strip() == "joy" and encoded.rationale == "none"
    text = processor.decode(encoded.input_ids)
    assert SCAFFOLDS["emo_c"] in text and REASON_ALOUD not in text
    # what is scored at inference is this prompt, with nothing generated before the options
    scored = encode_text(row, processor, supervise=False).input_ids
    assert encoded.input_ids[: len(scored)] == scored


def test_a_rationale_too_long_for_the_model_is_left_out_and_counted(processor):
    row = sample(1, fold=0, split="train", label="joy")
    training = TrainingPrompt("emoprompt", rationales={UID: RATIONALE})
    whole = encode_text(row, processor, supervise=True, training=training)
    plain = encode_text(row, processor, supervise=True, training=TrainingPrompt("emoprompt"))
    n_tokens = len(whole.input_ids)
    assert encode_text(row, processor, supervise=True, training=training, max_tokens=n_tokens) == whole
    shorter = encode_text(row, processor, supervise=True, training=training, max_tokens=n_tokens - 1)
    assert shorter == plain._replace(rationale="too_long")


def test_mixed_asks_a_fixed_share_directly_by_uid_and_all_directly_afterwards(processor):
    processor.prompt = "mixed"
    training = TrainingPrompt("mixed", 0.3, {f"u/{number}": RATIONALE for number in range(2000)})
    styles = {uid: training.style_of(uid) for uid in training.rationales}
    direct = [uid for uid, style in styles.items() if style == "direct"]
    assert 0.27 < len(direct) / len(styles) < 0.33
    assert [uid for uid in styles if training.rationale_of(uid) is None] == direct
    more = training._replace(mixed_share=0.6)
    assert all(more.style_of(uid) == "direct" for uid in direct), "a larger share only adds rows"
    row = {**sample(1, fold=0, split="train", label="joy"), "uid": direct[0]}
    encoded = encode_text(row, processor, supervise=True, training=training)
    assert SCAFFOLDS["emo_c"] not in processor.decode(encoded.input_ids) and encoded.rationale == "none"
    guided = next(uid for uid, style in styles.items() if style == "emoprompt")
    assert (
        encode_text({**row, "uid": guided}, processor, supervise=True, training=training).rationale == "used"
    )
    asked = encode_text({**row, "uid": guided}, processor, supervise=False)
    assert SCAFFOLDS["emo_c"] not in processor.decode(asked.input_ids)


def test_validation_asks_as_the_trained_model_will_be_asked(processor):
    row = sample(1, fold=0, split="val", label="joy")
    for style in ("direct", "emoprompt", "mixed"):
        processor.prompt = style
        training = TrainingPrompt(style, 0.0, {UID: RATIONALE}).afterwards()
        validated = encode_text(row, processor, supervise=True, training=training)
        scored = encode_text(row, processor, supervise=False)
        assert validated.input_ids[: len(scored.input_ids)] == scored.input_ids
        assert validated.rationale == "none"


def test_the_style_is_saved_with_the_processor_and_an_unknown_one_is_refused(processor, tmp_path):
    processor.prompt = "mixed"
    processor.save_pretrained(tmp_path)
    kind = EmoLLMProcessor if isinstance(processor, EmoLLMProcessor) else AttachedProcessor
    if kind is EmoLLMProcessor:
        assert kind.from_pretrained(tmp_path).prompt == "mixed"
    path = tmp_path / "processor_config.json"
    path.write_text(path.read_text().replace('"mixed"', '"chain"'))
    with pytest.raises(ValueError, match="prompt style 'chain' is not one of direct, emoprompt, mixed"):
        kind.from_pretrained(tmp_path)


def test_every_sub_task_has_a_scaffold_of_one_line_that_leads_the_last_user_turn():
    assert set(SCAFFOLDS) == set(SUB_TASKS)
    turns = [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"},
    ]  # fmt: skip
    for sub_task, scaffold in SCAFFOLDS.items():
        assert "\n" not in scaffold
        found = [turn["content"] for turn in scaffolded(turns, sub_task, "emoprompt")]
        assert found == ["one", "two", f"{scaffold}\nthree"]
        assert scaffolded(turns, sub_task, "direct") == scaffolded(turns, sub_task, "mixed") == turns


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rationales=r"], "said under prompt emoprompt or mixed, not under direct"),
        (["prompt=emoprompt", "rationales=../r"], "rationales: String should match pattern"),
        (["prompt=mixed", "mixed_share=1.5"], "mixed_share: .*less than or equal to 1"),
        (["prompt=chain"], "prompt: .*'direct', 'emoprompt' or 'mixed'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_recipe(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke", overrides)
