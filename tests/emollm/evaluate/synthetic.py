"""Finished evaluations of made-up models, made by the real code from answers of known quality: no model is needed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS
from emollm.config import EvaluateRecipe
from emollm.evaluate import open_set, records, scores
from emollm.evaluate.protocol import Row
from emollm.evaluate.results import RESULTS_VERSION
from emollm.evaluate.score import Answer

VOCABULARY = {
    "emo_c": EMOJI_FEELINGS,
    "intent": GESTURE_INTENTS,
    "humor": ("Yes", "No"),
    "sarcasm": ("Yes", "No"),
}
OPEN_ANSWERS = {"joy": "happy", "sadness": "gloomy", "anger": "fury", "fear": "scared", "love": "affection"}


def rows(n: int, tasks: Sequence[str] = ("emo_c", "emo_o", "intent", "sarcasm")) -> list[Row]:
    """`n` rows of several sub-tasks and sources, two or three of them about one clip."""
    generator = random.Random(1)
    made = []
    for number in range(n):
        task = tasks[number % len(tasks)]
        options = VOCABULARY.get(task, ())
        gold = generator.choice(options or EMOJI_FEELINGS)
        source = ("clips", "pictures", "memes")[number // len(tasks) % 3]
        prompt = f"What does scene {number} show, as far as the face, the hands and the words around it tell?"
        if options:
            prompt += "\nOptions: " + " ".join(
                f"({chr(65 + k)}) {option}" for k, option in enumerate(options)
            )
        made.append(
            Row(
                f"{source}/test/{task}-{number:06d}",
                source,
                task,
                "test",
                None,
                prompt + "\n<image>",
                options,
                gold,
                (),
                {"clip": f"c{number // 10}"},
                False,
                ("image",),
                (f"sha{number}",),
                f"test/{source}-00000.parquet",
                number,
            )  # fmt: skip
        )
    return made


def answers(asked: Sequence[Row], skill: float, seed: int) -> list[Answer]:
    """Answers of a model that knows `skill` of the samples; what it guesses it is less sure of."""
    generator = random.Random(seed)
    made = []
    for row in asked:
        knows = generator.random() < skill
        if not row.options:
            right = OPEN_ANSWERS.get(row.answer, row.answer)
            text = (
                right
                if knows
                else generator.choice(["", "not sure", "the quick fox", "joy", "sad", "excited"])
            )
            made.append(Answer(None, text, [1], [math.log(0.8 if knows else 0.3)], 1.0))
            continue
        sure = generator.uniform(0.5, 0.97) if knows else generator.uniform(0.3, 0.9)
        choice = row.options.index(row.answer) if knows else generator.randrange(len(row.options))
        rest = (1 - sure) / (len(row.options) - 1)
        log_probs = [math.log(sure if place == choice else rest) for place in range(len(row.options))]
        best = max(range(len(log_probs)), key=lambda place: log_probs[place])
        made.append(Answer(best, None, [], log_probs, 0.5))
    return made


def write_run(folder: Path, asked: Sequence[Row], skill: float, seed: int = 0, name: str = "", data: str = "nowhere",
              draws: int = 100, **changes: Any) -> Path:  # fmt: skip
    """results.json and samples.parquet of a made-up model; `changes` replaces values of results.json."""
    recipe = EvaluateRecipe.model_validate({"bootstrap": {"samples": draws}, "baselines": ["majority"]})
    common = {row.sub_task: (row.options or EMOJI_FEELINGS)[0] for row in asked}
    made = records.make_records(
        asked,
        answers(asked, skill, seed),
        {"majority": [common[row.sub_task] for row in asked]},
        {"source_facts": {}},
    )
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "schema_version": RESULTS_VERSION, "inputs_digest": f"inputs-{seed}-{skill}", "name": name or f"model {skill}",
        "split": "test",
        "model": {"path": f"models/{seed}", "digest": f"weights-{seed}", "inputs_digest": None, "folds": None, "recipe": None},
        "recipe": recipe.model_dump(mode="json"), "code": {"version": "0", "commit": "0" * 40, "dirty": False},
        "data": data, "data_digest": "d" * 64, "synonyms_version": open_set.load_table().version, "n": len(made),
        "left_out": {}, "scoring": {"questions": len(made), "scored": 0, "seconds": 0.0},
        **scores.score_all(made, recipe),
        "files": {"samples.parquet": records.write_samples(str(folder / "samples.parquet"), made)},
        **changes,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder
