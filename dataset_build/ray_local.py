"""Ray as the commands use it: the cluster that RAY_ADDRESS names, else a local one on loopback alone; and metrics on it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

# Upper bounds of a histogram's buckets, in seconds.
_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metric(NamedTuple):
    """What a metric says. Ray exports it on each node's metrics port as `ray_<name>`, with `tags` as its labels."""

    kind: Literal["gauge", "counter", "histogram"]
    description: str
    tags: tuple[str, ...]


def connect(*, log_to_driver: bool = False, **local: Any) -> bool:
    """Connect this process to Ray. True where this call connected it, so that the caller should disconnect it.

    Inside a Ray job RAY_ADDRESS is set, so a job joins its own cluster. `local` are arguments of `ray.init` for the
    local cluster that is started where RAY_ADDRESS names none.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Read when ray is imported. Whatever its name says: without it Ray replaces the loopback address by the
        # machine's own, and the ports of the local cluster can be reached from the network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", **local}
    import ray

    if ray.is_initialized():
        return False
    ray.init(
        address=address or "local",
        log_to_driver=log_to_driver,
        logging_level=logging.WARNING,
        **({} if address else local),
    )
    return True


@contextlib.contextmanager
def session(*, log_to_driver: bool = False, **local: Any) -> Iterator[None]:
    """`connect` for the length of a block."""
    connected_here = connect(log_to_driver=log_to_driver, **local)
    try:
        yield
    finally:
        if connected_here:
            import ray

            ray.shutdown()


class Metrics:
    """Records named metrics through Ray; does nothing in a process that has not joined a Ray cluster.

    `tags` hold for every record. A counter counts what this process did: after a restart it begins at 0, as Prometheus'
    `rate` and `increase` expect.
    """

    def __init__(self, known: Mapping[str, Metric], **tags: str) -> None:
        self._known, self._tags = known, tags

    def record(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge to `value`, add it to a counter, or put it into a histogram."""
        ray: Any = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        metric = self._known[name]
        every = {**self._tags, **tags}
        if metric.kind == "gauge":
            _ray_metric(name, metric).set(value, tags=every)
        elif metric.kind == "histogram":
            _ray_metric(name, metric).observe(value, tags=every)
        elif value > 0:
            _ray_metric(name, metric).inc(value, tags=every)


@functools.cache
def _ray_metric(name: str, metric: Metric) -> Any:
    """One object per metric and process."""
    from ray.util import metrics

    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.description, boundaries=list(_SECONDS), tag_keys=metric.tags)
    made = {"gauge": metrics.Gauge, "counter": metrics.Counter}[metric.kind]
    return made(name, metric.description, tag_keys=metric.tags)
