"""Attached foundations from a row of EmoBench to logits: templates, places, positions, packing, saving, training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from emollm.config import FoundationConfig, LoRAConfig, MVPConfig, TrainRecipe
from emollm.data.collate import Encoded, collate, encode_sample, encode_text
from emollm.data.masking import IGNORED
from emollm.data.packing import first_fit, pack
from emollm.evaluate.score import Prompt, Scorer, option_token_ids
from emollm.model.attached_model import AttachedEmoLLM
from emollm.model.chat import Chat, ChatTemplateError
from emollm.model.foundations import load_mllm_tokenizer
from emollm.model.load import load_model, load_processor
from emollm.train.build import initial_model, initial_processor
from emollm.train.loop import train_fold
from tests.emollm.train.small_emobench import in_words, sample
from tests.fixtures import tiny_mllms

FAMILIES = sorted(tiny_mllms.MLLMS)
ANSWERS = ("joy", "Ask for help", "Yes", "A")


@pytest.fixture(scope="session")
def mllms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mllms")
    for family in FAMILIES:
        tiny_mllms.write(family, folder / family)
    return {family: folder / family for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def recipe(request: pytest.FixtureRequest, mllms: dict[str, Path], tiny_recipe: TrainRecipe) -> TrainRecipe:
    foundation = FoundationConfig(family="attached", mllm=str(mllms[request.param]), max_side_px=32)
    tune = tiny_recipe.tune.model_copy(update={"pack_tokens": 400})
    return tiny_recipe.model_copy(update={"foundation": foundation, "tune": tune})


def rows() -> list[dict]:
    return [
        sample(number, fold=0, split="train", label="joy", frames=3 if number == 2 else 0)
        for number in range(5)
    ]


def perturbed(recipe: TrainRecipe) -> tuple[AttachedEmoLLM, object]:
    model, processor = initial_model(recipe, 0)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.trained_names():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model, processor


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("frames", [0, 3])
def test_supervised_tokens_are_the_answer_and_the_end_of_the_turn(recipe, answer, frames):
    processor = initial_processor(recipe)
    row = sample(1, fold=0, split="train", label=answer, frames=frames)
    encoded = encode_text(row, processor, supervise=True)
    supervised = [label for label in encoded.labels if label != IGNORED]
    assert supervised[-1] == processor.end_id
    assert processor.decode(supervised[:-1]).strip() == answer
    start = len(encoded.labels) - len(supervised)
    assert encoded.labels[:start] == [IGNORED] * start
    assert encoded.input_ids[:start] == encode_text(row, processor, supervise=False).input_ids
    assert processor.continuation(answer) == supervised[:-1]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_rendered_chat_is_the_templates_own_token_by_token(recipe, answer):
    """Prompt, answer and end of turn are what the tokenizer makes of the whole chat as its template writes it."""
    tokenizer = initial_processor(recipe).tokenizer
    chat = Chat(tokenizer)
    question = [{"role": "user", "content": [{"type": "text", "text": "Which emotion does this show?"}]}]
    turns = chat.turns(chat.prompt(question), answer)
    whole = tokenizer.apply_chat_template(
        [*question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}], tokenize=False
    )
    # LLaVA-OneVision's template has a space there that its own generation prompt has not.
    expected = chat.ids(whole.rstrip().replace("assistant \n", "assistant\n"))
    if expected[-1] != chat.end_id:  # LLaVA's template leaves the end of the turn to the tokenizer
        expected.append(chat.end_id)
    assert turns.input_ids == expected


def test_the_template_for_pictures_is_read_where_llava_hf_keeps_it(mllms, tmp_path):
    """`chat_template.json` is a processor's file; the tokenizer's own template is the language model's."""
    tokenizer = tiny_mllms.write_tokenizer("llava_onevision")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_mllm_tokenizer(str(tmp_path)).chat_template == template
    shutil.copy(mllms["llava_onevision"] / "chat_template.jinja", tmp_path)
    assert load_mllm_tokenizer(str(tmp_path)).chat_template == template


def test_onevisions_answer_stands_where_its_generation_prompt_ends():
    """Its template writes `assistant ` and a new line before an answer, but `assistant` and a new line for a prompt."""
    chat = Chat(tiny_mllms.write_tokenizer("llava_onevision"))
    prompt = chat.prompt([{"role": "user", "content": [{"type": "text", "text": "?"}]}])
    assert prompt.endswith("<|im_end|><|im_start|>assistant\n") and chat.tail("joy") == "joy"
    turns = chat.turns(prompt, "joy")
    assert chat.tokenizer.decode(turns.input_ids) == prompt + "joy<|im_end|>"


