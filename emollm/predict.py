"""Asking a trained model about one picture or video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, YES_NO
from dataset_build.media import open_picture, picture_format, read_clip
from dataset_build.schema import PLACEHOLDERS
from emollm.data.collate import Encoded, SampleError, encode_sample, encode_text
from emollm.data.masking import IGNORED, EmptyMaskError
from emollm.evaluate.score import Prompt, Scorer
from emollm.model.load import load_model, load_processor
from emollm.prompting import ANSWER_MARK, TrainingPrompt

REASONING_TOKENS = 160
# Two answers to an open question that have no token in common: where they part, an answer begins.
_ANY_WORDS = ("joy", "fear")

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


class Explanation(NamedTuple):
    """What the model says before it answers (`whole`: it ended by itself), and what it answers behind that."""

    reasoning: str
    whole: bool
    prediction: Prediction


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
        from emollm.evaluate.replica import encode_prompts

        try:
            (prompt,) = encode_prompts([_sample(path, task, options, text, frames)], self.processor)
        except EvaluationError as error:
            raise PredictionError(f"{error}") from error
        return self._prediction(prompt, options)

    def explain(
        self, path: str, task: str, options: Sequence[str], text: str = "", frames: int = 4
    ) -> Explanation:
        """EmoPrompt's reasoning for one file, and the answer behind it; `predict` gives the answer without.

        The model is asked to reason aloud behind the sub-task's scaffold and writes greedily, at most
        `REASONING_TOKENS` tokens; then options are scored where a training row has its answer.
        """
        sample = _sample(path, task, options, text, frames)
        try:
            asked = encode_sample(sample, self.processor, supervise=False, aloud=True)
            (spoken,) = self._scorer(REASONING_TOKENS).answers([Prompt(asked, [])])
            reasoning, mark, _ = self._plain(spoken.text or "").partition(ANSWER_MARK.strip())
            prompt = self._behind(sample, asked, reasoning.strip())
        except (SampleError, EmptyMaskError) as error:
            raise PredictionError(f"{path}: cannot be put to the model: {error}") from error
        whole = bool(mark) or len(spoken.token_ids) < REASONING_TOKENS
        return Explanation(reasoning.strip(), whole, self._prediction(prompt, options))

    def _behind(self, sample: dict[str, Any], asked: Encoded, reasoning: str) -> Prompt:
        """The prompt that ends where the answer begins behind `reasoning`: where training rows with each answer part."""
        training = TrainingPrompt("emoprompt", rationales={sample["uid"]: reasoning})
        said = [
            encode_text({**sample, "answer": answer}, self.processor, supervise=True, training=training)
            for answer in sample["options"] or _ANY_WORDS
        ]
        shortest = (
            min(len(one.input_ids) for one in said) - 2
        )  # before its last token and the end of the turn
        n_same = min(shortest, len(os.path.commonprefix([one.input_ids for one in said])))
        tails = [one.input_ids[n_same:-1] for one in said]
        if any(a is not b and b[: len(a)] == a for a in tails for b in tails):
            tails = [[*tail, self.processor.end_id] for tail in tails]  # as `option_token_ids` does
        positions = said[0].positions
        prompt = asked._replace(
            input_ids=said[0].input_ids[:n_same],
            labels=[IGNORED] * n_same,
            positions=[axis[:n_same] for axis in positions] if positions else None,
        )
        return Prompt(prompt, tails if sample["options"] else [])

    def _prediction(self, prompt: Prompt, options: Sequence[str]) -> Prediction:
        (answer,) = self._scorer().answers([prompt])
        if answer.choice is None:
            return Prediction((answer.text or "").strip(), {})
        shares = torch.tensor(answer.log_probs).softmax(0).tolist()
        return Prediction(options[answer.choice], dict(zip(options, shares, strict=True)))

    def _scorer(self, max_new_tokens: int = 16) -> Scorer:
        from emollm.evaluate.replica import make_scorer

        return make_scorer(self.model, self.processor, 1, max_new_tokens)

    def _plain(self, text: str) -> str:
        """Generated text on one line, without what the tokenizer would take for a special token or a medium's place."""
        for token in (*self.processor.tokenizer.all_special_tokens, *PLACEHOLDERS.values()):
            text = text.replace(token, " ")
        return " ".join(text.split())


def _sample(path: str, task: str, options: Sequence[str], text: str, frames: int) -> dict[str, Any]:
    """A file and a question about it as a row of EmoBench."""
    default_options(task)
    media = _read(path, frames)
    return {
        "uid": path,
        "sub_task": task,
        "messages": [{"role": "user", "content": _content(task, options, text, media)}],
        "options": list(options),
        "media": media,
    }


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
