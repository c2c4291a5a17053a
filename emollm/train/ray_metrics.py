"""Metrics of a training on Ray's metrics ports, for Prometheus and dashboards; written by rank 0, one value a step.

`run` is the recipe's name. What a name says is in METRICS; Ray puts `ray_` before it.
"""

from __future__ import annotations

from dataset_build.ray_local import Metric

_TAGS = ("run", "fold")

METRICS: dict[str, Metric] = {
    "emollm_train_step": Metric("gauge", "Optimizer steps done, of a fold", _TAGS),
    "emollm_train_planned_steps": Metric("gauge", "Optimizer steps that the fold's training has", _TAGS),
    "emollm_train_loss": Metric("gauge", "Loss per supervised token of the last step", _TAGS),
    "emollm_train_learning_rate": Metric("gauge", "Learning rate of the last step", _TAGS),
    "emollm_train_grad_norm": Metric("gauge", "Norm of the gradient before clipping", _TAGS),
    "emollm_train_tokens_per_s": Metric("gauge", "Tokens a second over all workers, last step", _TAGS),
    "emollm_train_data_wait_share": Metric(
        "gauge", "Share of the last step that was spent waiting for data, 0 to 1", _TAGS
    ),
    "emollm_train_steps_total": Metric("counter", "Optimizer steps done since this process began", _TAGS),
    "emollm_train_rows_total": Metric("counter", "Rows of EmoBench learned from, over all workers", _TAGS),
    "emollm_train_checkpoint_seconds": Metric(
        "histogram", "Time that training stood still for a checkpoint", _TAGS
    ),
}
