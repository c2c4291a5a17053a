"""Kubernetes objects against their schemas; a field that the schema does not know is a problem, as it is for an API server
that is asked to be strict.

Built-in kinds: the schemas that the package `kubernetes-validate` carries. RayCluster and RayJob: KubeRay's custom
resource definitions in infra/kubernetes/crds. Kueue and the Prometheus operator: infra/kubernetes/schemas.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from infra.kustomize import documents

KUBERNETES = "1.34"
_BUILT_IN = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"  # in the package kubernetes_validate
FOLDER = Path(__file__).resolve().parent / "kubernetes"

_STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
# Kubernetes' own names for objects (RFC 1123 subdomains), and the part of ObjectMeta that is ours to write.
_METADATA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "labels": _STRINGS,
        "annotations": _STRINGS,
    },
}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the object, each as `field: what`; empty where nothing is."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    schema = _custom(group, version, manifest["kind"])
    return _builtin(manifest) if schema is None else _against(schema, manifest)


def closed(schema: Any) -> Any:
    """The schema with every object that lists its properties shut against others.

    That is how an API server reads a structural schema: it drops unknown fields, or refuses them when asked to be strict
    (`x-kubernetes-preserve-unknown-fields` excepted).
    """
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {
        key: {name: closed(entry) for name, entry in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    opened = shut.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in shut
    if isinstance(shut.get("properties"), dict) and not opened:
        shut["additionalProperties"] = False
    return shut


@functools.cache
def _custom(group: str, version: str, kind: str) -> Any:
    """The closed schema of a custom resource, or None where no file has one."""
    definition = FOLDER / "crds" / f"{group}_{kind.lower()}s.yaml"
    schema: Any = None
    if definition.is_file():
        for served in documents(definition)[0]["spec"]["versions"]:
            if served["name"] == version:
                schema = served["schema"]["openAPIV3Schema"]
    written = FOLDER / "schemas" / f"{group}.yaml"
    if written.is_file():
        schema = documents(written)[0].get(kind)
    if schema is None:
        return None
    shut = closed(schema)
    shut["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": _METADATA,
    }
    shut["additionalProperties"] = False
    return shut


def _builtin(manifest: dict[str, Any]) -> list[str]:
    validator = _builtin_validator(manifest["apiVersion"], manifest["kind"])
    if validator is None:
        return [
            f"{manifest['apiVersion']} {manifest['kind']}: no schema, neither Kubernetes {KUBERNETES}'s nor ours"
        ]
    errors = validator.iter_errors(manifest)
    return [_explain(error) for error in errors] or _against(
        {"type": "object", "properties": {"metadata": _METADATA}}, manifest
    )


@functools.cache
def _builtin_validator(api_version: str, kind: str) -> Any:
    """The validator of a built-in kind, unknown fields refused, or None where Kubernetes has no such kind.

    `kubernetes_validate.validate` does the same, and reads 1.5 MB of definitions for each object.
    """
    import jsonschema
    from kubernetes_validate.utils import schema_contents

    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1: rbac-v1
    try:
        schema = schema_contents(f"{_BUILT_IN}/{kind.lower()}-{group}.json", KUBERNETES)
    except FileNotFoundError:
        return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions())


@functools.cache
def _definitions() -> Any:
    import referencing
    from kubernetes_validate.utils import schema_contents

    contents = schema_contents(f"{_BUILT_IN}/_definitions.json", KUBERNETES)
    return referencing.Resource.from_contents(contents) @ referencing.Registry()


def _against(schema: Any, manifest: dict[str, Any]) -> list[str]:
    import jsonschema

    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [_explain(error) for error in sorted(errors, key=lambda error: [str(part) for part in error.path])]


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "(the object)"
    return f"{where}: {error.message if len(error.message) < 300 else error.message[:300] + ' …'}"
