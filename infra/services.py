"""The local services: a Prefect server on SQLite, a worker, and a Ray head, all on loopback.

`python -m infra.services up | down | status` (or `make up`, `make down`, `make status`). State, logs, the Prefect
database and Ray's token are in `.local/services`. `down` ends what `up` started and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_build import storage
from infra import deploy, servers
from infra.prefect_api import ApiError, PrefectApi
from infra.servers import PROJECT_ROOT, PrefectServer, Process, RayHead, ServiceError

HOME = PROJECT_ROOT / ".local" / "services"
POOL = deploy.LOCAL.pool
PREFERRED_PORTS = {"prefect": 4200, "dashboard": 8265, "gcs": 6379}
# Two training workers, or a build's tasks, beside a driver: more logical CPUs than a small machine has cores.
LEAST_LOGICAL_CPUS = 4
OBJECT_STORE_BYTES = 1024**3
_START_LIMIT_S = 180.0
_FLOW_PATIENCE_S = 40.0  # a flow run that is told to end stops its Ray job first
_TOML_MARK = "# Written by `make up` and removed by `make down`."
# Ray's sockets live below its temp folder, and a socket's path ends at 107 characters.
_LONGEST_TEMP = 40


@dataclass
class Services:
    """What runs: each part is None where it was not started. Written to state.json after every change."""

    home: Path
    ray: RayHead | None = None
    prefect: PrefectServer | None = None
    worker: Process | None = None

    @property
    def state_path(self) -> Path:
        return self.home / "state.json"

    def save(self) -> None:
        state: dict[str, Any] = {
            "ray": self.ray and {**self.ray.__dict__, "process": self.ray.process.to_json()},
            "prefect": self.prefect and {**self.prefect.__dict__, "process": self.prefect.process.to_json()},
            "worker": self.worker and self.worker.to_json(),
        }
        storage.write_json(str(self.state_path), state)

    @classmethod
    def load(cls, home: Path) -> Services:
        services = cls(home)
        if not services.state_path.exists():
            return services
        state = storage.read_json(str(services.state_path))
        if state["ray"]:
            services.ray = RayHead(**{**state["ray"], "process": Process(**state["ray"]["process"])})
        if state["prefect"]:
            process = Process(**state["prefect"]["process"])
            services.prefect = PrefectServer(**{**state["prefect"], "process": process})
        services.worker = Process(**state["worker"]) if state["worker"] else None
        return services

    @property
    def env(self) -> dict[str, str]:
        """What `prefect` commands, flows and Ray drivers need to reach these services."""
        loopback = {
            name: _also(os.environ.get(name, ""), "127.0.0.1,localhost") for name in ("NO_PROXY", "no_proxy")
        }
        return {
            **(self.prefect.env if self.prefect else {}),
            **(self.ray.env if self.ray else {}),
            **loopback,
        }

    @property
    def api(self) -> PrefectApi:
        assert self.prefect
        return PrefectApi(self.prefect.api_url, auth_string=self.prefect.auth_string)

    def processes(self) -> list[Process]:
        owners = [self.prefect and self.prefect.process, self.worker, self.ray and self.ray.process]
        return [process for process in owners if process]

    def parts(self) -> list[tuple[str, bool, str]]:
        """(name, healthy, where) of each service."""
        return [
            ("Prefect server", self._prefect_healthy(), self.prefect.page_url if self.prefect else "-"),
            ("Prefect worker", self._worker_healthy(), f"work pool {POOL}"),
            ("Ray head", self._ray_healthy(), self.ray.dashboard_url if self.ray else "-"),
        ]

    def all_healthy(self) -> bool:
        return all(healthy for _, healthy, _ in self.parts())

    def _prefect_healthy(self) -> bool:
        return self.prefect is not None and servers.running(self.prefect.process) and self.prefect.healthy()

    def _worker_healthy(self) -> bool:
        return self.worker is not None and servers.running(self.worker)

    def _ray_healthy(self) -> bool:
        return self.ray is not None and servers.running(self.ray.process) and self.ray.healthy()


def up(home: Path = HOME, *, auth: bool = False) -> Services:
    """Start what does not run yet and wait until all of it answers. What this call started ends where it fails.

    With `auth`, a Prefect server started here wants the user and password of `home`/prefect-auth. Raises ServiceError with the log's end where a service does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _only_one(home):
        services = Services.load(home)
        if services.all_healthy():
            print("the local services are already up")
            return services
        began = time.monotonic()
        started: list[Process] = []
        try:
            _start(services, started, auth)
        except BaseException:
            for process in reversed(started):
                servers.end(process)
            _forget_dead(services)
            raise
        print(f"the local services are up after {time.monotonic() - began:.0f} s", flush=True)
        return services


