"""The work of an evaluation, cut into shards that are scored independently, cached, and never scored twice.

A *pass* asks every row one way: `model` (the row's fold model, with media), `text_only` (the same model, media withheld),
`untrained` (the model at step 0, with media), `features` (mean features of the frozen vision tower, for the linear probe).
Rows that put exactly the same question to the same model share one answer. What a shard holds and the name of its file
depend on data, model and code alone, not on batch size, number of workers or interruptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dataset_build.provenance import code_digest, library_versions, sha256_of_json
from emollm.config import AFTER_TRAINING
from emollm.evaluate.protocol import Row, protocol_of

MODEL, TEXT_ONLY, UNTRAINED, FEATURES = "model", "text_only", "untrained", "features"
# Rows per shard: small enough that a kill costs seconds, large enough that batches of similar length can be formed.
SHARD_ROWS = 48
# Code that cannot change an answer of a model; scores are computed anew from cached answers when only this changes.
_AFTER_SCORING = (*AFTER_TRAINING, "emollm/train", "emollm/recipes", "emollm/config") + tuple(
    f"emollm/evaluate/{name}"
    for name in (
        "baselines",
        "charts",
        "cli",
        "collect",
        "compare",
        "dry",
        "embedded",
        "interop",
        "judge",
        "lmms_eval",
        "metrics",
        "models",
        "open_set",
        "parse",
        "ray_metrics",
        "records",
        "report",
        "results",
        "run_folder",
        "scores",
        "statistics",
        "thumbnails",
        "synonyms",
    )
)

# Whose releases may change an answer: pixels, tokens, kernels.
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "pillow", "numpy")


@dataclass(frozen=True)
class Question:
    """What is asked once: `key` is equal for rows that ask the same; `uid` is the first of them, at `path`[`index`]."""

    key: str
    uid: str
    path: str
    index: int


@dataclass(frozen=True)
class Shard:
    """Questions for one model in one pass. `name` is a digest of everything that its answers depend on."""

    name: str
    pass_name: str
    model: str
    questions: tuple[Question, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Shard:
        questions = tuple(Question(**question) for question in value["questions"])
        return Shard(value["name"], value["pass_name"], value["model"], questions)


@dataclass(frozen=True)
class Plan:
    """All passes and shards, and for each (pass, uid) the (model, question key) that answers it."""

    passes: tuple[str, ...]
    shards: tuple[Shard, ...]
    answered_by: dict[tuple[str, str], tuple[str, str]]


def model_of(row: Row, pass_name: str, folds: Sequence[int] | None) -> str:
    """The name of the model that answers `row`: `fold-k`, `untrained`, or `single` for a model without folds."""
    if pass_name == UNTRAINED:
        return "untrained"
    return "single" if folds is None else f"fold-{protocol_of(row)}"


def make_plan(
    asked: Sequence[Row],
    probed: Sequence[Row],
    passes: Sequence[str],
    folds: Sequence[int] | None,
    models_digest: str,
) -> Plan:
    """Shards for `passes` over the asked rows, and for the features of the probed rows' media, one each.

    `models_digest` stands for weights, foundations and data; with the digest of the scoring code and the versions of the
    libraries below it, it makes a shard's name.
    """
    code = [code_digest(["emollm"], leave_out=_AFTER_SCORING), library_versions(_LIBRARIES)]
    shards: list[Shard] = []
    answered_by: dict[tuple[str, str], tuple[str, str]] = {}

    def cut(pass_name: str, model: str, questions: list[Question]) -> None:
        questions.sort(key=lambda question: (question.path, question.index))
        for start in range(0, len(questions), SHARD_ROWS):
            part = tuple(questions[start : start + SHARD_ROWS])
            name = sha256_of_json(
                [code, models_digest, pass_name, model, [question.key for question in part]]
            )
            shards.append(Shard(name[:32], pass_name, model, part))

    for pass_name in passes:
        first: dict[str, dict[str, Question]] = {}
        for row in asked:
            model, key = (
                model_of(row, pass_name, folds),
                row.question_digest(withhold_media=pass_name == TEXT_ONLY),
            )
            first.setdefault(model, {}).setdefault(key, Question(key, row.uid, row.path, row.index))
            answered_by[pass_name, row.uid] = (model, key)
        for model in sorted(first):
            cut(pass_name, model, list(first[model].values()))
    media: dict[str, Question] = {}
    for row in probed:
        (key,) = row.media_keys
        media.setdefault(key, Question(key, row.uid, row.path, row.index))
    if media:
        cut(FEATURES, "single" if folds is None else f"fold-{min(folds)}", list(media.values()))
    return Plan(tuple(passes), tuple(shards), answered_by)
