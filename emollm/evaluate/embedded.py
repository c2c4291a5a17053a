"""The samples of one or several runs as data inside of the report page: small, quick to filter, and safe as text.

What filters and the table need stands in one block of columns; what only an opened sample needs (prompt, options, scores,
baselines) in chunks that the page unpacks when one of their samples is opened. Blocks are JSON, gzipped, in base64, so no
text of a sample is ever read as HTML. Repeated texts are numbers into `texts`. All runs hold the same samples in the same order.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from emollm.evaluate.records import BASELINES, REFERENCES
from emollm.evaluate.run_folder import Run, by_uid
from emollm.evaluate.score import option_probabilities

CHUNK = 500  # samples per chunk: opening one unpacks about 100 kB of JSON
SHOWN_PER_LIST = 8


class Highlight(NamedTuple):
    """Places of samples, the most remarkable first: `confident` wrong answers; `hardest`: nobody was right."""

    confident: list[int]
    hardest: list[int]


class _Texts:
    """Distinct texts, each by its number in order of appearance."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.number.setdefault(text, len(self.number))


def packed(value: Any) -> str:
    """JSON, gzipped (without a time, so equal values are equal texts), in base64."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()


def embed(
    rows_of: Sequence[list[dict[str, Any]]], names: Sequence[str], pictures: Mapping[int, int]
) -> dict[str, Any]:
    """What the page's script unpacks: `{index, chunks}`.

    `rows_of` holds the rows of samples.parquet of each run, `names` its name, `pictures` the number of the picture of a place.
    """
    texts = _Texts()
    first = rows_of[0]
    index: dict[str, Any] = {
        "uid": [row["uid"] for row in first],
        "task": [texts(row["sub_task"]) for row in first],
        "source": [texts(row["source"]) for row in first],
        "gold": [texts(" / ".join(row["gold_answers"])) for row in first],
        "demo": [int(row["demonstration"]) for row in first],
        "pictures": {str(place): number for place, number in pictures.items()},
        "runs": [
            {
                "name": name,
                "answer": [texts(row["answer"]) for row in rows],
                "counts": [texts(row["counts_as"] or "") for row in rows],
                "status": [texts(row["status"]) for row in rows],
                "right": [int(row["correct"]) for row in rows],
                "p": [None if row["probability"] is None else round(row["probability"], 3) for row in rows],
            }
            for name, rows in zip(names, rows_of, strict=True)
        ],
        "chunk": CHUNK,
    }
    index["texts"] = list(texts.number)
    chunks = [
        packed(
            [
                _details([rows[place] for rows in rows_of])
                for place in range(start, min(start + CHUNK, len(first)))
            ]
        )
        for start in range(0, len(first), CHUNK)
    ]
    return {"index": packed(index), "chunks": chunks}


def _details(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What only an opened sample shows; `rows` is the sample in each run."""
    first = rows[0]
    return {
        "prompt": first["prompt"],
        "options": list(first["options"] or []),
        "gold": list(first["gold_answers"]),
        "group": first["group"],
        "runs": [
            {
                "scores": [round(p, 3) for p in scored_probabilities(row) or []],
                "text": row.get("generated") if row.get("generated") not in (None, row["answer"]) else None,
                "others": [
                    [name, row[f"{name}_answer"], int(bool(row[f"{name}_correct"]))]
                    for name in (*BASELINES, *REFERENCES)
                    if row.get(f"{name}_answer") is not None
                ],
            }
            for row in rows
        ],
    }


def scored_probabilities(row: Mapping[str, Any]) -> list[float] | None:
    """The probability of each option, where the options were scored."""
    options, scores = row["options"] or [], row["scores"] or []
    return option_probabilities(scores) if options and len(options) == len(scores) else None


def highlights(rows: Sequence[Mapping[str, Any]], shown: int = SHOWN_PER_LIST) -> dict[str, Highlight]:
    """Per sub-task the samples that are worth a look: wrong answers held most probable, and the hardest samples.

    Hardest: the model and all of its baselines are wrong, those first whose gold answer was held least probable (where options
    were scored). Of equal ones the first by uid.
    """
    of_task: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if not row["correct"]:
            of_task.setdefault(row["sub_task"], []).append(place)
    found = {}
    for task, wrong in of_task.items():
        sure = [place for place in wrong if rows[place]["probability"] is not None]
        sure.sort(key=lambda place: (-rows[place]["probability"], rows[place]["uid"]))
        nobody = [
            place
            for place in wrong
            if not any(rows[place].get(f"{name}_correct") for name in (*BASELINES, *REFERENCES))
        ]
        nobody.sort(key=lambda place: (_of_gold(rows[place]), rows[place]["uid"]))
        found[task] = Highlight(sure[:shown], nobody[:shown])
    return found


def _of_gold(row: Mapping[str, Any]) -> float:
    """The probability that the model gave to the gold options; 1 where it is not known."""
    probabilities = scored_probabilities(row)
    if probabilities is None:
        return 1.0
    return sum(p for option, p in zip(row["options"], probabilities) if option in row["gold_answers"])


def rows_by_uid(run: Run) -> list[dict[str, Any]]:
    """The rows of samples.parquet, by uid."""
    rows: list[dict[str, Any]] = by_uid(run.samples).to_pylist()
    return rows
