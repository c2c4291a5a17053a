"""Renders the kustomizations of infra/kubernetes without kubectl, so that they can be checked where there is none.

Only what these files use: `resources`, `components`, `namespace`, `images`, JSON 6902 `patches` from a file, and
`configMapGenerator` from files. Anything else is an error that names the field, never a silent difference. A slow test
compares the result with `kubectl kustomize`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FIELDS = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "images",
    "patches",
    "configMapGenerator",
    "generatorOptions",
}
_CLUSTER_SCOPED = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PersistentVolume", "StorageClass"}

Manifest = dict[str, Any]


class KustomizationError(ValueError):
    """A kustomization that does not render. The message names the file, the field and what to do."""


def render(folder: Path) -> list[Manifest]:
    """The objects of `folder/kustomization.yaml`, in the order in which they are named."""
    path = folder / "kustomization.yaml"
    kustomization = _one(path)
    if unknown := set(kustomization) - _FIELDS:
        raise KustomizationError(
            f"{path}: {sorted(unknown)}: not among the fields that this project renders ({sorted(_FIELDS)})"
        )
    manifests: list[Manifest] = []
    for name in kustomization.get("resources", []):
        manifests += _resources(path, folder / name)
    manifests += [_config_map(path, folder, entry) for entry in kustomization.get("configMapGenerator", [])]
    for name in kustomization.get("components", []):
        if _one(folder / name / "kustomization.yaml").get("kind") != "Component":
            raise KustomizationError(f"{path}: components: {name} is not a kustomization of kind Component")
        manifests += render(folder / name)
    if namespace := kustomization.get("namespace"):
        for manifest in manifests:
            if manifest["kind"] not in _CLUSTER_SCOPED:
                manifest["metadata"]["namespace"] = namespace
    for patch in kustomization.get("patches", []):
        _apply(path, patch, manifests)
    for image in kustomization.get("images", []):
        if not _rename(image, manifests):
            raise KustomizationError(f"{path}: images: no container uses the image {image['name']!r}")
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    if twice := {name for name in names if names.count(name) > 1}:
        raise KustomizationError(f"{path}: declared twice: {sorted(twice)}")
    return manifests


def containers(manifest: Any) -> Iterator[dict[str, Any]]:
    """Every container and init container, wherever in the object its pod template is."""
    if isinstance(manifest, dict):
        for key, value in manifest.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from (entry for entry in value if isinstance(entry, dict))
            yield from containers(value)
    elif isinstance(manifest, list):
        for entry in manifest:
            yield from containers(entry)


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file, empty ones left out. Raises KustomizationError naming the file."""
    import yaml

    try:
        from yaml import CSafeLoader as SafeLoader  # where PyYAML was built with it, ten times as fast
    except ImportError:
        from yaml import SafeLoader  # type: ignore[assignment]
    try:
        return [found for found in yaml.load_all(path.read_text(), Loader=SafeLoader) if found is not None]
    except FileNotFoundError:
        raise KustomizationError(f"{path} is not there") from None
    except yaml.YAMLError as error:
        raise KustomizationError(f"{path} is not YAML: {error}") from error


def _one(path: Path) -> dict[str, Any]:
    found = documents(path)
    if len(found) != 1 or not isinstance(found[0], dict):
        raise KustomizationError(f"{path}: expected one YAML mapping, found {len(found)} documents")
    return found[0]


def _resources(where: Path, path: Path) -> list[Manifest]:
    if path.is_dir():
        return render(path)
    if not path.is_file():
        raise KustomizationError(f"{where}: resources: {path} is not there")
    found = copy.deepcopy(documents(path))  # YAML aliases become copies: a patch must not reach all of them
    for number, manifest in enumerate(found, 1):
        named = isinstance(manifest, dict) and isinstance(manifest.get("metadata"), dict)
        if not named or not {"apiVersion", "kind"} <= set(manifest) or "name" not in manifest["metadata"]:
            raise KustomizationError(f"{path}: document {number} lacks apiVersion, kind or metadata.name")
    return [_without_aliases(manifest) for manifest in found]


def _without_aliases(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_aliases(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_aliases(entry) for entry in value]
    return value


def _config_map(where: Path, folder: Path, entry: dict[str, Any]) -> Manifest:
    options = entry.get("options", {})
    if not options.get("disableNameSuffixHash"):
        raise KustomizationError(
            f"{where}: configMapGenerator {entry.get('name')}: set options.disableNameSuffixHash"
        )
    data = {}
    for name in entry["files"]:
        if not (folder / name).is_file():
            raise KustomizationError(f"{where}: configMapGenerator {entry['name']}: {name} is not there")
        data[Path(name).name] = (folder / name).read_text()
    metadata = {"name": entry["name"]}
    metadata |= {"namespace": entry["namespace"]} if "namespace" in entry else {}
    metadata |= {"labels": options["labels"]} if "labels" in options else {}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _apply(where: Path, patch: dict[str, Any], manifests: list[Manifest]) -> None:
    """A JSON 6902 patch (RFC 6902: add, replace, remove) on the one object that its target names."""
    if set(patch) != {"target", "path"} or set(patch["target"]) != {"kind", "name"}:
        raise KustomizationError(f"{where}: patches: expected target (kind, name) and path, found {patch}")
    target = (patch["target"]["kind"], patch["target"]["name"])
    chosen = [entry for entry in manifests if (entry["kind"], entry["metadata"]["name"]) == target]
    if len(chosen) != 1:
        raise KustomizationError(f"{where}: patches: {target} names {len(chosen)} objects, expected one")
    file = where.parent / patch["path"]
    found = documents(file)
    if len(found) != 1 or not isinstance(found[0], list):
        raise KustomizationError(f"{file}: expected a list of JSON 6902 operations")
    for operation in found[0]:
        try:
            _operate(chosen[0], operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise KustomizationError(
                f"{file}: {operation.get('op')} {operation.get('path')}: does not apply to {target} ({error!r})"
            ) from error


def _operate(manifest: Any, operation: dict[str, Any]) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        manifest = manifest[int(part)] if isinstance(manifest, list) else manifest[part]
    action, key = operation["op"], (int(last) if isinstance(manifest, list) and last != "-" else last)
    if action in ("replace", "remove"):
        manifest[key]  # has to be there
    if action == "remove":
        del manifest[key]
    elif action == "add" and isinstance(manifest, list):
        manifest.insert(len(manifest) if last == "-" else int(last), operation["value"])
    elif action in ("add", "replace"):
        manifest[key] = operation["value"]
    else:
        raise ValueError(f"operation {action!r}: expected add, replace or remove")


def _rename(image: dict[str, str], manifests: list[Manifest]) -> int:
    """Set the name, tag or digest of an image, as kustomize does; returns in how many containers."""
    renamed = 0
    for container in containers(manifests):
        name = container.get("image", "").partition("@")[0]
        base, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
        if base == image["name"]:
            new = image.get("newName", base)
            tag = image.get("newTag", tag)
            digest = f"@{image['digest']}" if "digest" in image else ""
            container["image"] = new + (digest or (f":{tag}" if tag else ""))
            renamed += 1
    return renamed
