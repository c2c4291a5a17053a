"""Asking a trained model about one picture, and exporting it whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO
from emollm.model.emollm import EmoLLM
from emollm.model.processor import EmoLLMProcessor
from emollm.prompting import scaffolded

_QUESTIONS = {
    "emo_c": "Which emotion does this show?",
    "emo_o": "Name the emotion in one word.",
    "intent": "What does the person want to say?",
    "hate": "Is this hateful?",
    "humor": "Is this funny?",
    "sarcasm": "Is this sarcastic?",
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "emo_c": EMOJI_FEELINGS,
    "emo_o": (),
    "intent": GESTURE_INTENTS,
    "hate": YES_NO,
    "humor": YES_NO,
    "sarcasm": YES_NO,
}


class PredictionError(ValueError):
    """A picture, task or model that cannot be used; the message names it."""


class Prediction(NamedTuple):
    """The chosen option (or generated words) and the options' probabilities, which add up to 1."""

    answer: str
    probabilities: dict[str, float]


def default_options(task: str) -> list[str]:
    if task not in _OPTIONS:
        raise PredictionError(f"task {task!r} is not one of {', '.join(_OPTIONS)}")
    return list(_OPTIONS[task])


class Predictor:
    """A loaded model that answers questions about pictures."""

    def __init__(self, folder: str) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise PredictionError(f"{folder}: no trained model there; train one, or give --model")
        self.model = EmoLLM.from_pretrained(folder).eval()
        self.processor = EmoLLMProcessor.from_pretrained(folder)

    @torch.no_grad()
    def predict(self, image: str, task: str, options: Sequence[str], text: str = "") -> Prediction:
        """The answer for one picture file. Options are scored by the log-likelihood of ` option<end>`."""
        default_options(task)
        try:
            pixels = self.processor.picture(Path(image).read_bytes()).unsqueeze(0)
        except OSError as error:
            raise PredictionError(f"{image}: not a picture that can be read: {error}") from error
        messages = scaffolded(
            [{"role": "user", "content": _content(task, options, text)}], task, self.processor.prompt
        )
        ids = self.processor.render(messages, None, [0]).input_ids
        if not options:
            out = self.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=pixels,
                max_new_tokens=8,
                do_sample=False,
            )
            return Prediction(self.processor.decode(out[0, len(ids) :], skip_special_tokens=True).strip(), {})
        patches = self.model.patch_features(pixels)
        scores = torch.stack([self._score(ids, option, patches) for option in options])
        shares = scores.softmax(0).tolist()
        probabilities = dict(zip(options, shares))
        return Prediction(max(probabilities, key=lambda option: probabilities[option]), probabilities)

    def _score(self, ids: list[int], option: str, patches: torch.Tensor) -> torch.Tensor:
        answer = self.processor.answer_ids(option)
        labels = [-100] * len(ids) + answer
        output = self.model(
            input_ids=torch.tensor([ids + answer]),
            labels=torch.tensor([labels]),
            patches=patches,
            supervised_only=True,
            num_items_in_batch=1,
        )
        assert output.loss is not None
        return -output.loss


def _content(task: str, options: Sequence[str], text: str) -> str:
    """The user's turn as EmoBench words it: question, text, lettered options, picture last."""
    lines = [_QUESTIONS[task]]
    if text:
        lines.append(text)
    if options:
        lines.append("Options: " + " ".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options)))
    return "\n".join([*lines, "<image>"])


def export(model: str, destination: str, *, merge: bool) -> None:
    """Write a trained fold as a folder with all weights; `merge` folds LoRA in. Gives the same answers."""
    if not (Path(model) / "config.json").is_file():
        raise PredictionError(f"{model}: no trained model there")
    if Path(destination).exists() and any(Path(destination).iterdir()):
        raise PredictionError(f"{destination}: is there already and not empty; give a new folder")
    loaded = EmoLLM.from_pretrained(model)
    if merge:
        loaded.merge_lora()
    loaded.config.foundations = None
    loaded.save_pretrained(destination)
    EmoLLMProcessor.from_pretrained(model).save_pretrained(destination)
