"""Registers work pools, deployments and automations with a Prefect server: `python -m infra.deploy` (or `make deploy`).

The server is the one that PREFECT_API_URL and PREFECT_API_AUTH_STRING name, else that of `make up`. Doing it again
changes what has changed and nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from infra import servers
from infra.prefect_api import ApiError, PrefectApi
from infra.servers import PROJECT_ROOT, ServiceError

IMAGE = "EMOBENCH_IMAGE"  # which prefect-kubernetes.yaml reads
AUTOMATIONS = Path(__file__).with_name("automations.yaml")


class Target(NamedTuple):
    """A work pool and the file with its deployments; `job_template` shapes what the pool starts, `limit` how many at once."""

    pool: str
    kind: str
    file: str
    limit: int
    job_template: str | None = None


LOCAL = Target("emobench-local", "process", "prefect.yaml", 8)
KUBERNETES = Target(
    "emobench-kubernetes", "kubernetes", "prefect-kubernetes.yaml", 8, "infra/prefect-kubernetes-job.json"
)


def deploy(target: Target, api_url: str, auth_string: str, env: Mapping[str, str]) -> None:
    """Create or update the pool, its deployments and the automations. Raises ServiceError or ApiError."""
    template = ("--base-job-template", target.job_template) if target.job_template else ()
    _prefect(env, "work-pool", "create", target.pool, "--type", target.kind, "--overwrite", *template)
    api = PrefectApi(api_url, auth_string=auth_string)
    api.call("PATCH", f"/work_pools/{target.pool}", {"concurrency_limit": target.limit})
    _prefect(env, "deploy", "--all", "--prefect-file", target.file)
    put_automations(api)


def put_automations(api: PrefectApi, within_s: float | None = None) -> list[str]:
    """Create or replace the automations of infra/automations.yaml; returns their names.

    `within_s` takes the place of the time after which they act.
    """
    import yaml

    names = []
    for automation in yaml.safe_load(AUTOMATIONS.read_text()):
        if within_s is not None:
            automation["trigger"]["within"] = within_s
        api.put_automation(automation)
        names.append(str(automation["name"]))
    return names


def _prefect(env: Mapping[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    result = subprocess.run(
        command,
        cwd=PROJECT_ROOT,
        env=servers.clean_environment({**env, "NO_COLOR": "1"}),
        capture_output=True,
        text=True,
        timeout=180,
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines()[-15:]
        raise ServiceError(f"`prefect {' '.join(arguments)}` failed:\n  " + "\n  ".join(lines))


def _server() -> tuple[str, str, dict[str, str]]:
    """API URL, auth string and environment of the server that is named, else of the local one."""
    from infra.services import HOME, Services

    url = os.environ.get("PREFECT_API_URL", "")
    if url:
        auth = os.environ.get("PREFECT_API_AUTH_STRING", "")
        return url, auth, {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    services = Services.load(HOME)
    if not services.prefect or not services.prefect.healthy():
        raise ServiceError(
            "no Prefect server is named: set PREFECT_API_URL, or start the local one with `make up`"
        )
    return services.prefect.api_url, services.prefect.auth_string, services.env


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.deploy",
        description="Register the work pool, the deployments and the automations with the Prefect server that "
        "PREFECT_API_URL names, else with that of `make up`.",
        epilog="exit codes: 0 done, 1 a server refused or did not answer",
    )
    parser.add_argument(
        "--kubernetes",
        action="store_true",
        help=f"the work pool {KUBERNETES.pool} and {KUBERNETES.file}: each flow run is a Kubernetes job",
    )
    parser.add_argument("--only-automations", action="store_true", help="neither pool nor deployments")
    chosen = parser.parse_args(arguments)
    target = KUBERNETES if chosen.kubernetes else LOCAL
    try:
        if chosen.kubernetes and not os.environ.get(IMAGE):
            raise ServiceError(
                f"set {IMAGE} to the image that the flow runs start from, as your registry names it"
            )
        url, auth, env = _server()
        if chosen.only_automations:
            for name in put_automations(PrefectApi(url, auth_string=auth)):
                print(f"automation: {name}")
        else:
            deploy(target, url, auth, env)
            print(
                f"work pool {target.pool}, the deployments of {target.file} and the automations are registered"
            )
    except (ServiceError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
