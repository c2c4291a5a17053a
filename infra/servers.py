"""Local servers as child processes: a Ray head, a Prefect server, a Prefect worker, all bound to loopback.

Every process started here carries a mark in its environment which its children inherit, so that ending a server ends
all of its processes (Ray's workers and job entrypoints have process groups of their own) and nothing else's.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

LOOPBACK = "127.0.0.1"
MARK = "EMOBENCH_SERVER_ID"
# Above those of Ray's workers (to 19,999), below those of outgoing connections (Linux from 32,768, others from 49,152).
_SERVER_PORTS = range(20_000, 32_768)
PROJECT_ROOT = Path(__file__).resolve().parent.parent
# Where a client would look for other servers than the ones started here.
_CLIENT_VARIABLES = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_PROFILE",
)


class ServiceError(ValueError):
    """A local server did not start or answer. The message names its log and what to do."""


@dataclass(frozen=True)
class Process:
    """A process started here. `created` (seconds, as psutil gives it) guards against a pid that was used again."""

    name: str
    pid: int
    created: float
    mark: str
    log: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def clean_environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the addresses of other servers, plus `overrides`."""
    kept = {name: value for name, value in os.environ.items() if name not in _CLIENT_VARIABLES}
    return {**kept, **overrides}


def free_port(preferred: int | None = None) -> int:
    """`preferred` where nothing listens on it, otherwise any free TCP port of the loopback interface.

    Drawn from ports that systems do not give to connections that go out: a server binds its port seconds later.
    """
    drawn = random.SystemRandom().sample(_SERVER_PORTS, 100)
    for port in (*([preferred] if preferred else []), *drawn, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError("no free TCP port on the loopback interface")


def write_token(path: Path, before: str = "") -> Path:
    """A fresh 256-bit token in `path` (after the words `before`), readable by the owner alone; an existing one is kept."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(before + secrets.token_hex(32))
    path.chmod(0o600)
    return path


def start(name: str, command: list[str], env: Mapping[str, str], log: Path, mark: str) -> Process:
    """Start `command` in the project folder, in a session of its own, output appended to `log`."""
    import psutil

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env={**env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(name, child.pid, psutil.Process(child.pid).create_time(), mark, str(log))


def running(process: Process) -> bool:
    """Whether that very process still runs (not a later one with the same pid, not a zombie)."""
    import psutil

    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.created) < 0.05 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(process: Process) -> list[psutil.Process]:
    """The process and its descendants; empty where it no longer runs."""
    import psutil

    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)] if running(process) else []
    except psutil.NoSuchProcess:
        return []


def family(process: Process) -> list[psutil.Process]:
    """The process, its descendants, and what carries its mark although its parent is gone."""
    import psutil

    found = {member.pid: member for member in descendants(process)}
    for member in psutil.process_iter():
        try:
            if member.pid not in found and member.environ().get(MARK) == process.mark:
                found[member.pid] = member
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def end(process: Process, patience_s: float = 15.0) -> int:
    """SIGTERM the process, then whatever of its family is left, then SIGKILL. Returns how many processes ended."""
    import psutil

    members = family(process)
    if not members:
        return 0
    for only_root in (True, False):
        chosen = [member for member in members if not only_root or member.pid == process.pid]
        for member in chosen:
            try:
                member.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(chosen, timeout=patience_s if only_root else 3)
    survivors = {member.pid: member for member in [*members, *family(process)] if member.is_running()}
    for member in survivors.values():
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(survivors.values()), timeout=5)
    return len(members)


def wait_until(
    answers: Callable[[], bool],
    process: Process,
    limit_s: float,
    every_s: float = 0.25,
    tell: Callable[[float], None] | None = None,
) -> None:
    """Wait until `answers()`. Raises ServiceError with the log's end where the process died or time is up."""
    started = time.monotonic()
    while not answers():
        spent = time.monotonic() - started
        if not running(process):
            raise ServiceError(f"the {process.name} ended while starting; {_log_end(process.log)}")
        if spent > limit_s:
            raise ServiceError(
                f"the {process.name} did not answer within {limit_s:.0f} s; {_log_end(process.log)}"
            )
        if tell:
            tell(spent)
        time.sleep(every_s)


def _log_end(log: str, lines: int = 15) -> str:
    try:
        text = Path(log).read_text(errors="replace").strip().splitlines()[-lines:]
    except OSError:
        text = []
    return f"the last lines of {log}:\n  " + "\n  ".join(text or ["(empty)"])


def answers(url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> bool:
    """Whether a GET of `url` gives a 2xx."""
    return get(url, headers, timeout_s) is not None


def get(url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> bytes | None:
    """What a GET of `url` gives with a 2xx; None with any other status and where nothing answers."""
    try:
        request = urllib.request.Request(url, headers=dict(headers or {}))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
        with opener.open(request, timeout=timeout_s) as reply:
            return reply.read() if 200 <= reply.status < 300 else None
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError):
        return None


# --- Ray -----------------------------------------------------------------------------------------------------------


_RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Whatever its name says: where this is off, Ray keeps 127.0.0.1 as the node's address, in servers and clients alike.
    # Otherwise it replaces it by the machine's address, and its ports can be reached from the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass(frozen=True)
class RayHead:
    """A local Ray head: its process, the address for `ray.init`, the dashboard (Jobs API), where its files are."""

    process: Process
    address: str
    dashboard_url: str
    token_path: str
    temp_dir: str

    @property
    def env(self) -> dict[str, str]:
        """What a client of this cluster needs in its environment. Holds the token's path, never the token."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            **_RAY_SETTINGS,
        }

    def healthy(self) -> bool:
        """Whether the head lists a living node: its Jobs API answers before there is one, and also when none comes."""
        token = Path(self.token_path).read_text().strip()
        reply = get(f"{self.dashboard_url}/api/v0/nodes", {"Authorization": f"Bearer {token}"})
        try:
            nodes = json.loads(reply or b"{}")["data"]["result"]["result"]
        except (ValueError, KeyError, TypeError):
            return False
        return any(node.get("state") == "ALIVE" for node in nodes)


def start_ray_head(
    temp_dir: Path,
    token_path: Path,
    log: Path,
    *,
    cpus: int,
    object_store_bytes: int,
    gcs_port: int | None = None,
    dashboard_port: int | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> RayHead:
    """Start a Ray head with token authentication and a dashboard; `wait_until(head.healthy, head.process, …)` next.

    `temp_dir` must be short (Unix socket paths end at 107 characters). One OpenMP thread per worker: Ray gives each
    worker a logical CPU, and spinning threads of several workers on few cores cost a factor of five.
    """
    token = write_token(token_path)
    gcs, dashboard = free_port(gcs_port), free_port(dashboard_port)
    env = clean_environment(
        {
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_TOKEN_PATH": str(token),
            **_RAY_SETTINGS,
            **(extra_env or {}),
        }
    )
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        f"--node-ip-address={LOOPBACK}",
        f"--port={gcs}",
        *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard}"),
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--num-cpus={cpus}",
        f"--object-store-memory={object_store_bytes}",
        f"--temp-dir={temp_dir}",
    ]
    process = start("Ray head", command, env, log, mark=secrets.token_hex(8))
    return RayHead(process, f"{LOOPBACK}:{gcs}", f"http://{LOOPBACK}:{dashboard}", str(token), str(temp_dir))


# `ray start` refuses a second node while that setting is off, so it is told that it is on, in its own process alone: its
# children read the environment and stay on loopback. A private place of Ray, which is pinned; only tests come here.
_START_SECOND_NODE = """
from ray._private import ray_constants, services
services.get_node_ip_address = lambda address=None: "127.0.0.1"
ray_constants.ENABLE_RAY_CLUSTER = True
from ray.scripts.scripts import main
main()
"""


def start_ray_node(head: RayHead, log: Path, *, cpus: int, object_store_bytes: int) -> Process:
    """One more node of the cluster, on this machine; it is up once the head lists it."""
    env = clean_environment({"OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN_PATH": head.token_path, **_RAY_SETTINGS})
    command = [
        *(sys.executable, "-c", _START_SECOND_NODE, "start", "--block", "--disable-usage-stats"),
        f"--address={head.address}",
        f"--node-ip-address={LOOPBACK}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--num-cpus={cpus}",
        f"--object-store-memory={object_store_bytes}",
    ]
    return start("Ray node", command, env, log, mark=secrets.token_hex(8))


# --- Prefect -------------------------------------------------------------------------------------------------------


# A heartbeat of every flow run this often; infra/automations.yaml crashes runs that miss several.
HEARTBEAT_S = 30


def prefect_environment(home: Path, api_url: str) -> dict[str, str]:
    """Settings of Prefect's clients, workers and server: our own home folder, no analytics."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        # Which run holds a deployment's concurrency slot survives a restart of the server.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }


@dataclass(frozen=True)
class PrefectServer:
    """A local Prefect server on SQLite: its process, the API's URL and the page's URL.

    `auth_path` names the file that holds its user and password (`emobench:…`); empty: it answers everybody who reaches
    the loopback interface.
    """

    process: Process
    api_url: str
    home: str
    auth_path: str = ""

    @property
    def page_url(self) -> str:
        return self.api_url.removesuffix("/api")

    @property
    def auth_string(self) -> str:
        return Path(self.auth_path).read_text().strip() if self.auth_path else ""

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment; the password too, since Prefect reads it from nowhere else."""
        auth = {"PREFECT_API_AUTH_STRING": self.auth_string} if self.auth_path else {}
        return {**prefect_environment(Path(self.home), self.api_url), **auth}

    def healthy(self) -> bool:
        return answers(f"{self.api_url}/health")


def start_prefect_server(
    home: Path,
    log: Path,
    port: int | None = None,
    *,
    auth_path: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> PrefectServer:
    """Start a Prefect server with its database in `home`; `wait_until(server.healthy, server.process, …)` next.

    With `auth_path` it wants the user and password of that file, which is written where there is none.
    """
    home.mkdir(parents=True, exist_ok=True)
    chosen = free_port(port)
    api_url = f"http://{LOOPBACK}:{chosen}/api"
    command = [
        *(sys.executable, "-m", "prefect", "server", "start"),
        "--host",
        LOOPBACK,
        "--port",
        str(chosen),
    ]
    env = clean_environment({**prefect_environment(home, api_url), **(extra_env or {})})
    if auth_path:
        write_token(auth_path, before="emobench:")
        env["PREFECT_SERVER_API_AUTH_STRING"] = env["PREFECT_API_AUTH_STRING"] = auth_path.read_text().strip()
    process = start("Prefect server", command, env, log, mark=secrets.token_hex(8))
    return PrefectServer(process, api_url, str(home), str(auth_path or ""))


def start_prefect_worker(pool: str, env: Mapping[str, str], log: Path, limit: int = 4) -> Process:
    """Start a worker that runs flows of the work pool `pool` as processes, at most `limit` at once."""
    command = [*(sys.executable, "-m", "prefect", "worker", "start"), "--pool", pool, "--type", "process"]
    command += ["--name", "emobench-local", "--limit", str(limit)]
    return start("Prefect worker", command, clean_environment(env), log, mark=secrets.token_hex(8))
