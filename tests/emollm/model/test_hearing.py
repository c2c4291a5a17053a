"""What is heard: only the sound itself, in places of its own, the same packed or padded, saved or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emollm.config import TrainRecipe
from emollm.data.collate import SampleError, collate, encode_sample, encode_text
from emollm.data.packing import first_fit, pack
from emollm.model.audio import SoundReader, hear, load_audio_tower
from emollm.model.emollm import EmoLLM, MediaMismatchError
from emollm.train.build import initial_model, initial_processor
from emollm.train.loop import train_fold
from tests.emollm.train.small_emobench import read_rows, sample, sound
from tests.fixtures.tiny_models import AUDIO


@pytest.fixture
def hearing(tiny_recipe: TrainRecipe, foundations: Path) -> TrainRecipe:
    """The smoke recipe with a Whisper encoder of one-second windows."""
    foundation = tiny_recipe.foundation.model_copy(
        update={"audio": str(foundations / AUDIO), "tokens_per_audio": 3}
    )
    return tiny_recipe.model_copy(update={"foundation": foundation})


def clip(number: int = 4, **changes) -> dict:
    return sample(number, fold=0, split="train", label="joy", frames=2, sound_s=0.7, **changes)


def test_a_long_sound_is_cut_into_windows_and_its_padding_is_not_counted():
    reader = SoundReader(mel_bins=20, window_frames=50)
    heard = reader(sound(2.5))
    assert heard.mel_WMX.shape == (3, 20, 100) and heard.frames == 125
    assert reader(sound(1.0)).mel_WMX.shape[0] == 1 and reader(sound(1.0)).frames == 50


@torch.no_grad()
def test_tokens_are_means_over_equal_stretches_of_the_sound_alone(foundations: Path):
    tower = load_audio_tower(str(foundations / AUDIO)).eval()
    one = SoundReader(20, 50)(sound(0.6))
    frames = tower(input_features=one.mel_WMX).last_hidden_state[0, :30]
    expected = torch.stack([part.mean(0) for part in frames.chunk(3)])
    (found,) = hear(tower, [one], tokens=3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    alone = hear(tower, [SoundReader(20, 50)(sound(0.3))], 3)
    both = hear(tower, [one, SoundReader(20, 50)(sound(0.3))], 3)
    assert torch.equal(both[1], alone[0]), "what else is in the batch changes nothing"


def test_a_model_that_does_not_hear_reads_the_row_as_if_it_had_no_sound(tiny_recipe: TrainRecipe):
    processor = initial_processor(tiny_recipe)
    deaf = encode_text(clip(), processor, supervise=True)
    silent = encode_text(sample(4, fold=0, split="train", label="joy", frames=2), processor, supervise=True)
    assert deaf == silent and deaf.n_sounds == 0


def test_a_sound_has_places_of_its_own(hearing: TrainRecipe):
    processor = initial_processor(hearing)
    encoded = encode_sample(clip(), processor, supervise=True)
    assert encoded.input_ids.count(processor.audio_token_id) == 3
    assert encoded.input_ids.count(processor.image_token_id) == 8
    assert encoded.media_frames == [2] and encoded.n_sounds == 1 == len(encoded.sounds)
    assert processor.audio_token_id != processor.image_token_id


def test_a_broken_sound_is_an_error_with_the_uid(hearing: TrainRecipe):
    processor, row = initial_processor(hearing), clip()
    row["media"][1]["data"] = [b"RIFF, but nothing else"]
    with pytest.raises(SampleError, match=r"drawn/all/0004: media\[1\] cannot be decoded: not a WAV file"):
        encode_sample(row, processor, supervise=True)


def test_sounds_and_places_must_agree(hearing: TrainRecipe):
    model, processor = initial_model(hearing, 0)
    batch = collate([encode_sample(clip(), processor, supervise=True)], processor.pad_id)
    with pytest.raises(MediaMismatchError, match="sounds give 0 tokens, but input_ids leave 3 places"):
        model(**{**batch, "sounds": None})


def test_packed_and_padded_batches_with_sounds_give_the_same_loss_and_gradients(hearing: TrainRecipe):
    model, processor = initial_model(hearing, 0)
    rows = [encode_sample(row, processor, supervise=True) for row in read_rows(hearing.data, "train")[:8]]
    assert any(row.sounds for row in rows) and any(not row.sounds for row in rows)

    def loss_and_gradients(batch: dict) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(**batch, supervised_only=True).loss
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    padded = loss_and_gradients(collate(rows, processor.pad_id))
    bins = first_fit([len(row.input_ids) for row in rows], 400)
    order = [rows[i] for one in bins for i in one]
    batch = pack(rows, bins, processor.pad_id)
    batch["pixel_values"] = torch.stack([picture for row in order for picture in row.pictures])
    batch["media_frames"] = [frames for row in order for frames in row.media_frames]
    batch["heard"] = model.heard([sound for row in order for sound in row.sounds])
    packed = loss_and_gradients(batch)
    assert packed[0] == pytest.approx(padded[0], abs=1e-5)
    for ours, theirs in zip(packed[1], padded[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_hearing_model_is_saved_and_loaded_with_the_same_logits(hearing: TrainRecipe, tmp_path: Path):
    from emollm.model.processor import EmoLLMProcessor

    model, processor = initial_model(hearing, 0)
    batch = collate([encode_sample(clip(), processor, supervise=True)], processor.pad_id)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "light")
    processor.save_pretrained(tmp_path / "light")
    assert torch.equal(EmoLLM.from_pretrained(tmp_path / "light")(**batch).logits, expected)
    again = EmoLLMProcessor.from_pretrained(tmp_path / "light")
    assert again.settings() == processor.settings() and again.hears
    model.config.foundations = None
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(EmoLLM.from_pretrained(tmp_path / "whole")(**batch).logits, expected)


def test_training_moves_the_audio_projector_and_leaves_the_tower_alone(hearing: TrainRecipe):
    before, _ = initial_model(hearing, hearing.seed)
    train_fold(hearing, 0, "hearing")
    after = EmoLLM.from_pretrained(Path(hearing.out) / "fold-0")
    assert not torch.equal(after.audio_projector.down.weight, before.audio_projector.down.weight)
    same = [
        torch.equal(new, old)
        for new, old in zip(after.audio_tower.parameters(), before.audio_tower.parameters())
    ]
    assert same and all(same)
