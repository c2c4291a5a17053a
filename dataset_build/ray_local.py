"""Ray for commands that are run by hand: the cluster that RAY_ADDRESS names, else a local one on loopback alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any


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
