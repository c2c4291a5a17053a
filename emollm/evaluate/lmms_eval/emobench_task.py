"""What lmms-eval calls on each row of EmoBench: its pictures, its question, and whether an answer is right.

Right is decided by the code that `emollm evaluate --mode generate` uses: this project must be importable where lmms-eval runs
(PYTHONPATH, or an installation). Sound is not passed on: lmms-eval's image models take none.
"""

from __future__ import annotations

import io
from typing import Any

from dataset_build.schema import PLACEHOLDERS, sample_schema
from emollm.evaluate import open_set, parse

# Those of the YAML, in its order.
COLUMNS = ("uid", "sub_task", "messages", "options", "answer", "other_answers", "media", "demonstration")


def __getattr__(name: str) -> Any:
    """`FEATURES`: the columns that are read, as `datasets` wants them told; made when the task's YAML asks for it."""
    if name != "FEATURES":
        raise AttributeError(name)
    import pyarrow as pa
    from datasets import Features

    return Features.from_arrow_schema(pa.schema([sample_schema().field(column) for column in COLUMNS]))


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The pictures of a row, frames of clips in order, as RGB images."""
    from PIL import Image

    encoded = [data for medium in doc["media"] or [] if medium["kind"] != "audio" for data in medium["data"]]
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question without the places of its media: each model puts its own."""
    wrapped = lmms_eval_specific_kwargs or {}
    text = "\n".join(message["content"] for message in doc["messages"])
    for placeholder in PLACEHOLDERS.values():
        text = text.replace(placeholder, "")
    return f"{wrapped.get('pre_prompt', '')}{text.strip()}{wrapped.get('post_prompt', '')}"


def doc_to_target(doc: dict[str, Any]) -> str:
    return str(doc["answer"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """`acc` (and for open answers `exact` and `wheel`) as 0 or 1; `invalid` is 1 for an answer that names no option or feeling.

    Each as `{score, cluster}`, of which lmms-eval makes a clustered standard error: rows about one file are a cluster. (Group
    keys are a map, which `datasets` cannot read; `emollm evaluate` clusters by them.)
    """
    text = parse.spoken(str(results[0] if results else ""))
    gold = (doc["answer"], *(doc["other_answers"] or ()))
    cluster = next((medium["sha256"] for medium in doc["media"] or ()), doc["uid"])
    if doc["options"]:
        reading = parse.read_choice(text, doc["options"])
        right = reading.choice is not None and doc["options"][reading.choice] in gold
        found = {"acc": float(right), "invalid": float(reading.choice is None)}
    else:
        score = open_set.compare(text, gold)
        found = {
            "acc": float(score.same_group),
            "exact": float(score.exact),
            "wheel": float(score.same_wheel),
            "invalid": float(score.status != open_set.OK),
        }
    return {name: {"score": value, "cluster": cluster} for name, value in found.items()}


def mean_score(items: list[dict[str, Any]]) -> float:
    """The mean over a sub-task's rows."""
    return sum(item["score"] for item in items) / len(items)


def _only(docs: Any, sub_task: str) -> Any:
    real = docs.filter(lambda doc: doc["sub_task"] == sub_task and not doc["demonstration"])
    return real if len(real) else docs.filter(lambda doc: doc["sub_task"] == sub_task)


def only_emo_c(docs: Any) -> Any:
    return _only(docs, "emo_c")


def only_emo_o(docs: Any) -> Any:
    return _only(docs, "emo_o")


def only_intent(docs: Any) -> Any:
    return _only(docs, "intent")


def only_hate(docs: Any) -> Any:
    return _only(docs, "hate")


def only_humor(docs: Any) -> Any:
    return _only(docs, "humor")


def only_sarcasm(docs: Any) -> Any:
    return _only(docs, "sarcasm")
