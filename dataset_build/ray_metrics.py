"""Metrics of a build on Ray's metrics ports; written by the process that hands out the shards.

`run` is the recipe's name. Ray puts `ray_` before a name.
"""

from __future__ import annotations

from dataset_build.ray_local import Metric

_TAGS = ("run",)

METRICS: dict[str, Metric] = {
    "emobench_build_rows_total": Metric("counter", "Records converted since this process began", _TAGS),
    "emobench_build_rejects_total": Metric(
        "counter", "Records that became rejects when converted, by reason", (*_TAGS, "reason")
    ),
    "emobench_build_rows_per_s": Metric("gauge", "Records a second since converting began", _TAGS),
    "emobench_build_shards_done": Metric(
        "gauge", "Shards that are converted, those of earlier runs too", _TAGS
    ),
    "emobench_build_shards_total": Metric("gauge", "Shards that the build has", _TAGS),
}
