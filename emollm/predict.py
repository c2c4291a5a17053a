"""Asking a trained model about one picture or video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO
from dataset_build.media import open_picture, picture_format, read_clip
from dataset_build.schema import PLACEHOLDERS
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
    """A picture, video, task or model that cannot be used; the message names it."""


class Prediction(NamedTuple):
    """The chosen option (or generated words) and the options' probabilities, which add up to 1."""

    answer: str
    probabilities: dict[str, float]


def default_options(task: str) -> list[str]:
    if task not in _OPTIONS:
        raise PredictionError(f"task {task!r} is not one of {', '.join(_OPTIONS)}")
    return list(_OPTIONS[task])


class Predictor:
    """A loaded model that answers questions about pictures and videos."""

    def __init__(self, folder: str) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise PredictionError(f"{folder}: no trained model there; train one, or give --model")
        self.model = load_model(folder).eval()
        self.processor = load_processor(folder)

    def predict(
        self, path: str, task: str, options: Sequence[str], text: str = "", frames: int = 4
    ) -> Prediction:
        """The answer for one picture or video file, asked and scored exactly as `emollm evaluate` does.

        Of a video `frames` are seen, evenly spaced, and its sound is heard where the model hears.
        """
        from emollm.evaluate.protocol import EvaluationError
        from emollm.evaluate.run import encode_prompts, make_scorer

        default_options(task)
        media = _read(path, frames)
        sample = {
            "uid": path,
            "sub_task": task,
            "messages": [{"role": "user", "content": _content(task, options, text, media)}],
            "options": list(options),
            "media": media,
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


def _read(path: str, frames: int) -> list[dict[str, Any]]:
    """The media of a file as a row of EmoBench has them: one picture, or the frames of a clip and its sound."""
    try:
        with open(path, "rb") as stream:
            if picture_format(stream.read(16)):
                stream.seek(0)
                data = stream.read()
                width, height = open_picture(data).size
                return [{"kind": "image", "data": [data], "width": width, "height": height}]
        return [
            {"kind": one.kind, "data": list(one.data), "width": one.width, "height": one.height}
            for one in read_clip(path, frames)
        ]
    except OSError as error:
        raise PredictionError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise PredictionError(f"{path}: neither a picture nor a video that can be used: {error}") from error


def _content(task: str, options: Sequence[str], text: str, media: Sequence[dict[str, Any]]) -> str:
    """The user's turn as EmoBench words it: question, lettered options, text, picture or video last."""
    lines = [_QUESTIONS[task]]
    if options:
        lines.append("Options: " + " ".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options)))
    if text:
        lines.append(f'Text: "{text}"')
    return "\n".join([*lines, "".join(PLACEHOLDERS[medium["kind"]] for medium in media)])
