"""From chat messages and encoded pictures to token ids and pixels, in the way one model was trained.

The chat template and the settings are saved with the model, so training, evaluation and prediction cannot differ.
Pillow does the resizing; torchvision is not needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, BatchEncoding

from dataset_build.media import open_picture
from dataset_build.schema import PLACEHOLDERS
from emollm.model.audio import SoundReader
from emollm.model.chat import Chat, ChatTemplateError, Turns
from emollm.model.emollm import EmoLLMConfig
from emollm.model.families import Size
from emollm.prompting import PromptStyle, known_style

# The same words as `FoundationConfig.chat`.
ChatFormat = Literal["own", "language"]
SETTINGS_FILE = "processor_config.json"
IMAGE_TOKEN = PLACEHOLDERS["image"]
VIDEO_TOKEN = PLACEHOLDERS["video"]
AUDIO_TOKEN = PLACEHOLDERS["audio"]
# A medium of a prompt that is a sound.
SOUND = Size(-1, 0, 0)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nAnswer:' }}{% endif %}"
)
_END_OF_TURN = "<|im_end|>"
# For tokenizers without ChatML's tokens (Vicuna, Llama 2), which frozen embeddings cannot be taught.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ message['role'] | upper + ': ' }}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' }}{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: Answer:' }}{% endif %}"
)


class EmoLLMProcessor:
    """Tokenizer with the chat template, picture settings and the prompt style of one model."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_size: int = 112,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        tokens_per_image: int = 16,
        tokens_per_frame: int = 4,
        tokens_per_audio: int = 0,
        mel_bins: int = 80,
        audio_window_frames: int = 1500,
        prompt: PromptStyle = "direct",
        chat: ChatFormat = "own",
    ) -> None:
        """`tokens_per_audio` is 0 for a model that does not hear; `mel_bins` and `audio_window_frames` are those of its
        Whisper encoder. `chat`: this project's chat format, or the language model's. Raises ChatTemplateError where the
        tokenizer has none, or one that does not say where the answer is."""
        self.tokenizer = tokenizer
        self.chat_format: ChatFormat = chat
        self.image_size = image_size
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.tokens_per_image, self.tokens_per_frame = tokens_per_image, tokens_per_frame
        self.tokens_per_audio = tokens_per_audio
        self.mel_bins, self.audio_window_frames = mel_bins, audio_window_frames
        self.sound = SoundReader(mel_bins, audio_window_frames) if tokens_per_audio else None
        self.prompt = known_style(prompt)
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
        if tokens_per_audio and AUDIO_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN, AUDIO_TOKEN]})
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.audio_token_id: int = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN) if tokens_per_audio else -1
        chatml = _END_OF_TURN in tokenizer.get_vocab()
        self.end_id: int = tokenizer.convert_tokens_to_ids(_END_OF_TURN) if chatml else tokenizer.eos_token_id
        if self.end_id is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path} has neither {_END_OF_TURN} nor an end token"
            )
        # SentencePiece marks the beginning of a text as that of a word: there no space is put before an answer.
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("joy", add_special_tokens=False))[0]
        self._space = "" if first.startswith("▁") else " "
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._chat: Chat | None = None
        if chat == "language":
            self._chat = Chat(tokenizer, typed=False)
            self.end_id = self._chat.end_id
        else:
            tokenizer.chat_template = CHAT_TEMPLATE if chatml else PLAIN_TEMPLATE

    @property
    def chat_template(self) -> str:
        return str(self.tokenizer.chat_template)

    # --- text -----------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
    ) -> str | list[int]:
        """The chat as the model sees it, as text (media still as placeholders) or as ids (media expanded to one each)."""
        text = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return self.text_ids(text, []) if tokenize else text

    @property
    def hears(self) -> bool:
        """Whether sounds are put to the model; if not, they and their placeholders are left out."""
        return self.tokens_per_audio > 0

    def render(self, messages: Sequence[dict[str, str]], answer: str | None, media: Sequence[Size]) -> Turns:
        """Token ids of the chat, up to where the answer begins, and of the answer with the end of turn if given.

        `media` has one entry a placeholder. In this project's format the answer stands behind `Answer:`, is encoded by
        itself and appended, so its span is known by construction; in the language model's, `Chat` knows it.
        """
        prompt = str(self.apply_chat_template(messages, add_generation_prompt=True))
        if self._chat is not None and not prompt.startswith(self.tokenizer.bos_token or ""):
            prompt = self.tokenizer.bos_token + prompt
        ids = self.text_ids(prompt, media)
        if answer is None:
            return Turns(ids, None)
        if self._chat is not None:
            full = [*self.text_ids(prompt + self._chat.tail(answer), media), self.end_id]
            if full[: len(ids)] != ids:
                raise ChatTemplateError(
                    f"the tokenizer of {self.tokenizer.name_or_path} joins the end of the prompt with the answer {answer!r}; "
                    "set foundation.chat to own"
                )
            return Turns(full, (len(ids), len(full)))
        answer_ids = self.answer_ids(answer)
        return Turns(ids + answer_ids, (len(ids), len(ids) + len(answer_ids)))

    def answer_ids(self, answer: str) -> list[int]:
        """The supervised tokens: the answer behind a space, and the end of the turn."""
        return [*self.continuation(answer), self.end_id]

    def continuation(self, answer: str) -> list[int]:
        """The ids of an answer behind a prompt, without the end of the turn."""
        if self._chat is not None:
            return self._chat.continuation(answer)
        ids: list[int] = self.tokenizer.encode(f"{self._space}{answer}", add_special_tokens=False)
        return ids

    def positions(self, input_ids: Sequence[int], media: Sequence[Size]) -> None:
        """Positions are counted from 0."""

    def text_ids(self, text: str, media: Sequence[Size]) -> list[int]:
        """Ids of `text`; each placeholder becomes as many image or audio tokens as its medium has."""
        ids: list[int] = []
        left = list(reversed(media))
        position = 0
        while position < len(text):
            tokens = (IMAGE_TOKEN, VIDEO_TOKEN, AUDIO_TOKEN) if self.hears else (IMAGE_TOKEN, VIDEO_TOKEN)
            found = [(text.find(token, position), token) for token in tokens]
            start, token = min(((at, name) for at, name in found if at >= 0), default=(len(text), ""))
            if start > position:
                ids += self.tokenizer.encode(text[position:start], add_special_tokens=False)
            if token:
                ids += self._media_ids(token, left.pop() if left else None)
            position = start + len(token)
        if left:
            raise ValueError(f"{len(left)} media have no placeholder in the text {text[:80]!r}")
        return ids

    def _media_ids(self, placeholder: str, medium: Size | None) -> list[int]:
        if medium is None:
            raise ValueError(f"a {placeholder} placeholder has no medium")
        fitting, is_a = (
            (AUDIO_TOKEN, "a sound")
            if medium == SOUND
            else (VIDEO_TOKEN, "a video")
            if medium.frames
            else (IMAGE_TOKEN, "a still picture")
        )
        if placeholder != fitting:
            raise ValueError(f"a {placeholder} placeholder stands for {is_a}")
        if medium == SOUND:
            return [self.audio_token_id] * self.tokens_per_audio
        tokens = medium.frames * self.tokens_per_frame if medium.frames else self.tokens_per_image
        return [self.image_token_id] * tokens

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(ids, **kwargs)

    def batch_decode(self, ids: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(ids, **kwargs)

    # --- pictures -------------------------------------------------------------------------------------------------

    def picture(self, image: bytes | Image.Image) -> Tensor:
        """One encoded picture (or a Pillow image) as normalised (3, side, side) float32; transparency on white.

        Bytes are opened by `dataset_build.media`, within its limits. Raises its MediaError, a ValueError.
        """
        side = self.image_size
        opened = open_picture(image, draft_px=side) if isinstance(image, bytes) else image.convert("RGB")
        rgb = opened.resize((side, side), Image.Resampling.BICUBIC)
        pixels_HWC = np.asarray(rgb, dtype=np.float32) / 255.0
        normal_HWC = (pixels_HWC - np.asarray(self.image_mean, np.float32)) / np.asarray(
            self.image_std, np.float32
        )
        return torch.from_numpy(np.ascontiguousarray(normal_HWC.transpose(2, 0, 1)))

    def __call__(
        self, text: str | None = None, images: Sequence[bytes | Image.Image] = (), return_tensors: str = "pt"
    ) -> BatchEncoding:
        """One prompt (already rendered, with `<image>` placeholders) and its still pictures, ready for `generate`."""
        ids = self.text_ids(text or "", [Size(0, 0, 0)] * len(images))
        data: dict[str, Any] = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        if images:
            data["pixel_values"] = torch.stack([self.picture(image) for image in images])
        return BatchEncoding(data, tensor_type=return_tensors)

    # --- folders --------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            "image_size": self.image_size,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "tokens_per_image": self.tokens_per_image,
            "tokens_per_frame": self.tokens_per_frame,
            "tokens_per_audio": self.tokens_per_audio,
            "mel_bins": self.mel_bins,
            "audio_window_frames": self.audio_window_frames,
            "prompt": self.prompt,
            "chat": self.chat_format,
        }

    def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **_: Any) -> EmoLLMProcessor:
        folder = Path(pretrained_model_name_or_path)
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(f"{path}: not there, so {folder} is not a saved EmoLLM")
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("processor_class", None)
        return cls(AutoTokenizer.from_pretrained(folder), **settings)


AutoProcessor.register(EmoLLMConfig, EmoLLMProcessor, exist_ok=True)
