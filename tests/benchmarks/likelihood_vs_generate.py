"""Scoring options from one pass, beside generating an answer and parsing it: time per sample and accuracy, same samples.

    python tests/benchmarks/likelihood_vs_generate.py --model runs/quickstart/model/fold-0 --data runs/quickstart/emobench

`--model` is one saved model (or hf:NAME_OR_FOLDER). Both ways ask the same closed samples in batches of the same size, in
this process, in turn (`--pairs` times, the order changing), after a first round that is not timed. What both do alike,
decoding pictures and encoding texts, is in both times; `--max-new-tokens` bounds the generated answers, which end by
themselves where the model says so. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emollm.evaluate import models, records, replica
from emollm.evaluate.asking import GENERATE, LIKELIHOOD, MAX_NEW_TOKENS, Asking
from emollm.evaluate.plan import MODEL, Question, Shard
from emollm.evaluate.protocol import Row, read_rows, select_rows
from emollm.evaluate.results import read_data_manifest
from emollm.evaluate.run import read_samples


def load(spec: str) -> tuple[models.Model, replica.Replica]:
    found = models.read_model(spec)
    if found.kind == models.TRANSFORMERS:
        from emollm.evaluate.foreign import load_foreign

        return found, load_foreign(found.path)
    return found, replica.load_own(found.path, "single", None)


def closed_rows(model: models.Model, data: str, limit: int) -> list[Row]:
    rows = read_rows(data, read_data_manifest(data))
    tasks = ("emo_c", "intent", "hate", "humor", "sarcasm")
    asked, _ = select_rows(rows, "test", tasks, None, model.protocols(rows))
    return asked[:: max(1, len(asked) // limit)][:limit]


def once(
    model: replica.Replica, rows: list[Row], samples: list[dict[str, Any]], asking: Asking, batch: int
) -> tuple[float, float, float]:
    """(seconds per sample, accuracy, mean number of generated tokens)."""
    started = time.perf_counter()
    answers = replica.answers(model, samples, asking, batch)
    seconds = (time.perf_counter() - started) / len(samples)
    right = [records.judge_answer(row, answer).correct for row, answer in zip(rows, answers, strict=True)]
    tokens = statistics.fmean(len(answer.token_ids) for answer in answers)
    return seconds, sum(right) / len(right), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=64, help="samples")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS[GENERATE])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    found, model = load(given.model)
    rows = closed_rows(found, given.data, given.limit)
    questions = tuple(Question(row.uid, row.uid, row.path, row.index) for row in rows)
    samples = read_samples(given.data, Shard("all", MODEL, "single", questions))
    ways = {
        LIKELIHOOD: Asking(),
        GENERATE: Asking(GENERATE, max_new_tokens=given.max_new_tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, tuple[float, float]] = {}
    for pair in range(given.pairs + 1):
        for name in sorted(ways, reverse=pair % 2 == 1):
            took, accuracy, tokens = once(model, rows, samples, ways[name], given.batch_size)
            said[name] = (accuracy, tokens)
            if pair:
                seconds[name].append(took)
    ratios = [slow / fast for slow, fast in zip(seconds[GENERATE], seconds[LIKELIHOOD], strict=True)]
    print(
        json.dumps(
            {
                "model": found.name, "samples": len(rows), "batch_size": given.batch_size, "pairs": given.pairs,
                "ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios],
                "seconds_per_sample": {name: round(statistics.median(v), 4) for name, v in seconds.items()},
                "accuracy": {name: round(accuracy, 4) for name, (accuracy, _) in said.items()},
                "generated_tokens": round(said[GENERATE][1], 1),
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