def test_a_template_that_changes_the_answer_or_the_prompt_is_refused():
    tokenizer = tiny_mllms.write_tokenizer("smolvlm")
    tokenizer.chat_template = tokenizer.chat_template.replace("part['text']", "part['text'] | upper")
    with pytest.raises(ChatTemplateError, match="changes the answer 'Yes' to ' YES"):
        Chat(tokenizer)
    tokenizer = tiny_mllms.write_tokenizer("smolvlm")
    tokenizer.chat_template = tokenizer.chat_template.replace("'Assistant:'", "'Bot:'")
    with pytest.raises(ChatTemplateError, match="does not begin an answered chat as it ends a prompt"):
        Chat(tokenizer)


@torch.no_grad()
def test_step_0_gives_the_foundations_own_logits_for_rows_with_pictures_and_clips(recipe):
    from transformers import AutoModelForImageTextToText

    model, processor = initial_model(recipe, 0)
    foundation = AutoModelForImageTextToText.from_pretrained(recipe.foundation.mllm).eval()
    for row in rows():
        encoded = encode_sample(row, processor, supervise=True)
        ours = model(**collate([encoded], processor.pad_id)).logits
        theirs = foundation(**foundation_inputs(processor, encoded)).logits
        assert torch.equal(ours, theirs), row["uid"]


def several_media() -> dict:
    """A system turn, two turns of the user with an answer between, and in them a picture, a clip, another picture."""
    first, clip, other = (
        sample(number, fold=0, split="train", label=label, frames=frames)["media"][0]
        for number, label, frames in ((1, "joy", 0), (2, "anger", 3), (3, "fear", 0))
    )
    messages = [
        {"role": "system", "content": "You know feelings."},
        {"role": "user", "content": "First this:\n<image>\nthen that.\n<video>"},
        {"role": "assistant", "content": "joy"},
        {"role": "user", "content": "<image>\nWhich emotion does this show?"},
    ]
    return sample(
        9, fold=0, split="train", label="anger", messages=messages, media=[first, clip, other], uid="several"
    )


