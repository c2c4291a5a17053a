"""Loss on the answer and nowhere else; errors that name the sample."""

from __future__ import annotations

import pytest

from emollm.config import TrainRecipe
from emollm.data.collate import SampleError, collate, encode_sample, encode_text
from emollm.data.masking import IGNORED, EmptyMaskError
from emollm.prompting import SCAFFOLDS
from emollm.train.build import initial_processor
from tests.emollm.train.small_emobench import sample


@pytest.fixture
def processor(tiny_recipe: TrainRecipe):
    return initial_processor(tiny_recipe)


@pytest.mark.parametrize("answer", ["joy", "Ask for help", "Yes", "naïve 😀"])
@pytest.mark.parametrize("frames", [0, 3])
def test_supervised_tokens_decode_to_the_answer(processor, answer: str, frames: int) -> None:
    row = sample(1, fold=0, split="train", label=answer, frames=frames)
    encoded = encode_sample(row, processor, supervise=True)
    supervised = [label for label in encoded.labels if label != IGNORED]
    assert processor.decode(supervised) == f" {answer}<|im_end|>"
    assert encoded.labels[-len(supervised) :] == encoded.input_ids[-len(supervised) :]
    assert encoded.labels[0] == IGNORED
    places = encoded.input_ids.count(processor.image_token_id)
    assert places == (frames * 4 if frames else 16)
    assert len(encoded.pictures) == max(1, frames) and encoded.media_frames == [frames]


def test_prompt_ends_with_the_answer_prefix_and_text_comes_first(processor) -> None:
    row = sample(1, fold=0, split="train", label="joy")
    encoded = encode_sample(row, processor, supervise=False)
    text = processor.decode([i for i in encoded.input_ids if i != processor.image_token_id])
    user = row["messages"][0]["content"].replace("<image>", "")
    assert text == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\nAnswer:"
    assert set(encoded.labels) == {IGNORED}


def test_withheld_media_leave_no_places(processor) -> None:
    encoded = encode_sample(
        sample(1, fold=0, split="train", label="joy"), processor, supervise=True, withhold_media=True
    )
    assert processor.image_token_id not in encoded.input_ids
    assert encoded.pictures == [] and encoded.media_frames == []
    assert "<image>" not in processor.decode(encoded.input_ids)


def test_emoprompt_puts_the_scaffold_first(processor) -> None:
    row = sample(1, fold=0, split="train", label="joy")
    direct = encode_text(row, processor, supervise=False)
    processor.prompt = "emoprompt"
    guided = encode_text(row, processor, supervise=False)
    assert SCAFFOLDS["emo_c"] in processor.decode(guided.input_ids)
    assert len(guided.input_ids) > len(direct.input_ids)


def test_an_answer_cut_off_or_empty_is_an_error_with_the_uid(processor) -> None:
    row = sample(7, fold=0, split="train", label="joy")
    length = len(encode_text(row, processor, supervise=True).input_ids)
    with pytest.raises(
        EmptyMaskError, match=f"drawn/all/0007: the sequence has {length} tokens.*takes {length - 1}"
    ):
        encode_text(row, processor, supervise=True, max_tokens=length - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media": []}, "no medium"),
        ({"messages": [{"role": "user", "content": "no place"}]}, "no placeholder"),
        ({"messages": [{"role": "user", "content": "<video>"}]}, "stands for a still picture"),
    ],
)
def test_media_and_placeholders_must_agree(processor, changes: dict, message: str) -> None:
    row = {**sample(3, fold=0, split="train", label="joy"), **changes}
    with pytest.raises(SampleError, match=f"drawn/all/0003.*{message}"):
        encode_sample(row, processor, supervise=True)


def test_an_undecodable_picture_is_an_error_with_the_uid(processor) -> None:
    row = sample(3, fold=0, split="train", label="joy")
    row["media"][0]["data"] = [b"not a picture"]
    with pytest.raises(SampleError, match=r"drawn/all/0003: media\[0\] cannot be decoded"):
        encode_sample(row, processor, supervise=True)


def test_collate_pads_on_either_side(processor) -> None:
    rows = [
        encode_sample(sample(n, fold=0, split="train", label="joy"), processor, supervise=True)
        for n in (0, 1, 2)
    ]
    right, left = collate(rows, processor.pad_id), collate(rows, processor.pad_id, "left")
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        assert right["input_ids"][i, :n].tolist() == row.input_ids == left["input_ids"][i, -n:].tolist()
        assert int(right["attention_mask"][i].sum()) == n and left["attention_mask"][i, -n:].all()
        assert right["labels"][i, n:].eq(IGNORED).all()
    assert right["pixel_values"].shape == (3, 3, 56, 56) and right["media_frames"].tolist() == [0, 0, 0]
