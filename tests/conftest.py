"""Real servers for the whole test run: Ray, Prefect, S3, each started when a test first asks for it.

All bind to free loopback ports, keep their files in folders of their own, and are ended after the last test, failed
or not. `ray_session` connects this process to the cluster; subprocesses get `ray_cluster.env`.

Files with a test that needs one of them carry the marker `servers`: `infra.run_tests` runs those in one process, so
that each server is started once, and all others in a second one beside it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # read when ray is imported; see infra.servers
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from infra import servers, services
from tests.fixtures.s3_server import S3Server
from tests.fixtures.webhook import Webhook

_SERVERS = {"s3_environment", "ray_cluster", "prefect_server", "planted"}  # what the other servers build on


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = {item.path for item in items if _SERVERS & set(getattr(item, "fixturenames", ()))}
    for item in items:
        if item.path in files:
            item.add_marker("servers")


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[S3Server]:
    """The address and credentials of an S3 server, in this process's environment; the server itself is `s3_server`.

    Set before the Ray cluster starts, as on a real one: Ray's nodes get them from the environment they start in.
    """
    import fsspec.config

    server = S3Server()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    fsspec.config.set_conf_env(fsspec.config.conf)  # fsspec has read the environment when it was imported
    try:
        yield server
    finally:
        server.stop()
        fsspec.config.conf.pop("s3", None)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def s3_server(s3_environment: S3Server) -> Iterator[S3Server]:
    """A running S3 server that behaves until told otherwise. Buckets outlive a test: give each a name of its own."""
    s3_environment.start()
    s3_environment.calm()
    yield s3_environment
    s3_environment.calm()


@pytest.fixture(scope="session")
def ray_cluster(s3_environment: S3Server) -> Iterator[servers.RayHead]:
    """A Ray head with 4 logical CPUs, dashboard and token authentication. `.address`, `.dashboard_url`, `.env`."""
    folder = Path(tempfile.mkdtemp(prefix="emoray", dir="/tmp" if os.path.isdir("/tmp") else None))
    head = servers.start_ray_head(
        folder / "r", folder / "token", folder / "ray.log", cpus=4, object_store_bytes=400 * 1024**2
    )
    before = {name: os.environ.get(name) for name in head.env}
    os.environ.update(head.env)
    try:
        servers.wait_until(head.healthy, head.process, limit_s=120)
        yield head
    finally:
        servers.end(head.process, patience_s=3)  # nobody needs what it would still write
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session(ray_cluster: servers.RayHead) -> Iterator[servers.RayHead]:
    """This process as a driver of `ray_cluster`."""
    import ray

    ray.init(address=ray_cluster.address, log_to_driver=False, namespace="tests")
    try:
        yield ray_cluster
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[servers.PrefectServer]:
    """A Prefect server on SQLite in its own folder, with a password. `.api_url`, `.auth_string`, `.env`; not set in this
    process's environment."""
    folder = Path(tempfile.mkdtemp(prefix="emoprefect"))
    server = servers.start_prefect_server(folder / "home", folder / "server.log", auth_path=folder / "auth")
    try:
        servers.wait_until(server.healthy, server.process, limit_s=120)
        yield server
    finally:
        servers.end(server.process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def planted() -> Iterator[Webhook]:
    """A webhook with a secret in its address, and the same secret as a password, in the environment of `local_services`."""
    webhook = Webhook()
    names = {"EMOBENCH_WEBHOOK_URL": webhook.url, "PLANTED_PASSWORD": webhook.token}
    os.environ.update(names)
    try:
        yield webhook
    finally:
        webhook.stop()
        for name in names:
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def local_services(planted: Webhook) -> Iterator[services.Services]:
    """What `make up` starts (Prefect server, worker, Ray head, deployments), with its state in a folder of its own.

    Ports differ from those of services that already run here. Ending it must leave no process behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="emoservices"))
    running = services.up(folder)
    try:
        yield running
    finally:
        latest = services.Services.load(folder)
        services.down(folder)
        left = [member for process in latest.processes() for member in servers.family(process)]
        shutil.rmtree(folder, ignore_errors=True)
        assert left == [], f"`down` left processes behind: {left}"
