"""Checks the cluster's files before `kubectl` or `docker compose` sees them: `python -m infra.check_manifests`.

Kubernetes: every kustomization renders; every object fits its schema, unknown fields refused; every secret, ConfigMap,
volume claim and key that is referred to is made somewhere; containers ask for resources and run without rights; nothing listens for
others without authentication. Compose: the compose specification's schema, ports on loopback, no secret written down.
Monitoring: the operator's rules are those of infra/prometheus/rules.yaml. It needs the packages of the `dev` extra.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.kustomize import KustomizationError, Manifest, containers, documents, render

INFRA = Path(__file__).resolve().parent
KUSTOMIZATIONS = ("base", "overlays/dev", "overlays/gpu", "jobs/train")
RULES = INFRA / "prometheus" / "rules.yaml"
OPERATOR_RULES = INFRA / "kubernetes" / "components" / "monitoring" / "rules.yaml"
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|ACCESS_KEY|AUTH_STRING|CREDENTIAL|CONNECTION_URL", re.IGNORECASE
)
_NOT_SECRET_NAME = re.compile(r"(_PATH|_FILE|_MODE)$")
_SHORTEST_SECRET = 8  # "true" is none


def kubernetes(folder: Path) -> tuple[int, list[str]]:
    """How many objects the kustomization in `folder` has, and what is wrong with them."""
    from infra import kubernetes_schemas

    try:
        manifests = render(folder)
        known = {
            **_made_by_script(),
            **_made_by_files(render(INFRA / "kubernetes" / "base")),
            **_made_by_files(manifests),
        }
    except KustomizationError as error:
        return 0, [str(error)]
    found = []
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        wrong = kubernetes_schemas.problems(manifest)
        if not wrong:  # what follows relies on the fields being where the schema has them
            wrong = [*_references(manifest, known), *_rights(manifest), *_exposure(manifest)]
        found += [f"{folder.name}: {name}: {problem}" for problem in wrong]
    return len(manifests), found


def compose(path: Path) -> list[str]:
    """What is wrong with a compose file."""
    import importlib.resources
    import json

    import jsonschema

    schema = (
        importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    )
    try:
        [content] = documents(path)
    except KustomizationError as error:
        return [str(error)]
    specification = json.loads(schema.read_text())
    validator = jsonschema.validators.validator_for(specification)(specification)
    found = [
        f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message[:300]}"
        for error in validator.iter_errors(content)
    ]
    for name, service in content.get("services", {}).items() if not found else ():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                found.append(f"services.{name}.ports: {port}: publish it on 127.0.0.1 only")
        environment = service.get("environment", {})
        if isinstance(environment, list):
            environment = dict(entry.partition("=")[::2] for entry in environment)
        for variable, value in environment.items():
            if _holds_secret(variable, value) and "${" not in str(value):
                found.append(
                    f"services.{name}.environment.{variable}: take the value from .env: ${{{variable}:?}}"
                )
        guarded = (
            environment.get("RAY_AUTH_MODE") == "token" or "PREFECT_SERVER_API_AUTH_STRING" in environment
        )
        if "0.0.0.0" in str(service.get("command")) and not guarded:
            found.append(f"services.{name}: listens on 0.0.0.0 without authentication")
        if service.get("privileged") or service.get("network_mode") == "host":
            found.append(f"services.{name}: neither privileged nor on the host's network")
    return [f"{path.name}: {problem}" for problem in found]


def operator_rules() -> str:
    """infra/prometheus/rules.yaml as the Prometheus operator wants it."""
    import yaml

    [rules] = documents(RULES)
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "emobench",
            "namespace": "emobench",
            "labels": {"release": "kube-prometheus-stack"},
        },
        "spec": rules,
    }
    text = yaml.safe_dump(manifest, sort_keys=False, width=120, allow_unicode=True)
    return (
        "# Written by `python -m infra.check_manifests --write-rules` from infra/prometheus/rules.yaml: edit that file.\n"
        + text
    )


def everything() -> Iterator[tuple[str, list[str]]]:
    """(what was checked, what is wrong with it) for all files of infra/."""
    for name in KUSTOMIZATIONS:
        count, found = kubernetes(INFRA / "kubernetes" / name)
        yield f"infra/kubernetes/{name}: {count} objects", found
    for name in ("compose.yaml", "compose.gpu.yaml"):
        yield f"infra/compose/{name}", compose(INFRA / "compose" / name)
    same = OPERATOR_RULES.is_file() and OPERATOR_RULES.read_text() == operator_rules()
    remedy = (
        f"{OPERATOR_RULES.name} differs from {RULES.name}: run python -m infra.check_manifests --write-rules"
    )
    yield "infra/prometheus/rules.yaml in both places", [] if same else [remedy]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.check_manifests",
        description=__doc__.splitlines()[0],
        epilog="exit codes: 0 all fine, 1 something is wrong, 2 packages are missing",
    )
    parser.add_argument(
        "folder", nargs="*", type=Path, help="kustomizations of your own; default: all of infra/"
    )
    parser.add_argument(
        "--write-rules", action="store_true", help="write the operator's copy of the Prometheus rules"
    )
    chosen = parser.parse_args(arguments)
    if chosen.write_rules:
        OPERATOR_RULES.write_text(operator_rules())
        print(f"written: {OPERATOR_RULES}")
        return 0
    try:
        if chosen.folder:
            results = [(str(folder), kubernetes(folder)[1]) for folder in chosen.folder]
        else:
            results = list(everything())
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is missing: pip install --constraint constraints.txt '.[dev]'",
            file=sys.stderr,
        )
        return 2
    for what, found in results:
        print(f"{'wrong' if found else 'fine ':5s} {what}")
        for problem in found:
            print(f"      {problem}")
    return 1 if any(found for _, found in results) else 0


def _made_by_script() -> dict[tuple[str, str], set[str]]:
    """{("secret", name): keys} of what create_secrets.sh makes."""
    script = (INFRA / "kubernetes" / "create_secrets.sh").read_text()
    blocks = re.findall(r"^create (\S+) <<END\n(.*?)^END$", script, re.MULTILINE | re.DOTALL)
    return {("secret", name): set(re.findall(r"^([^=\n]+)=", body, re.MULTILINE)) for name, body in blocks}


def _made_by_files(manifests: list[Manifest]) -> dict[tuple[str, str], set[str]]:
    """{(what, name): keys} of the ConfigMaps and volume claims (which have no keys) among the objects."""
    kinds = {"ConfigMap": "config map", "PersistentVolumeClaim": "volume claim"}
    return {
        (kinds[entry["kind"]], entry["metadata"]["name"]): set(entry.get("data", {}))
        for entry in manifests
        if entry["kind"] in kinds
    }


def _references(value: Any, known: dict[tuple[str, str], set[str]]) -> Iterator[str]:
    """Secrets, ConfigMaps, volume claims and keys that nothing makes."""

    def missing(what: str, name: str, key: str | None) -> Iterator[str]:
        if (what, name) not in known:
            yield f"refers to the {what} {name!r}, which neither these files nor create_secrets.sh make"
        elif key is not None and key not in known[what, name]:
            yield f"refers to the key {key!r} of the {what} {name!r}, which has {sorted(known[what, name])}"

    if isinstance(value, list):
        for entry in value:
            yield from _references(entry, known)
    if not isinstance(value, dict):
        return
    for field, entry in value.items():
        if field in ("secretKeyRef", "configMapKeyRef"):
            yield from missing(
                "secret" if field == "secretKeyRef" else "config map", entry["name"], entry["key"]
            )
        elif field in ("secretRef", "configMapRef"):
            yield from missing("secret" if field == "secretRef" else "config map", entry["name"], None)
        elif field == "persistentVolumeClaim":
            yield from missing("volume claim", entry["claimName"], None)
        elif field == "basicAuth":
            for part in entry.values():
                yield from missing("secret", part["name"], part["key"])
        elif field == "secretName":
            yield from missing("secret", entry, "auth_token" if value.get("mode") == "token" else None)
        elif _holds_secret(str(field), entry) or (
            field == "env" and any(_holds_secret(e["name"], e.get("value")) for e in entry)
        ):
            yield f"{field}: holds a secret; refer to one with valueFrom.secretKeyRef"
        else:
            yield from _references(entry, known)
            continue
        yield from _references(entry, known)


def _holds_secret(name: str, value: Any) -> bool:
    named = _SECRET_NAME.search(name) and name.isupper() and not _NOT_SECRET_NAME.search(name)
    return bool(named) and isinstance(value, str) and len(value) >= _SHORTEST_SECRET


def _pod_specs(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for entry in value.values():
            yield from _pod_specs(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _pod_specs(entry)


def _rights(manifest: Manifest) -> Iterator[str]:
    for pod in _pod_specs(manifest):
        if not pod.get("securityContext", {}).get("runAsNonRoot"):
            yield "a pod without securityContext.runAsNonRoot"
        if pod.get("hostNetwork") or pod.get("hostPID"):
            yield "a pod in the host's network or process space"
        for container in containers(pod):
            context, resources = container.get("securityContext", {}), container.get("resources", {})
            if context.get("allowPrivilegeEscalation") is not False or "ALL" not in context.get(
                "capabilities", {}
            ).get("drop", []):
                yield f"container {container['name']}: allowPrivilegeEscalation: false and capabilities.drop: [ALL]"
            if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get(
                "limits", {}
            ):
                yield f"container {container['name']}: requests for cpu and memory, and a limit for memory"
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in container["image"] and tag in ("", "latest"):
                yield f"container {container['name']}: the image {container['image']} moves; name a version"


def _exposure(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] == "Ingress" or manifest.get("spec", {}).get("type") in ("LoadBalancer", "NodePort"):
        yield "reachable from outside the cluster; put your own gateway with authentication in front instead"
    spec = manifest.get("spec", {})
    guarded = spec.get("rayClusterSpec", spec).get("authOptions", {}).get("mode") == "token"
    for container in containers(manifest):
        variables = {entry["name"] for entry in container.get("env", []) if "valueFrom" in entry}
        guarded |= "PREFECT_SERVER_API_AUTH_STRING" in variables
    if "0.0.0.0" in str(spec) and not guarded:
        yield "listens on 0.0.0.0 without authentication"
    if manifest["kind"] in ("RayCluster", "RayJob") and not guarded:
        yield "authOptions.mode: token is missing: whoever reaches the cluster could run code on it"


if __name__ == "__main__":
    sys.exit(main())
