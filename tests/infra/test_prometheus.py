"""Prometheus itself: its own check of our files, and a real one that scrapes a real Ray cluster during a build.

Slow, and Debian's: `sh infra/install_prometheus.sh` (part of `make test-slow`) unpacks it into .local/prometheus.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import servers
from tests.benchmarks.build_scale import write_tree
from tests.fixtures.monitoring import PROMETHEUS, Query, queries

PROJECT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow


def binary(name: str) -> str:
    unpacked = PROJECT / ".local" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    assert found, f"{name} is not here: run sh infra/install_prometheus.sh"
    return found


def test_promtool_accepts_rules_and_configurations() -> None:
    for words in (
        ["check", "rules", "rules.yaml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "config", "--syntax-only", "prometheus.local.yml"],
    ):
        result = subprocess.run([binary("promtool"), *words], capture_output=True, text=True, cwd=PROMETHEUS)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_fires_and_is_silent_where_it_should_be() -> None:
    command = [binary("promtool"), "test", "rules", "tests/alerts.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


class Api:
    def __init__(self, url: str) -> None:
        self.url = url

    def _get(self, path: str) -> Any:
        reply = servers.get(self.url + path)
        return json.loads(reply)["data"] if reply else None

    def ready(self) -> bool:
        return servers.answers(self.url + "/-/ready")

    def query(self, text: str) -> list[Any]:
        """The samples of an instant query. Fails where Prometheus refuses it."""
        data = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": text}))
        assert data is not None, f"Prometheus refuses {text}"
        return data["result"]

    def firing(self) -> set[str]:
        alerts = (self._get("/api/v1/alerts") or {"alerts": []})["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def ten_times_faster(text: str) -> str:
    """Rules in which minutes are six seconds and hours six minutes."""
    text = re.sub(r"(?<=[\[ ])(\d+)m(?=[\]\n])", lambda found: f"{int(found.group(1)) * 6}s", text)
    return re.sub(r"(?<=\[)(\d+)h(?=\])", lambda found: f"{int(found.group(1)) * 6}m", text)


def wait_for(what: Callable[[], bool], limit_s: float, build: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + limit_s
    while not what():
        assert build.poll() in (None, 0), "the build failed"
        assert time.monotonic() < until, f"not within {limit_s:.0f} s"
        time.sleep(1)


def test_a_stalled_build_fires_its_alert_and_every_query_is_answered(
    ray_cluster: servers.RayHead, tmp_path: Path
) -> None:
    rules = ten_times_faster((PROMETHEUS / "rules.yaml").read_text()).replace("interval: 30s", "interval: 2s")
    assert "for: 30s" in rules and "[60s]" in rules
    (tmp_path / "rules.yaml").write_text(rules)
    config = yaml.safe_load((PROMETHEUS / "prometheus.local.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    [ray_job] = [job for job in config["scrape_configs"] if job["job_name"] == "ray"]
    targets = f"{ray_cluster.temp_dir}/prom_metrics_service_discovery.json"  # Ray's own file
    ray_job["file_sd_configs"] = [{"files": [targets], "refresh_interval": "2s"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))

    # A minute's work: Ray exports its metrics every ten seconds, and it has to be seen growing.
    write_tree(tmp_path / "emoset", 60_000, 48)
    for broken in sorted((tmp_path / "emoset" / "image" / "awe").iterdir())[:10]:
        broken.write_bytes(b"not a picture")
    recipe = {
        "name": "stalled",
        "out": str(tmp_path / "emobench"),
        "sources": [{"name": "emoset", "root": str(tmp_path / "emoset")}],
        "media": {"max_side_px": 48},
        "shard_rows": 100,
    }
    (tmp_path / "stalled.yaml").write_text(yaml.safe_dump(recipe))

    port = servers.free_port()
    command = [binary("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = servers.start(
        "Prometheus", command, os.environ, tmp_path / "prometheus.log", mark="prometheus-test"
    )
    api = Api(f"http://127.0.0.1:{port}")
    build: subprocess.Popen[bytes] | None = None
    try:
        servers.wait_until(api.ready, prometheus, 30)
        build = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dataset_build",
                "build",
                str(tmp_path / "stalled.yaml"),
                "--workers",
                "1",
            ],
            cwd=PROJECT,
            env={**os.environ, **ray_cluster.env},
            stdout=(tmp_path / "build.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        grown = 'sum(increase(ray_emobench_build_rows_total{run="stalled"}[1m])) > 0'
        wait_for(lambda: bool(api.query(grown)), 120, build)
        build.send_signal(signal.SIGSTOP)
        began = time.monotonic()

        empty = []
        for query in queries():
            answer = api.query(query.text.replace("$run", ".*"))
            if not answer and is_about_a_build_or_the_cluster(query):
                empty.append(query)
        assert not empty, f"no data for {empty}"

        wait_for(lambda: "EmoBuildNoProgress" in api.firing(), 200, build)
        print(
            f"EmoBuildNoProgress fired {time.monotonic() - began:.0f} s after the build stood still (clock x10)"
        )
        assert not api.firing() & {"EmoNodeDown", "EmoClusterDown", "EmoTrainNoProgress"}

        build.send_signal(signal.SIGCONT)
        wait_for(lambda: "EmoBuildNoProgress" not in api.firing(), 120, build)
        assert build.wait(timeout=120) == 0, (tmp_path / "build.log").read_text()[-2000:]
    finally:
        if build and build.poll() is None:
            build.send_signal(signal.SIGCONT)
            build.terminate()
            build.wait(timeout=30)
        servers.end(prometheus)


def is_about_a_build_or_the_cluster(query: Query) -> bool:
    """What has data while a build runs on a machine without GPUs and without a Prefect server."""
    panel = query.where.startswith(("build.json", "cluster.json")) and "Prefect" not in query.where
    # At the moment of the stall the pace of 15 minutes may be unknown still.
    return panel and "Time left" not in query.where


def test_prefect_gives_its_metrics_to_who_knows_the_password_and_its_health_to_anyone(
    tmp_path: Path,
) -> None:
    server = servers.start_prefect_server(
        tmp_path / "home",
        tmp_path / "server.log",
        auth_path=tmp_path / "prefect-auth",
        extra_env={"PREFECT_SERVER_METRICS_ENABLED": "true"},
    )
    try:
        servers.wait_until(server.healthy, server.process, 120)
        assert servers.get(f"{server.api_url}/metrics") is None
        word = base64.b64encode(server.auth_string.encode()).decode()
        metrics = servers.get(f"{server.api_url}/metrics", {"Authorization": f"Basic {word}"})
        assert metrics and b"prefect_" in metrics
    finally:
        servers.end(server.process)
