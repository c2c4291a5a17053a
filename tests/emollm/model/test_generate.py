"""transformers' own `generate` on every family gives the greedy answer that the scorer finds."""

from __future__ import annotations

import pytest
import torch

from emollm.config import FoundationConfig, TrainRecipe
from emollm.data.collate import collate, encode_sample
from emollm.evaluate.score import Prompt, Scorer
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import sample
from tests.fixtures import tiny_mllms


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("family", ["composed", *sorted(tiny_mllms.MLLMS)])
def test_generate_says_what_the_scorer_says(tiny_recipe: TrainRecipe, family: str, frames: int, tmp_path):
    recipe = tiny_recipe
    if family != "composed":
        tiny_mllms.write(family, tmp_path)
        foundation = FoundationConfig(family="attached", mllm=str(tmp_path), max_side_px=32)
        recipe = tiny_recipe.model_copy(update={"foundation": foundation})
    model, processor = initial_model(recipe, 0)
    row = sample(1, fold=0, split="train", label="joy", frames=frames)
    encoded = encode_sample(row, processor, supervise=False)
    scorer = Scorer(
        model, lambda rows: collate(rows, processor.pad_id), processor.decode, [processor.end_id], 1
    )
    (expected,) = scorer.answers([Prompt(encoded, [])])
    batch = collate([encoded], processor.pad_id)
    del batch["labels"]
    with torch.no_grad():
        found = model.generate(**batch, max_new_tokens=scorer.max_new_tokens, do_sample=False)
    said = found[0, len(encoded.input_ids) :].tolist()
    assert [token for token in said if token != processor.end_id] == expected.token_ids
    assert len(expected.token_ids) > 1


def test_qwen_without_its_positions_is_refused_and_not_counted_from_0(tiny_recipe: TrainRecipe, tmp_path):
    tiny_mllms.write("qwen2_5_vl", tmp_path)
    foundation = FoundationConfig(family="attached", mllm=str(tmp_path), max_side_px=32)
    model, processor = initial_model(tiny_recipe.model_copy(update={"foundation": foundation}), 0)
    encoded = encode_sample(sample(1, fold=0, split="train", label="joy"), processor, supervise=False)
    batch = collate([encoded], processor.pad_id)
    del batch["labels"], batch["position_ids"]
    for ask in (model, lambda **given: model.generate(**given, max_new_tokens=2)):
        with pytest.raises(ValueError, match="needs position_ids"):
            ask(**batch)
