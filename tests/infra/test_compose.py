"""compose.yaml: it is what the specification allows, listens on loopback alone, and holds no secret."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import check_manifests

PROJECT = Path(__file__).resolve().parent.parent.parent
COMPOSE = PROJECT / "infra" / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_pass_their_check(name: str) -> None:
    assert check_manifests.compose(COMPOSE / name) == []


MISTAKES = {
    "an unknown field": ("shm_size: 2gb", "shmsize: 2gb", "shmsize"),
    "a port for everybody": ('"127.0.0.1:8265:8265"', '"8265:8265"', "127.0.0.1 only"),
    "Ray without its token": ("RAY_AUTH_MODE: token", "RAY_AUTH_MODE: disabled", "without authentication"),
    "Prefect without its password": (
        "PREFECT_SERVER_API_AUTH_STRING: emobench:${PREFECT_PASSWORD:?run make_env.sh}",
        'PREFECT_API_DEBUG: "1"',
        "without authentication",
    ),
    "a password written down": (
        "${S3_SECRET_KEY:?run make_env.sh}\n    volumes",
        "hunter2hunter2\n    volumes",
        "from .env",
    ),
    "a password written down in a list": (
        "    environment: *ray-environment\n    secrets: [ray_token]\n    shm_size: 2gb",
        "    environment: [RAY_AUTH_MODE=token, AWS_SECRET_ACCESS_KEY=hunter2hunter2]\n    shm_size: 2gb",
        "from .env",
    ),
    "a container on the host's network": ("shm_size: 2gb", "network_mode: host", "host's network"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path) -> None:
    there, instead, named = MISTAKES[mistake]
    assert there in TEXT
    (tmp_path / "compose.yaml").write_text(TEXT.replace(there, instead))
    found = check_manifests.compose(tmp_path / "compose.yaml")
    assert any(named in problem for problem in found), found


def test_every_variable_is_in_the_example_and_secrets_are_asked_for() -> None:
    example = dict(
        line.split("=", 1)
        for line in (COMPOSE / ".env.example").read_text().splitlines()
        if re.match(r"[A-Z]", line)
    )
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT + (COMPOSE / "compose.gpu.yaml").read_text()))
    images = {name for name in used if name.endswith("_IMAGE")}
    secrets = {name for name in example if re.search("TOKEN|PASSWORD|KEY", name)}
    assert all(example[name] == "" for name in secrets), "an example holds no secret"
    assert used - images <= set(example)
    for name in used & secrets:
        assert f"${{{name}:?" in TEXT, f"{name}: an empty secret has to be an error"
    mounted = {entry["environment"] for entry in yaml.safe_load(TEXT)["secrets"].values()}
    assert mounted | (used & secrets) == secrets


def test_a_new_env_has_secrets_of_its_own_that_only_its_owner_reads(tmp_path: Path) -> None:
    for name in ("make_env.sh", ".env.example"):
        shutil.copy(COMPOSE / name, tmp_path / name)
    first = subprocess.run(["sh", "make_env.sh"], cwd=tmp_path, capture_output=True, text=True, check=True)
    env = tmp_path / ".env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    content = env.read_text()
    values = re.findall(r"^[A-Z0-9_]*(?:TOKEN|PASSWORD|KEY)=(.*)$", content, re.MULTILINE)
    assert len(set(values)) == len(values) == 6 and all(
        re.fullmatch("[0-9a-f]{64}", value) for value in values
    )
    assert not any(value in first.stdout + first.stderr for value in values)
    subprocess.run(["sh", "make_env.sh"], cwd=tmp_path, capture_output=True, check=True)
    assert env.read_text() == content, "one that is there is kept"


def test_git_and_the_image_leave_the_secrets_out() -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/compose/.env"], cwd=PROJECT)
    assert ignored.returncode == 0 or not (PROJECT / ".git").exists()
    assert "infra/compose/.env" in (PROJECT / "infra/docker/Dockerfile.dockerignore").read_text().split()


def test_mounted_files_and_services_that_are_waited_for_exist() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("../"):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
        for other, entry in service.get("depends_on", {}).items():
            healthy = entry["condition"] == "service_healthy"
            assert other in SERVICES and ("healthcheck" in SERVICES[other] or not healthy), f"{name}: {other}"


def test_every_long_running_service_has_a_health_check() -> None:
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["s3-bucket"]


def test_ray_has_shared_memory_for_its_objects_and_the_token_from_a_file() -> None:
    units = {"gb": 1024**3}
    for name in ("ray-head", "ray-worker"):
        service = SERVICES[name]
        [store] = [word for word in service["command"] if word.startswith("--object-store-memory=")]
        assert int(service["shm_size"].removesuffix("gb")) * units["gb"] > int(store.partition("=")[2])
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert "RAY_AUTH_TOKEN" not in service["environment"]


def test_ports_and_jobs_that_prometheus_scrapes_are_those_of_the_services() -> None:
    config = yaml.safe_load((PROJECT / "infra/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    [ray] = jobs["ray"]["dns_sd_configs"]
    for name in ray["names"]:
        assert f"--metrics-export-port={ray['port']}" in SERVICES[name]["command"]
    [target] = jobs["prefect-server"]["static_configs"][0]["targets"]
    assert (
        target.split(":")[0] in SERVICES
        and SERVICES["prefect-server"]["environment"]["PREFECT_SERVER_METRICS_ENABLED"]
    )
    assert (
        jobs["prefect-server"]["basic_auth"]["password_file"]
        == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    )


def test_pinning_asks_for_every_image_that_is_not_built_here(tmp_path: Path) -> None:
    # The registries are out of reach here: a docker that answers with a fixed digest shows which images are asked for.
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho sha256:" + "0" * 64 + "\n")
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["sh", "infra/docker/pin_images.sh"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    pinned = dict(line.split("=", 1) for line in result.stdout.splitlines())
    wanted = set(re.findall(r"image: \$\{([A-Z0-9_]+)", TEXT)) - {"EMOBENCH_IMAGE"} | {
        "BASE_IMAGE",
        "UV_IMAGE",
    }
    assert set(pinned) == wanted
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:0{64}", image) for image in pinned.values())