def _start(services: Services, started: list[Process], auth: bool) -> None:
    home = services.home
    fresh_prefect, fresh_ray = not services._prefect_healthy(), not services._ray_healthy()
    _end_worker(services)  # one that is healthy would point at the servers of before, and so do its flow runs
    if fresh_prefect:
        if services.prefect:
            servers.end(services.prefect.process)
        services.prefect = servers.start_prefect_server(
            home / "prefect",
            home / "prefect-server.log",
            PREFERRED_PORTS["prefect"],
            auth_path=home / "prefect-auth" if auth else None,
        )
        started.append(services.prefect.process)
        services.save()
    if fresh_ray:
        _end_ray(services)
        services.ray = servers.start_ray_head(
            _short_temp_dir(),
            home / "ray-token",
            home / "ray.log",
            cpus=max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_bytes=_object_store_bytes(),
            gcs_port=PREFERRED_PORTS["gcs"],
            dashboard_port=PREFERRED_PORTS["dashboard"],
        )
        started.append(services.ray.process)
        services.save()
    assert services.prefect and services.ray
    if fresh_ray:
        _wait("Ray head", services.ray.healthy, services.ray.process)
    if fresh_prefect:
        _wait("Prefect server", services.prefect.healthy, services.prefect.process)
    for name in services.api.sweep_dead_runs(everything=fresh_prefect):
        print(f"  flow run {name} was still open, but nothing runs it: marked as crashed", flush=True)
    register(services)
    services.worker = servers.start_prefect_worker(POOL, services.env, home / "prefect-worker.log")
    started.append(services.worker)
    services.save()
    _wait("Prefect worker", lambda: _worker_is_online(services), services.worker)
    _write_client_settings(services)


def down(home: Path = HOME) -> int:
    """End what `up` started: worker first, so that no flow is left without a server. Returns how many processes ended."""
    with _only_one(home):
        services, ended = Services.load(home), 0
        ended += _end_worker(services)
        ended += _end_ray(services)
        if services.prefect:
            ended += servers.end(services.prefect.process)
        services.state_path.unlink(missing_ok=True)
        (home / "env").unlink(missing_ok=True)
        if home == HOME and _is_our_toml(PROJECT_ROOT / "prefect.toml"):
            (PROJECT_ROOT / "prefect.toml").unlink()
        return ended


def status(home: Path = HOME) -> bool:
    """Print each service and whether it answers; True where all do."""
    services = Services.load(home)
    parts = services.parts()
    for name, healthy, where in parts:
        print(f"{name:15s} {'up' if healthy else 'down':5s} {where if healthy else ''}".rstrip())
    return all(healthy for _, healthy, _ in parts)


def print_how_to(services: Services) -> None:
    assert services.prefect and services.ray
    print(f"  Prefect page    {services.prefect.page_url}")
    if services.prefect.auth_path:
        print(f"                  (it asks for the user and password in {services.prefect.auth_path})")
    print(
        f"  Ray dashboard   {services.ray.dashboard_url}  (it asks for the token in {services.ray.token_path})"
    )
    print(f"  logs            {services.home}")
    prefix = (
        ""
        if services.home == HOME and _is_our_toml(PROJECT_ROOT / "prefect.toml")
        else (f". {shlex.quote(os.path.relpath(services.home / 'env'))} && ")
    )
    executable = os.path.relpath(Path(sys.executable).parent / "prefect", os.getcwd())
    print("  run a flow      " + f"{prefix}{executable} deployment run 'build-emobench/quickstart' --watch")
    print(
        "                  (also train-emollm, evaluate-emollm, retrain-emollm; each has quickstart and smoke)"
    )


def _end_worker(services: Services) -> int:
    """End the worker and what is left of its flow runs, also where the worker itself has died already."""
    if not services.worker:
        return 0
    ended = servers.end(services.worker, patience_s=_FLOW_PATIENCE_S)
    services.worker = None
    services.save()
    return ended


