"""How each foundation takes pictures: normalisation, odd sizes, transparency, and clips with an odd number of frames."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from emollm.data.collate import SampleError, encode_sample
from emollm.model.attached_processor import AttachedProcessor
from emollm.model.families import Qwen25VL, Size, make_family
from tests.emollm.train.small_emobench import picture, sample
from tests.fixtures.tiny_mllms import MLLMS, make, write_tokenizer

# Of white, by channel: (1 - mean) / std of the published checkpoints' preprocessor_config.json.
CLIP_WHITE = (1.930336, 2.074883, 2.145898)
HALF_WHITE = (1.0, 1.0, 1.0)
WHITE = {
    "llava": CLIP_WHITE,
    "llava_onevision": HALF_WHITE,
    "qwen2_5_vl": CLIP_WHITE,
    "smolvlm": HALF_WHITE,
}


def processor_of(family: str) -> AttachedProcessor:
    return AttachedProcessor(write_tokenizer(family), make(family)[0].config, max_side_px=32)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("family", sorted(MLLMS))
def test_white_and_transparent_pictures_are_normalised_as_the_checkpoint_wants(family):
    seen = processor_of(family).visual([encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 0)))], False).pixels
    if family == "qwen2_5_vl":  # (patches, channels · depth · side²)
        seen = seen.unflatten(1, (3, -1)).transpose(0, 1).flatten(1)[None]
    for channel, white in enumerate(WHITE[family]):
        torch.testing.assert_close(
            seen[0, channel], torch.full_like(seen[0, channel], white), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("family", sorted(MLLMS))
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (640, 4), (31, 33), (700, 3)])
def test_a_picture_of_any_size_has_as_many_tokens_as_its_text_has_places(family, size):
    model, _ = make(family)
    processor = processor_of(family)
    visual = processor.visual([encoded(Image.new("RGB", size, "red"))], False)
    text = processor.family.text(Size(0, *size))
    (tokens,) = processor.family.tokens(model, [visual])
    assert len(tokens) == text.count(processor.family.image_token)


def test_the_ends_of_a_wide_picture_are_seen_by_llava():
    wide = Image.new("RGB", (96, 32), "white")
    marked = wide.copy()
    marked.paste("black", (0, 0, 16, 32))
    processor = processor_of("llava")
    plain, other = (processor.visual([encoded(image)], False).pixels for image in (wide, marked))
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_qwens_clips_hold_two_frames_a_patch_and_repeat_the_last(frames):
    family = make_family(make("qwen2_5_vl")[0].config, 32)
    assert isinstance(family, Qwen25VL)
    colours = [(40 * number, 0, 0) for number in range(frames)]
    clip = family.visual([Image.new("RGB", (16, 16), colour) for colour in colours], True)
    assert clip.grid_thw == family.grid(Size(frames, 16, 16)) == (-(-frames // 2), 4, 4)
    red = clip.pixels.unflatten(1, (3, 2, -1))[:, 0].unflatten(0, (len(clip.pixels) // 16, 16))
    expected = [colour[0] / 255 for colour in [*colours, *colours[-1:] * (frames % 2)]]
    found = (red.mean((1, 3)) * 0.26862954 + 0.48145466).flatten()
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_picture_of_another_size_than_its_row_says_is_named_with_the_row():
    row = sample(1, fold=0, split="train", label="joy")
    row["media"][0] |= {"data": [picture("joy", 1, side=32)], "width": 8, "height": 32}
    with pytest.raises(SampleError, match=r"drawn/all/0001: media\[0\].*32x32.*8x32"):
        encode_sample(row, processor_of("qwen2_5_vl"), supervise=True)
