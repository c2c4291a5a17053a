"""train-step: supervised tokens per second of packed training, beside Hugging Face's Trainer with DeepSpeed.

    python -m tests.benchmarks.train_step ours|padded|grouped [--data EMOBENCH]

All sides train the same model from the same weights on the same rows, in float32 under DeepSpeed's ZeRO 2 with AdamW, in
the project's own environment (transformers, accelerate and deepspeed are in it), with one thread. Features of the frozen
vision tower are computed before the clock starts, for all sides: they are the same work.

- ours: `emollm.train.loop.run_step`, which reads and encodes its rows from Parquet within the step.
- padded: `transformers.Trainer(deepspeed=…)`; rows are encoded beforehand and padded to the longest of their batch. Its
  batches hold the same rows, step by step, as ours.
- grouped: the same with batches of like length, as `train_sampling_strategy="group_by_length"` makes them in a run of
  many rows (it sorts 50 batches at a time; in so short a run as this one it would not group at all).

Equal work: rows, supervised tokens, the mean loss over all of them before the first step, and (ours and padded) of the
first step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import training
from tests.benchmarks.harness import Benchmark, Side, Size, Work

STEPS = {"smoke": 2, "normal": 3, "large": 40}
BATCH = 8
TOLERANCE = 2e-3


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    def side(word: str, name: str) -> Side:
        return training.side("train_step", word, size, folder, name=name)

    return side("ours", "packed"), [side("padded", "Trainer, padded"), side("grouped", "Trainer, grouped")]


def check(ours: Work, peer: Work) -> str | None:
    for key in ("rows", "supervised_tokens", "steps"):
        if ours[key] != peer[key]:
            return f"{key}: {ours[key]} and {peer[key]}"
    for key in ("loss_before", "first_step_loss"):
        if peer[key] is not None and abs(ours[key] - peer[key]) > TOLERANCE:
            return f"{key}: {ours[key]:.5f} and {peer[key]:.5f}"
    return None


BENCHMARKS = [
    Benchmark(
        "train-step",
        "training steps on an EmoBench mix of lengths: packed beside padded and length-grouped batches",
        "supervised tokens/s",
        {"Trainer, padded": 2.0, "Trainer, grouped": 1.3},
        sides,
        check,
    )
]


def prepared(options: argparse.Namespace, scratch: Path) -> tuple[Any, list[list[int]], list[list[int]]]:
    """The fold, the batches of like length, and the same rows in random batches."""
    state = training.ready(options.size, options.folder, scratch, options.data)
    groups = training.grouped(state.index.lengths, BATCH, STEPS[options.size])
    return state, groups, training.shuffled(groups)


def supervised(labels: Any) -> int:
    return int((labels[:, 1:] != -100).sum())


def mean_loss(model: Any, batches: list[dict[str, Any]]) -> float:
    """Mean loss per supervised token of the model as it stands, without a gradient. Warms the kernels up, too."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            count = supervised(batch["labels"])
            total += float(model(**batch).loss) * count
            tokens += count
    return total / tokens


def ours(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from emollm.train.deepspeed import make_engine
    from emollm.train.fold import make_batch
    from emollm.train.loop import run_step

    state, _, batches = prepared(options, scratch)
    state = training.with_steps(state, batches)
    with state.stream([step.micro_batches for step in state.steps]) as stream:
        packed = [make_batch(state, rows, next(stream)[0]) for rows in batches]
    before = mean_loss(state.model, [{**batch, "supervised_only": True} for batch in packed])
    engine = make_engine(state.model, state.recipe.deepspeed, state.recipe.tune, 1)
    tokens, losses = 0, []
    with state.stream([step.micro_batches for step in state.steps]) as stream:
        started = time.perf_counter()
        for number in range(len(state.steps)):
            values = run_step(state, engine, number, stream)
            tokens += values["supervised_tokens"]
            losses.append(values["loss"])
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "units": tokens,
        "work": _work(batches, tokens, before, losses[0]),
        "notes": _notes(state, batches, [batch["input_ids"].numel() for batch in packed], losses),
    }


def padded(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return trainer(options, scratch, group=False)


def grouped(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return trainer(options, scratch, group=True)


def trainer(options: argparse.Namespace, scratch: Path, group: bool) -> dict[str, Any]:
    """What a user of transformers runs: Trainer, DeepSpeed's config, a collator that pads."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from emollm.data.collate import collate
    from emollm.train.deepspeed import without_compiled_extensions, zero_config

    without_compiled_extensions()
    state, groups, batches = prepared(options, scratch)
    batches = groups if group else batches
    model, tune = state.model, state.recipe.tune
    order = [row for batch in batches for row in batch]
    rows = [(number, state.rows.encoded(number, media=False)) for number in order]

    def collator(some: list[Any]) -> dict[str, Any]:
        batch = collate([row for _, row in some], state.processor.pad_id)
        found = [state.features_of(number, row).patches for number, row in some]
        if patches := [features for features in found if features is not None]:
            batch["patches"] = torch.cat(patches)
            batch["media_frames"] = torch.tensor([n for _, row in some for n in row.media_frames])
        return batch

    cut = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    made = [collator(part) for part in cut]
    before = mean_loss(model, made)
    clock: dict[str, float] = {}
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock["started"] = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            clock["ended"] = time.perf_counter()

    config = zero_config(state.recipe.deepspeed, tune, 1)
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        deepspeed={**config, "train_micro_batch_size_per_gpu": BATCH},
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=tune.learning_rate,
        max_grad_norm=tune.clip_norm,
        train_sampling_strategy="sequential",  # the order is that of `batches`
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=tune.learning_rate,
        weight_decay=tune.weight_decay,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        optimizers=(optimizer, None),
        callbacks=[Clock()],
    ).train()
    tokens = sum(supervised(batch["labels"]) for batch in made)
    return {
        "seconds": clock["ended"] - clock["started"],
        "units": tokens,
        "work": _work(batches, tokens, before, None if group else losses[0]),
        "notes": _notes(state, batches, [batch["input_ids"].numel() for batch in made], losses),
    }


def _work(batches: list[list[int]], tokens: int, before: float, first: float | None) -> dict[str, Any]:
    rows = sum(len(batch) for batch in batches)
    return {
        "rows": rows,
        "steps": len(batches),
        "supervised_tokens": tokens,
        "loss_before": before,
        "first_step_loss": first,
    }


def _notes(state: Any, batches: list[list[int]], places: list[int], losses: list[float]) -> dict[str, Any]:
    tokens = sum(state.index.lengths[row] for batch in batches for row in batch)
    return {
        "tokens": tokens,
        "places": sum(places),
        "share_of_padding": round(1 - tokens / sum(places), 3),
        "losses": losses,
    }


if __name__ == "__main__":
    training.main(__doc__ or "", {"ours": ours, "padded": padded, "grouped": grouped})
