"""evaluate: closed sub-tasks of EmoBench, samples per second: options by likelihood, beside generating and parsing.

    python -m tests.benchmarks.evaluate likelihood|generate [--untuned]

- likelihood: what `emollm evaluate` does: one forward pass per sample, every option's log-probability from it.
- generate: what a user of transformers writes: `model.generate`, greedy, with the key/value cache, left padding, at most
  64 new tokens, and this project's parser over the decoded text.

Both score the same samples in batches of the same size, sorted by length, with one thread in float32, the same weights
(LoRA merged) and the same processor. Timed from the encoded bytes of pictures to verdicts, pictures included: each is
decoded and goes through the vision tower once. One batch of other samples warms up before.

Two models: the quickstart's (tuned to answer with the option's word, so a generated answer is one or two tokens long), and
the same before any tuning (`evaluate-untuned`), which like any foundation model does not stop by itself: what a benchmark
of other people's models meets. `BENCH_QUICKSTART` names another folder than runs/quickstart.

Equal work: the samples. Accuracy by likelihood must be no lower.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import harness, training
from tests.benchmarks.harness import Benchmark, Side, Size, Work

SAMPLES = {"smoke": 8, "normal": 48, "large": 100_000}
BATCH = 8
MAX_NEW_TOKENS = {"smoke": 4, "normal": 64, "large": 64}
QUICKSTART = Path(os.environ.get("BENCH_QUICKSTART", harness.PROJECT / "runs" / "quickstart"))


def sides(size: Size, folder: Path, untuned: bool) -> tuple[Side, list[Side]]:
    more = ["--untuned"] if untuned else []
    made = (QUICKSTART / "model" / "fold-0" / "config.json").exists()
    if size != "smoke" and not made:
        raise harness.BenchmarkError(f"{QUICKSTART} has no model: make quickstart makes one")

    def side(word: str, name: str) -> Side:
        return training.side("evaluate", word, size, folder, *more, name=name)

    return side("likelihood", "likelihood"), [side("generate", "transformers generate")]


def check(ours: Work, peer: Work) -> str | None:
    for key in ("samples", "uids"):
        if ours[key] != peer[key]:
            return f"{key}: {ours[key]} and {peer[key]}"
    if ours["accuracy"] < peer["accuracy"]:
        return f"accuracy: {ours['accuracy']:.4f} by likelihood, {peer['accuracy']:.4f} generated"
    return None


BENCHMARKS = [
    Benchmark(
        name,
        f"closed sub-tasks {which}: options by likelihood, beside generating and parsing",
        "samples/s",
        5.0,
        functools.partial(sides, untuned=untuned),
        check,
    )
    for name, which, untuned in (
        ("evaluate", "with the quickstart's model", False),
        ("evaluate-untuned", "with the model before tuning", True),
    )
]


def loaded(options: argparse.Namespace, scratch: Path) -> tuple[Any, list[Any], list[dict[str, Any]], Any]:
    """Replica, rows to score and their samples, one batch of other samples."""
    import torch

    from emollm.config import load_recipe
    from emollm.evaluate import models, replica
    from emollm.evaluate.plan import MODEL, Question, Shard
    from emollm.evaluate.protocol import read_rows, select_rows
    from emollm.evaluate.results import read_data_manifest
    from emollm.evaluate.run import read_samples

    torch.set_num_threads(1)
    path, data = options.model, options.data or str(QUICKSTART / "emobench")
    if options.size == "smoke":
        path, data = tiny(options.folder)
    found = models.read_model(path)
    if options.untuned:
        recipe = load_recipe(*training.overrides(options.size, options.folder, data))
        model = replica.load_own("", "untrained", recipe.model_dump(mode="json"))
    else:
        model = replica.load_own(found.path, "single", None)
    rows = read_rows(data, read_data_manifest(data))
    tasks = ("emo_c", "intent", "hate", "humor", "sarcasm")
    asked, _ = select_rows(rows, "test", tasks, None, found.protocols(rows))
    wanted = min(SAMPLES[options.size], len(asked) - 1)
    every = max(1, len(asked) // wanted)
    scored = asked[::every][:wanted]
    others = [row for row in asked if row not in scored][:BATCH]

    def samples(some: list[Any]) -> list[dict[str, Any]]:
        questions = tuple(Question(row.uid, row.uid, row.path, row.index) for row in some)
        return read_samples(data, Shard("all", MODEL, "single", questions))

    return model, scored, samples(scored), samples(others)


def tiny(folder: Path) -> tuple[str, str]:
    """A tiny model with random weights and a small EmoBench."""
    from emollm.config import load_recipe
    from emollm.train.build import initial_model
    from tests.emollm.train.small_emobench import write_emobench

    data, out = folder / "emobench", folder / "model"
    if not (data / "manifest.json").exists():
        write_emobench(data)
    name, settings = training.overrides("smoke", folder, data)
    recipe = load_recipe(name, [*settings, f"out={out}"])
    if not (out / "config.json").exists():
        model, processor = initial_model(recipe, recipe.seed)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    return str(out), str(data)


def score(options: argparse.Namespace, scratch: Path, generate: bool) -> dict[str, Any]:
    from emollm.evaluate import records, replica
    from emollm.evaluate.asking import GENERATE, Asking

    model, rows, samples, others = loaded(options, scratch)
    limit = MAX_NEW_TOKENS[options.size]
    asking = Asking(GENERATE, max_new_tokens=limit) if generate else Asking()
    answer = generated if generate else replica.answers
    answer(model, others, asking, BATCH)
    model.known = replica.PatchFeatures()
    started = time.perf_counter()
    answers = answer(model, samples, asking, BATCH)
    right = sum(records.judge_answer(row, one).correct for row, one in zip(rows, answers, strict=True))
    seconds = time.perf_counter() - started
    said = [len(one.token_ids) for one in answers]
    return {
        "seconds": seconds,
        "units": len(samples),
        "work": {
            "samples": len(samples),
            "uids": hashlib.sha256("\n".join(row.uid for row in rows).encode()).hexdigest()[:16],
            "accuracy": right / len(samples),
        },
        "notes": {"tokens_per_answer": sum(said) / len(said)} if generate else {},
    }


def generated(model: Any, samples: list[dict[str, Any]], asking: Any, batch_size: int) -> list[Any]:
    """The answers of `model.generate`, batch by batch; encoding is ours, since the model is."""
    import torch

    from emollm.data.collate import collate
    from emollm.evaluate.score import Answer

    processor = model.processor
    prompts = model.prompts(samples, asking)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].encoded.input_ids))
    found: dict[int, Any] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = collate(
            [prompts[number].encoded for number in numbers], processor.pad_id, padding_side="left"
        )
        batch.pop("labels")
        with torch.inference_mode():
            ids = model.model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=asking.max_new_tokens,
                eos_token_id=processor.end_id,
                pad_token_id=processor.pad_id,
            )
        for number, row in zip(numbers, ids[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            ended = processor.end_id in row
            said = row[: row.index(processor.end_id)] if ended else row
            text = processor.decode(said, skip_special_tokens=True).strip()
            found[number] = Answer(None, text, said, [], 0.0, finish="stop" if ended else "length")
    return [found[number] for number in range(len(prompts))]


if __name__ == "__main__":
    training.main(
        __doc__ or "",
        {
            "likelihood": lambda options, scratch: score(options, scratch, False),
            "generate": lambda options, scratch: score(options, scratch, True),
        },
        ("--untuned", {"action": "store_true"}),
        ("--model", {"default": str(QUICKSTART / "model" / "fold-0")}),
    )