def _end_ray(services: Services) -> int:
    if not services.ray:
        return 0
    ended = servers.end(services.ray.process)
    _keep_job_logs(services.ray, services.home / "ray-jobs")
    shutil.rmtree(services.ray.temp_dir, ignore_errors=True)
    return ended


def _keep_job_logs(head: RayHead, folder: Path) -> None:
    """The logs of jobs outlive Ray's temporary folder."""
    for log in Path(head.temp_dir).glob("session_2*/logs/job-driver-*.log"):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copyfile(log, folder / log.name)


def _forget_dead(services: Services) -> None:
    if services.ray and not servers.running(services.ray.process):
        shutil.rmtree(services.ray.temp_dir, ignore_errors=True)
        services.ray = None
    if services.prefect and not servers.running(services.prefect.process):
        services.prefect = None
    if services.worker and not servers.running(services.worker):
        services.worker = None
    services.save()


def _wait(name: str, healthy: Callable[[], bool], process: Process) -> None:
    began, said = time.monotonic(), [0.0]

    def tell(spent: float) -> None:
        if spent - said[0] >= 5:
            said[0] = spent
            print(f"  {name}: starting, {spent:.0f} s (usually under 30 s)", flush=True)

    servers.wait_until(healthy, process, _START_LIMIT_S, tell=tell)
    print(f"  {name}: up after {time.monotonic() - began:.0f} s", flush=True)


def register(services: Services) -> None:
    """Create the work pool, (re)register the deployments of prefect.yaml and the automations."""
    assert services.prefect
    print("  registering the deployments of prefect.yaml", flush=True)
    deploy.deploy(deploy.LOCAL, services.prefect.api_url, services.prefect.auth_string, services.env)


def _worker_is_online(services: Services) -> bool:
    assert services.prefect
    return services.api.has_online_worker(POOL)


def _write_client_settings(services: Services) -> None:
    """`env` to source in a shell, and prefect.toml, which Prefect reads in the folder it is called in."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(services.env.items())]
    if services.prefect and services.prefect.auth_path:  # the password stays in its own file
        exports = [line for line in exports if not line.startswith("export PREFECT_API_AUTH_STRING=")]
        exports.append(f'export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(services.prefect.auth_path)})"')
    storage.write_bytes(str(services.home / "env"), ("\n".join(exports) + "\n").encode())
    toml = PROJECT_ROOT / "prefect.toml"
    if services.prefect and services.prefect.auth_path:
        return  # it would have to hold the password
    if services.home != HOME or (toml.exists() and not _is_our_toml(toml)):
        return
    assert services.prefect
    lines = [
        f"{_TOML_MARK} It points `prefect` at the local server.",
        f'home = "{services.prefect.home}"',
        "",
        "[api]",
        f'url = "{services.prefect.api_url}"',
        "",
        "[server]",
        "analytics_enabled = false",
    ]
    storage.write_bytes(str(toml), ("\n".join(lines) + "\n").encode())


def _is_our_toml(path: Path) -> bool:
    return path.exists() and path.read_text().startswith(_TOML_MARK)


def _short_temp_dir() -> Path:
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="emobench-", dir=root if len(root) <= _LONGEST_TEMP else "/tmp"))


def _object_store_bytes() -> int:
    """1 GiB, less where /dev/shm is smaller: what does not fit there would go to the disk, slowly."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return OBJECT_STORE_BYTES
    return max(128 * 1024**2, min(OBJECT_STORE_BYTES, int(free * 0.8)))


def _also(existing: str, hosts: str) -> str:
    return ",".join(dict.fromkeys([*filter(None, existing.split(",")), *hosts.split(",")]))


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    import fcntl

    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.services", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument(
        "--home", default=str(HOME), help="where state, logs and the database are (default: %(default)s)"
    )
    parser.add_argument(
        "--auth",
        action="store_true",
        help="up: the Prefect server wants a user and password (for machines that others can log in to)",
    )
    chosen = parser.parse_args(arguments)
    home = Path(chosen.home).resolve()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that `up` cleans up behind itself
    try:
        if chosen.command == "up":
            print_how_to(up(home, auth=chosen.auth))
        elif chosen.command == "down":
            ended = down(home)
            print(
                f"the local services are down ({ended} processes ended)"
                if ended
                else "no local services were up"
            )
        else:
            return 0 if status(home) else 1
    except (ServiceError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
