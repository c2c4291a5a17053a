"""Training metrics: a JSON line a step, TensorBoard curves, Ray's metrics, and a line for people. Written by rank 0 only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from dataset_build import storage
from dataset_build.progress import Progress
from dataset_build.ray_local import Metrics
from emollm.train.ray_metrics import METRICS

# Values of a step that Ray's metrics show as they are.
_LAST_STEP = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_s", "data_wait_share")


class MetricsWriter:
    """Appends to `metrics.jsonl` and TensorBoard files in `folder`. After a resume, lines of steps that are done again
    are dropped first, so that every step has one line."""

    def __init__(
        self, folder: str, run: str, fold: int, total_steps: int, done_steps: int, log_every: int
    ) -> None:
        from tensorboardX import SummaryWriter

        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._log_every = log_every
        kept = [line for line in read_metrics(str(self.path)) if line["step"] <= done_steps]
        # Whole or not at all: a kill in the middle would lose the lines of steps that are not done again.
        storage.write_bytes(str(self.path), "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=done_steps + 1)
        self._progress = Progress(
            f"fold {fold} training", total=total_steps, unit="steps", already=done_steps
        )
        self._metrics, self._planned_steps = Metrics(METRICS, run=run, fold=str(fold)), total_steps

    def __enter__(self) -> MetricsWriter:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._stream.close()
        self._board.close()

    def write(self, values: dict[str, Any]) -> None:
        """`values` holds step, rows, loss, learning_rate, grad_norm, tokens_per_s and data_wait_share, among others."""
        self._stream.write(json.dumps(values) + "\n")
        self._stream.flush()
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(f"train/{name}", value, values["step"])
        for name in _LAST_STEP:
            if values.get(name) is not None:
                self._metrics.record(f"emollm_train_{name}", values[name])
        # Every gauge anew each step: Ray stops exporting one that has not been set for 20 s.
        self._metrics.record("emollm_train_planned_steps", self._planned_steps)
        self._metrics.record("emollm_train_steps_total", 1)
        self._metrics.record("emollm_train_rows_total", values["rows"])
        self._progress.advance(
            loss=f"{values['loss']:.3f}",
            speed=f"{values['tokens_per_s']:.0f} tokens/s",
            waiting=f"{100 * values['data_wait_share']:.0f} % of the time for data",
        )

    def checkpoint_written(self, seconds: float) -> None:
        self._metrics.record("emollm_train_checkpoint_seconds", seconds)


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut off by a kill is left out."""
    if not os.path.exists(path):
        return []
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
