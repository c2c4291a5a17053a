"""From chat messages and encoded media to what a foundation MLLM takes, by its own chat template and picture settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from dataset_build.media import open_picture
from dataset_build.schema import PLACEHOLDERS
from emollm.model.attached_model import AttachedConfig
from emollm.model.chat import Chat, Turns
from emollm.model.families import Size, Visual, make_family
from emollm.model.processor import SETTINGS_FILE
from emollm.prompting import PromptStyle, known_style

_PLACEHOLDER = re.compile("|".join(re.escape(token) for token in PLACEHOLDERS.values()))


class AttachedProcessor:
    """Tokenizer, chat template, picture settings and prompt style of a model on a foundation MLLM.

    These foundations do not hear: sounds and their placeholders are left out.
    """

    hears = False

    def __init__(
        self,
        tokenizer: Any,
        foundation_config: Any,
        *,
        max_side_px: int | None = None,
        prompt: PromptStyle = "direct",
    ) -> None:
        self.tokenizer, self.foundation_config, self.max_side_px = tokenizer, foundation_config, max_side_px
        self.prompt = known_style(prompt)
        self.family = make_family(foundation_config, max_side_px)
        self.chat = Chat(tokenizer)
        self.end_id = self.chat.end_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id

    def render(self, messages: Sequence[dict[str, str]], answer: str | None, media: Sequence[Size]) -> Turns:
        """Token ids of the chat and of the answer behind it if given; `media` has one entry a placeholder.

        Raises ValueError where placeholders and media differ.
        """
        left = list(reversed(media))
        parts = [{"role": turn["role"], "content": self._parts(turn["content"], left)} for turn in messages]
        if left:
            raise ValueError(f"{len(left)} media have no placeholder in the messages")
        return self.chat.turns(self._expanded(self.chat.prompt(parts), media), answer)

    def continuation(self, answer: str) -> list[int]:
        """The ids of an answer behind a prompt, without the end of the turn."""
        return self.chat.continuation(answer)

    def positions(self, input_ids: Sequence[int], media: Sequence[Size]) -> list[list[int]] | None:
        """(3, T) where the foundation counts time, rows and columns; None where it counts tokens."""
        return self.family.positions(input_ids, media) if self.family.needs_positions else None

    def visual(self, data: Sequence[bytes], is_video: bool, stated: tuple[int, int] | None = None) -> Visual:
        """Encoded pictures of one medium as the vision tower takes them.

        `stated` is the width and height that the text was made for. Raises ValueError where a picture's own would give
        another number of tokens.
        """
        pictures: list[Image.Image] = [open_picture(one) for one in data]
        frames = len(pictures) if is_video else 0
        for picture in pictures:
            if stated and self.family.text(Size(frames, *stated)) != self.family.text(
                Size(frames, *picture.size)
            ):
                raise ValueError(
                    f"the picture has {picture.width}x{picture.height} pixels, but the row says {stated[0]}x{stated[1]}"
                )
        return self.family.visual(pictures, is_video)

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(ids, **kwargs)

    def _parts(self, content: str, left: list[Size]) -> list[dict[str, str]]:
        """A turn's content as typed parts; takes its media from the end of `left`."""
        parts: list[dict[str, str]] = []
        position = 0
        for match in _PLACEHOLDER.finditer(content):
            if text := content[position : match.start()].strip("\n"):
                parts.append({"type": "text", "text": text})
            position = match.end()
            if not left:
                raise ValueError(f"a {match.group()} placeholder has no medium")
            size = left.pop()
            if (match.group() == PLACEHOLDERS["video"]) != (size.frames > 0):
                is_a = "a video" if size.frames else "a still picture"
                raise ValueError(f"a {match.group()} placeholder stands for {is_a}")
            if size.frames and self.family.video_token is not None:
                parts.append({"type": "video"})
            else:
                parts += [{"type": "image"}] * max(1, size.frames)
        if text := content[position:].strip("\n"):
            parts.append({"type": "text", "text": text})
        return parts

    def _expanded(self, prompt: str, media: Sequence[Size]) -> str:
        """The prompt with each visual token of the template repeated as often as its medium has tokens.

        In the order of the media, even where a template moves the pictures of a turn before its clips: what stands in
        the prompt is then what `visual` gives, in its order.
        """
        marks = [mark for mark in (self.family.image_token, self.family.video_token) if mark]
        pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", prompt)
        texts: list[str] = []
        for size in media:
            if size.frames and self.family.video_token is None:
                texts += [self.family.text(size._replace(frames=0))] * size.frames
            else:
                texts.append(self.family.text(size))
        places = [place for place, piece in enumerate(pieces) if piece in marks]
        if len(places) != len(texts):
            raise ValueError(
                f"the chat template left {len(places)} places for {len(texts)} pictures; does a text hold "
                f"{' or '.join(marks)}?"
            )
        for place, text in zip(places, texts, strict=True):
            pieces[place] = text
        return "".join(pieces)

    # --- folders ------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            "foundation_config": self.foundation_config.to_dict(),
            "max_side_px": self.max_side_px,
            "prompt": self.prompt,
        }

    def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **_: Any) -> AttachedProcessor:
        folder = Path(pretrained_model_name_or_path)
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        values = settings["foundation_config"]
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(tokenizer, config, max_side_px=settings["max_side_px"], prompt=settings["prompt"])


AutoProcessor.register(AttachedConfig, AttachedProcessor, exist_ok=True)