@torch.no_grad()
def test_several_pictures_and_a_clip_of_one_row_keep_their_order(recipe):
    """Each run of visual tokens gets the features of its own medium, and all else is the foundation's own forward."""
    from transformers import AutoModelForImageTextToText

    model, processor = initial_model(recipe, 0)
    encoded = encode_sample(several_media(), processor, supervise=True)
    assert [visual.kind for visual in encoded.visuals] == ["image", "video", "image"]
    text = processor.decode(encoded.input_ids)
    assert text.index("You know feelings.") < text.index("First this:")
    embedded = model._with_visuals(torch.tensor([encoded.input_ids]), encoded.visuals)[0]
    place = torch.isin(
        torch.tensor(encoded.input_ids), torch.tensor([p for p in model.place_ids if p is not None])
    )
    alone = torch.cat([model.visual_tokens([visual])[0] for visual in encoded.visuals])
    torch.testing.assert_close(embedded[place], alone, atol=1e-5, rtol=0)
    foundation = AutoModelForImageTextToText.from_pretrained(recipe.foundation.mllm).eval()
    inputs = foundation_inputs(processor, encoded)
    ours = model(**collate([encoded], processor.pad_id)).logits
    torch.testing.assert_close(ours, foundation(**inputs).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_words_alone_beside_rows_with_pictures_are_as_if_alone(recipe):
    model, processor = perturbed(recipe)
    words = [in_words(rows()[0]), in_words(rows()[1])]
    mixed = [
        encode_sample(row, processor, supervise=True)
        for row in (words[0], *rows()[1:3], several_media(), words[1])
    ]
    bins = first_fit([len(row.input_ids) for row in mixed], 10_000)
    packed = pack(mixed, bins, processor.pad_id)
    packed["visuals"] = [visual for one in bins for i in one for visual in mixed[i].visuals]
    joint = float(model(**packed, supervised_only=True, num_items_in_batch=1).loss)
    padded = float(model(**collate(mixed, processor.pad_id), supervised_only=True, num_items_in_batch=1).loss)
    singly = sum(
        float(model(**collate([row], processor.pad_id), supervised_only=True, num_items_in_batch=1).loss)
        for row in mixed
    )
    assert joint == pytest.approx(singly, abs=1e-4) and padded == pytest.approx(singly, abs=1e-4)


def test_a_batch_without_a_picture_gives_mvp_a_gradient_of_zero(recipe):
    """Under ZeRO every rank must run MVP and have its gradients; the loss is that of a model that is not training."""
    model, processor = perturbed(recipe)
    batch = collate([encode_sample(in_words(rows()[0]), processor, supervise=True)], processor.pad_id)
    with torch.no_grad():
        expected = model(**batch).loss
    model.train()
    loss = model(**batch).loss
    loss.backward()
    assert torch.equal(loss, expected)
    own = {name: p.grad for name, p in model.named_parameters() if name in model.projector_names()}
    assert own and all(grad is not None and not grad.any() for grad in own.values())


def foundation_inputs(processor, encoded: Encoded) -> dict:
    """What the foundation's own forward takes for one row."""
    ids = torch.tensor([encoded.input_ids])
    if len(encoded.visuals) > 1:
        return _inputs_of_several(processor, ids, encoded.visuals)
    (visual,) = encoded.visuals
    config, pixels = processor.foundation_config, visual.pixels
    inputs: dict = {"input_ids": ids}
    if config.model_type == "qwen2_5_vl":
        kind = "video" if visual.kind == "video" else "image"
        inputs["pixel_values_videos" if kind == "video" else "pixel_values"] = pixels
        inputs[f"{kind}_grid_thw"] = torch.tensor([visual.grid_thw])
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (
            ids == config.video_token_id
        ).int()
    elif config.model_type == "llava_onevision":
        if visual.kind == "video":
            inputs["pixel_values_videos"] = pixels[None]
        else:
            inputs |= {
                "pixel_values": pixels[None],
                "image_sizes": torch.tensor([pixels.shape[-2:]]),
                "batch_num_images": torch.tensor([2]),  # one view a picture, as for several pictures
            }
    else:
        inputs["pixel_values"] = pixels[None] if config.model_type == "smolvlm" else pixels
    return inputs


def _inputs_of_several(processor, ids: torch.Tensor, visuals: list) -> dict:
    config = processor.foundation_config
    pixels = torch.cat([visual.pixels for visual in visuals])
    stills = torch.cat([visual.pixels for visual in visuals if visual.kind == "image"])
    if config.model_type == "qwen2_5_vl":
        clips = torch.cat([visual.pixels for visual in visuals if visual.kind == "video"])
        grids = {
            kind: torch.tensor([visual.grid_thw for visual in visuals if visual.kind == kind])
            for kind in ("image", "video")
        }
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        return {
            "input_ids": ids, "pixel_values": stills, "pixel_values_videos": clips, "mm_token_type_ids": kinds,
            "image_grid_thw": grids["image"], "video_grid_thw": grids["video"],
        }  # fmt: skip
    if config.model_type == "llava_onevision":
        (clip,) = [visual.pixels for visual in visuals if visual.kind == "video"]
        return {
            "input_ids": ids, "pixel_values": stills[:, None], "pixel_values_videos": clip[None],
            "image_sizes": torch.tensor([stills.shape[-2:]] * 2), "batch_num_images": torch.tensor([2]),
        }  # fmt: skip
    return {"input_ids": ids, "pixel_values": pixels[None] if config.model_type == "smolvlm" else pixels}


def test_packed_and_padded_batches_give_the_same_loss_and_gradients(recipe):
    model, processor = perturbed(recipe)
    encoded = [encode_sample(row, processor, supervise=True) for row in rows()]

    def loss_and_gradients(batch: dict) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(**batch, supervised_only=True).loss
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    padded = loss_and_gradients(collate(encoded, processor.pad_id))
    assert padded[0] > 0 and all(gradient.isfinite().all() for gradient in padded[1])
    for capacity in (0, 500):
        bins = first_fit([len(row.input_ids) for row in encoded], capacity)
        batch: dict = pack(encoded, bins, processor.pad_id)
        batch["visuals"] = [visual for one in bins for i in one for visual in encoded[i].visuals]
        packed = loss_and_gradients(batch)
        assert packed[0] == pytest.approx(padded[0], abs=1e-5)
        for ours, theirs in zip(packed[1], padded[1], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_options_scored_from_one_pass_equal_a_full_forward_for_each(recipe):
    model, processor = perturbed(recipe)
    options = ["joy", "Ask for help", "sadness"]
    ids = option_token_ids(options, processor.continuation, processor.end_id)
    prompts = [Prompt(encode_sample(row, processor, supervise=False), ids) for row in rows()]

    def batch(encoded: list[Encoded]) -> dict:
        return collate(encoded, processor.pad_id)

    scorer = Scorer(model, batch, processor.decode, [processor.end_id], batch_size=5)
    for prompt, answer in zip(prompts, scorer.answers(prompts), strict=True):
        for option, found in zip(ids, answer.log_probs, strict=True):
            whole = prompt.encoded._replace(
                input_ids=[*prompt.encoded.input_ids, *option],
                labels=[IGNORED] * (len(prompt.encoded.input_ids) + len(option)),
                positions=None,
            )
            if prompt.encoded.positions:
                after = max(map(max, prompt.encoded.positions)) + 1
                rest = list(range(after, after + len(option)))
                whole = whole._replace(positions=[[*axis, *rest] for axis in prompt.encoded.positions])
            logits = model(**batch([whole])).logits[0].log_softmax(-1)
            start = len(prompt.encoded.input_ids) - 1
            naive = sum(float(logits[start + k, token]) for k, token in enumerate(option))
            assert found == pytest.approx(naive, abs=1e-5)


@torch.no_grad()
def test_positions_behind_the_media_are_the_foundations_own(mllms, tiny_recipe):
    foundation = FoundationConfig(family="attached", mllm=str(mllms["qwen2_5_vl"]), max_side_px=32)
    model, processor = initial_model(tiny_recipe.model_copy(update={"foundation": foundation}), 0)
    for row in rows():
        encoded = encode_sample(row, processor, supervise=True)
        inputs = foundation_inputs(processor, encoded)
        found, _ = model.foundation.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            inputs.get("image_grid_thw"),
            inputs.get("video_grid_thw"),
        )
        assert found[:, 0].tolist() == encoded.positions


@torch.no_grad()
@pytest.mark.parametrize("lora", [LoRAConfig(rank=2), None])
def test_saved_and_loaded_gives_the_same_logits(recipe, tmp_path, lora):
    model, processor = perturbed(recipe.model_copy(update={"lora": lora}))
    batch = collate([encode_sample(row, processor, supervise=True) for row in rows()], processor.pad_id)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "light")
    processor.save_pretrained(tmp_path / "light")
    assert torch.equal(load_model(str(tmp_path / "light"))(**batch).logits, expected)
    again = load_processor(str(tmp_path / "light"))
    assert again.settings() == processor.settings() and again.end_id == processor.end_id
    model.config.foundations = None
    model.merge_lora()
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(
        load_model(str(tmp_path / "whole"))(**batch).logits, expected, atol=1e-5, rtol=0
    )


