"""One retraining of a registry at a time, whoever starts it and wherever: who does is written in REGISTRY/retraining.json.

A deployment's concurrency limit keeps one Prefect server from running a deployment twice; this also holds between
deployments, servers and runs by hand. The record outlives the run that wrote it where that is killed, so the next one
asks Prefect whether the holder still runs.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from dataset_build import storage
from flows import shared_file
from flows.shared_file import Conflict


class AlreadyRunning(RuntimeError):
    """Another run retrains into the same registry."""


def prefect_server() -> str:
    """Which Prefect server this process talks to: its address without credentials, with the machine where it is loopback."""
    from prefect.settings import get_current_settings

    url = urllib.parse.urlsplit(get_current_settings().api.url or "")
    where = f"{url.hostname or 'in-process'}:{url.port or ''}{url.path}"
    local = url.hostname in (None, "localhost", "127.0.0.1", "::1")
    return f"{socket.gethostname()}/{where}" if local else where


@contextlib.contextmanager
def only_one(
    registry: str, run_id: str, server: str, limit_s: float, is_open: Callable[[str], bool]
) -> Iterator[None]:
    """Hold the registry's lease for the flow run `run_id` inside the block. Raises AlreadyRunning.

    `is_open(run)` says whether a flow run of the same `server` is about to run or runs. Of a holder of another server
    nothing can be learned: its lease counts until `limit_s` after it began.
    """
    path = storage.join(registry, "retraining.json")
    while True:
        held, version = shared_file.read_json(path)
        if held and held["flow_run"] not in (None, run_id) and _still_holds(held, server, is_open):
            raise AlreadyRunning(
                f"flow run {held['flow_run']} retrains into {registry} since {held['since']}; this one does nothing. "
                f"(If that run is gone and its Prefect server too, delete {path})"
            )
        now = datetime.datetime.now(datetime.UTC)
        until = (now + datetime.timedelta(seconds=limit_s)).isoformat(timespec="seconds")
        mine: dict[str, Any] = {
            "flow_run": run_id,
            "server": server,
            "since": now.isoformat(),
            "until": until,
        }
        with contextlib.suppress(Conflict):  # another one was quicker: look who
            shared_file.write_json(path, mine, version)
            break
    try:
        yield
    finally:
        # A lease that could not be given back does not count once this run has ended.
        with contextlib.suppress(Conflict, ValueError, OSError):
            held, version = shared_file.read_json(path)
            if held and held["flow_run"] == run_id:
                shared_file.write_json(path, {**held, "flow_run": None}, version)


def _still_holds(held: dict[str, Any], server: str, is_open: Callable[[str], bool]) -> bool:
    if held["server"] == server:
        return is_open(held["flow_run"])
    return datetime.datetime.now(datetime.UTC) < datetime.datetime.fromisoformat(held["until"])
