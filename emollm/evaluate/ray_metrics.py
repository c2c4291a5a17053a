"""Metrics of an evaluation on Ray's metrics ports; written by the process that hands out the shards.

`run` names the folder that the evaluation lies in. A sample is one question put to one model in one pass. Ray puts `ray_` before a name.
"""

from __future__ import annotations

from dataset_build.ray_local import Metric

_TAGS = ("run",)

METRICS: dict[str, Metric] = {
    "emollm_evaluate_samples_total": Metric("counter", "Samples scored since this process began", _TAGS),
    "emollm_evaluate_planned_samples": Metric("gauge", "Samples that the evaluation has to score", _TAGS),
    "emollm_evaluate_samples_per_s": Metric("gauge", "Samples a second since scoring began", _TAGS),
}