def test_training_tunes_mvp_and_lora_and_keeps_the_foundation(recipe):
    before, _ = initial_model(recipe, recipe.seed)
    result = train_fold(recipe, 0, "attached")
    assert result["perspectives"]["content"] > 0 and result["perspectives"]["relation"] > 0
    after = load_model(str(Path(recipe.out) / "fold-0"))
    trained = before.trained_names()
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert name in trained or torch.equal(old, new), name
    assert any(not torch.equal(p, dict(before.named_parameters())[n]) for n, p in after.named_parameters())


def test_full_language_tunes_every_weight_of_the_language_model(mllms, tiny_recipe):
    foundation = FoundationConfig(family="attached", mllm=str(mllms["smolvlm"]))
    recipe = TrainRecipe.model_validate(
        {
            **tiny_recipe.model_dump(),
            "foundation": foundation.model_dump(),
            "lora": None,
            "full_language": True,
        }
    )
    before, _ = initial_model(recipe, recipe.seed)
    old = {name: p.clone() for name, p in before.get_decoder().named_parameters()}
    train_fold(recipe, 0, "full")
    after = load_model(str(Path(recipe.out) / "fold-0"))
    moved = [name for name, p in after.get_decoder().named_parameters() if not torch.equal(p, old[name])]
    assert len(moved) > 0.8 * len(old)
    tower = zip(
        before.foundation.model.vision_model.parameters(), after.foundation.model.vision_model.parameters()
    )
    assert all(torch.equal(a, b) for a, b in tower)


def test_what_does_not_fit_the_family_is_refused_by_the_recipe():
    with pytest.raises(ValueError, match="the attached family needs mllm"):
        FoundationConfig(family="attached")
    with pytest.raises(ValueError, match="the attached family takes no vision"):
        FoundationConfig(family="attached", mllm="m", vision="v")
    assert MVPConfig().content


def test_zero_3_trains_an_attached_foundation_to_the_weights_of_zero_2(mllms, tiny_recipe, tmp_path):
    foundation = FoundationConfig(family="attached", mllm=str(mllms["smolvlm"]))
    found = []
    for stage in (2, 3):
        settings = tiny_recipe.deepspeed.model_copy(update={"stage": stage})
        recipe = tiny_recipe.model_copy(
            update={"foundation": foundation, "deepspeed": settings, "out": str(tmp_path / f"zero-{stage}")}
        )
        result = train_fold(recipe, 0, "zero")
        assert result["perspectives"]["content"] > 0
        found.append(load_model(f"{recipe.out}/fold-0").state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=0)
