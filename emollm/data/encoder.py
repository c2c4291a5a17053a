"""A row of EmoBench as one model takes it: what an index, a decode worker and a training step share."""

from __future__ import annotations

from typing import Any, NamedTuple

from dataset_build.provenance import sha256_of_bytes, sha256_of_json
from emollm.data.collate import (
    AnyProcessor,
    Encoded,
    decode_pictures,
    decode_sounds,
    decode_visuals,
    encode_text,
)
from emollm.model.processor import EmoLLMProcessor
from emollm.prompting import TrainingPrompt


class Measured(NamedTuple):
    """What an index holds of a row besides where it lies; `error` says why there is nothing to measure."""

    n_tokens: int = 0
    n_pictures: int = 0
    n_sounds: int = 0
    media_key: str = ""
    rationale: str = "none"
    error: str | None = None


class Encoder(NamedTuple):
    """How training rows become tokens and tensors. Can be sent to another process.

    `max_tokens` is the longest sequence that the model takes, `training` how rows are asked.
    """

    processor: AnyProcessor
    max_tokens: int | None
    training: TrainingPrompt

    def text(self, row: dict[str, Any]) -> Encoded:
        """A row with its answer supervised, its media not decoded. Raises SampleError or EmptyMaskError with the uid."""
        return encode_text(
            row, self.processor, supervise=True, max_tokens=self.max_tokens, training=self.training
        )

    def whole(self, row: dict[str, Any]) -> Encoded:
        """`text` with the media decoded. Raises SampleError with the uid."""
        encoded = self.text(row)
        if isinstance(self.processor, EmoLLMProcessor):
            return encoded._replace(
                pictures=decode_pictures(row, self.processor), sounds=decode_sounds(row, self.processor)
            )
        return encoded._replace(visuals=decode_visuals(row, self.processor))

    def measure(self, row: dict[str, Any]) -> Measured:
        """What the index says of a row; an error is kept, so that all of them can be told at once."""
        try:
            encoded = self.text(row)
        except ValueError as error:
            return Measured(error=str(error))
        pictures = sum(max(1, frames) for frames in encoded.media_frames)
        return Measured(
            len(encoded.input_ids), pictures, encoded.n_sounds, media_key(row), encoded.rationale, None
        )

    def digest(self) -> str:
        """Changes where the tokens of any row might."""
        tokenizer = self.processor.tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", None)
        words = fast.to_str() if fast is not None else sha256_of_json(tokenizer.get_vocab())
        return sha256_of_json(
            {
                "words": sha256_of_bytes(words.encode()),
                "template": str(tokenizer.chat_template),
                "settings": _without_places(self.processor.settings()),
                "max_tokens": self.max_tokens,
                "style": [self.training.style, self.training.mixed_share],
                "rationales": sha256_of_json(sorted(self.training.rationales.items())),
            }
        )


def _without_places(value: Any) -> Any:
    """Settings without the folder that a config was loaded from: it may be named relatively here, absolutely there."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items() if key != "_name_or_path"}
    return value


def media_key(row: dict[str, Any]) -> str:
    """What identifies a row's media: a digest over kind and stored bytes (clips of one file differ); empty without."""
    if not row["media"]:
        return ""
    parts = [[medium["kind"], sha256_of_bytes(b"".join(medium["data"]))] for medium in row["media"]]
    return sha256_of_json(parts)[:32]
