"""Asking a trained model about one picture, and exporting it whole."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO
from emollm.model.load import load_model, load_processor

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
        self.model = load_model(folder).eval()
        self.processor = load_processor(folder)

    def predict(self, image: str, task: str, options: Sequence[str], text: str = "") -> Prediction:
        """The answer for one picture file, asked and scored exactly as `emollm evaluate` does."""
        from emollm.evaluate.protocol import EvaluationError
        from emollm.evaluate.run import encode_prompts, make_scorer

        default_options(task)
        try:
            medium = {"kind": "image", "data": [Path(image).read_bytes()]}
        except OSError as error:
            raise PredictionError(f"{image}: cannot be read: {error}") from error
        sample = {
            "uid": image,
            "sub_task": task,
            "messages": [{"role": "user", "content": _content(task, options, text)}],
            "options": list(options),
            "media": [medium],
        }
        try:
            prompts = encode_prompts([sample], self.processor, withhold_media=False)
        except EvaluationError as error:
            raise PredictionError(f"{error}") from error
        (answer,) = make_scorer(self.model, self.processor, batch_size=1).answers(prompts)
        if answer.choice is None:
            return Prediction((answer.text or "").strip(), {})
        shares = torch.tensor(answer.log_probs).softmax(0).tolist()
        return Prediction(options[answer.choice], dict(zip(options, shares, strict=True)))


def _content(task: str, options: Sequence[str], text: str) -> str:
    """The user's turn as EmoBench words it: question, lettered options, text, picture last."""
    lines = [_QUESTIONS[task]]
    if options:
        lines.append("Options: " + " ".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options)))
    if text:
        lines.append(f'Text: "{text}"')
    return "\n".join([*lines, "<image>"])


def export(model: str, destination: str, *, merge: bool) -> None:
    """Write a trained fold as a folder with all weights; `merge` folds LoRA in. Gives the same answers."""
    if not (Path(model) / "config.json").is_file():
        raise PredictionError(f"{model}: no trained model there")
    if Path(destination).exists() and any(Path(destination).iterdir()):
        raise PredictionError(f"{destination}: is there already and not empty; give a new folder")
    loaded = load_model(model)
    if merge:
        loaded.merge_lora()
    loaded.config.foundations = None
    loaded.save_pretrained(destination)
    load_processor(model).save_pretrained(destination)
    if (Path(model) / "fold.json").is_file():  # which protocol's test rows it has not seen
        shutil.copy(Path(model) / "fold.json", destination)
