"""What the model hears: a Whisper encoder's frames, averaged to a fixed number of tokens a sound, then projected.

A sound longer than Whisper's window (30 s) is encoded window by window; only frames that stand for sound are averaged,
never the silence Whisper is padded with. The encoder is frozen, so its pooled frames can be kept between steps.

Shape suffixes: W windows, M mel bins, X mel frames of one window, F encoder frames (50 a second), A sounds,
K tokens of one sound, D width of the encoder, L width of the language model.
"""

from __future__ import annotations

import io
import wave
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

SAMPLE_RATE = 16_000
_SAMPLES_PER_FRAME = 320  # of the encoder: 10 ms mel frames, halved by its second convolution


class Sound(NamedTuple):
    """One sound as the encoder takes it: log-mel windows (W, M, X) and how many encoder frames are not padding."""

    mel_WMX: Tensor
    frames: int


class SoundReader:
    """16 kHz mono WAV bytes, as EmoBench stores them, to log-mel windows of the length that a Whisper encoder takes."""

    def __init__(self, mel_bins: int, window_frames: int) -> None:
        """`window_frames`: encoder frames of one window (`max_source_positions` of the Whisper config)."""
        self.window_frames = window_frames
        self.window_samples = window_frames * _SAMPLES_PER_FRAME
        if self.window_samples % SAMPLE_RATE:
            raise ValueError(f"a window of {window_frames} encoder frames is not a whole number of seconds")
        self._extractor = WhisperFeatureExtractor(
            feature_size=mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=self.window_samples // SAMPLE_RATE
        )

    def __call__(self, data: bytes) -> Sound:
        """Raises ValueError where the bytes are no 16 kHz mono 16-bit WAV file, or hold no sound."""
        samples = _wav_samples(data)
        windows = [
            samples[start : start + self.window_samples]
            for start in range(0, len(samples), self.window_samples)
        ]
        features = self._extractor(windows, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
        frames = -(-len(samples) // _SAMPLES_PER_FRAME)
        return Sound(torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)), frames)


def _wav_samples(data: bytes) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(data)) as sound:
            form = (sound.getframerate(), sound.getnchannels(), sound.getsampwidth())
            raw = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"not a WAV file: {error}") from error
    if form != (SAMPLE_RATE, 1, 2):
        raise ValueError(
            f"a WAV file of {form[0]} Hz, {form[1]} channels, {8 * form[2]} bits; 16 kHz mono 16 bits expected"
        )
    if not raw:
        raise ValueError("a WAV file without any sound")
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768.0


def load_audio_tower(path: str) -> PreTrainedModel:
    """The encoder of a Whisper model in float32; the decoder is not kept."""
    model: Any = WhisperModel.from_pretrained(path, dtype=torch.float32)
    return model.get_encoder()


def audio_tower_from_config(config: dict[str, Any]) -> PreTrainedModel:
    """An encoder with random weights, for weights that are loaded next."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(WhisperConfig(**config))


def hear(tower: PreTrainedModel, sounds: list[Sound], tokens: int) -> Tensor:
    """Encoder frames of each sound averaged to `tokens` equal stretches of it. → (A, K, D)"""
    pooled = []
    for sound in sounds:
        weight = next(tower.parameters())
        frames_WFD = tower(input_features=sound.mel_WMX.to(weight.device, weight.dtype)).last_hidden_state
        frames_FD = frames_WFD.flatten(0, 1)[: sound.frames]
        pooled.append(nn.functional.adaptive_avg_pool1d(frames_FD.T, tokens).T)
    return torch.stack(pooled)
