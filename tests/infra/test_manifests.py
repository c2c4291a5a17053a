"""The Kubernetes files: what they promise, and that the check refuses what a cluster would refuse or should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import check_manifests, kubernetes_schemas
from infra.kustomize import Manifest, containers, render

PROJECT = Path(__file__).resolve().parent.parent.parent
KUBERNETES = PROJECT / "infra" / "kubernetes"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the files, to be made wrong; KubeRay's definitions are read from the project."""
    for name in ("kubernetes", "grafana"):
        ignored = shutil.ignore_patterns("crds", "schemas")
        shutil.copytree(PROJECT / "infra" / name, tmp_path / name, ignore=ignored)
    return tmp_path / "kubernetes"


def by_kind(folder: str) -> dict[tuple[str, str], Manifest]:
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in render(KUBERNETES / folder)}


def gib(quantity: str) -> float:
    return float(quantity.removesuffix("Gi")) if quantity.endswith("Gi") else float(quantity[:-2]) / 1024


@pytest.mark.parametrize("folder", check_manifests.KUSTOMIZATIONS)
def test_every_kustomization_passes_its_check(folder: str) -> None:
    count, found = check_manifests.kubernetes(KUBERNETES / folder)
    assert count and not found, "\n".join(found)


# (file, what is there, what is written instead, where it is noticed, what the check must name)
MISTAKES = {
    "unknown field of a RayCluster": (
        "base/raycluster.yaml",
        "maxReplicas:",
        "maxReplica:",
        "base",
        "maxReplica",
    ),
    "unknown field of its container": (
        "base/raycluster.yaml",
        "image: emobench",
        "imagePolicy: x\n            image: emobench",
        "base",
        "imagePolicy",
    ),
    "a value outside the list": ("base/raycluster.yaml", "mode: token", "mode: tokens", "base", "tokens"),
    "a word for a number": ("base/raycluster.yaml", "replicas: 1", "replicas: one", "base", "'one'"),
    "no token": ("base/raycluster.yaml", "mode: token", "mode: disabled", "base", "authOptions.mode: token"),
    "unknown field of a StatefulSet": (
        "base/postgres.yaml",
        "serviceName:",
        "servicename:",
        "base",
        "servicename",
    ),
    "a string for a port": (
        "base/prefect-server.yaml",
        "containerPort: 4200",
        'containerPort: "4200"',
        "base",
        "4200",
    ),
    "a secret's key misspelt": ("base/postgres.yaml", "key: password", "key: pasword", "base", "pasword"),
    "a secret that nobody makes": (
        "base/raycluster.yaml",
        "name: s3-credentials",
        "name: s3",
        "base",
        "'s3'",
    ),
    "a volume that nobody makes": (
        "base/prefect-worker.yaml",
        "claimName: runs",
        "claimName: run",
        "base",
        "volume claim 'run'",
    ),
    "a secret written down": (
        "base/prefect-server.yaml",
        '{name: DO_NOT_TRACK, value: "1"}',
        '{name: PREFECT_API_AUTH_STRING, value: "admin:pass"}',
        "base",
        "holds a secret",
    ),
    "the server without a password": (
        "base/prefect-server.yaml",
        "name: PREFECT_SERVER_API_AUTH_STRING",
        "name: PREFECT_API_AUTH_STRING",
        "base",
        "0.0.0.0 without authentication",
    ),
    "a port for everybody": (
        "base/prefect-server.yaml",
        "spec:\n  selector:",
        "spec:\n  type: LoadBalancer\n  selector:",
        "base",
        "outside the cluster",
    ),
    "a pod as root": (
        "base/postgres.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        "base",
        "runAsNonRoot",
    ),
    "no limit of memory": (
        "base/postgres.yaml",
        "limits: {memory: 1Gi}",
        "limits: {}",
        "base",
        "limit for memory",
    ),
    "an image without a version": (
        "base/postgres.yaml",
        "postgres:17-bookworm",
        "postgres:latest",
        "base",
        "name a version",
    ),
    "unknown field of a queue": (
        "components/kueue/queues.yaml",
        "nominalQuota: 8}",
        "nominalQuotas: 8}",
        "overlays/gpu",
        "nominalQuota",
    ),
    "unknown field of a monitor": (
        "components/monitoring/monitors.yaml",
        "path:",
        "metricsPath:",
        "overlays/gpu",
        "metricsPath",
    ),
    "unknown field of a RayJob": (
        "jobs/train/rayjob.yaml",
        "backoffLimit:",
        "backOffLimit:",
        "jobs/train",
        "backOffLimit",
    ),
    "a patch that meets nothing": (
        "overlays/dev/small-cluster.yaml",
        "/workerGroupSpecs/0/maxReplicas",
        "/workerGroups/0/maxReplicas",
        "overlays/dev",
        "does not apply",
    ),
    "a patch of nobody": (
        "overlays/dev/kustomization.yaml",
        "name: emobench}",
        "name: emo}",
        "overlays/dev",
        "names 0 objects",
    ),
    "a file that is not there": (
        "base/kustomization.yaml",
        "raycluster.yaml",
        "ray.yaml",
        "base",
        "ray.yaml is not there",
    ),
    "a field that is not rendered": (
        "base/kustomization.yaml",
        "namespace: emobench",
        "namePrefix: a-",
        "base",
        "namePrefix",
    ),
    "an image that nobody uses": (
        "overlays/dev/kustomization.yaml",
        "name: emobench-emollm",
        "name: emobench-emolm",
        "overlays/dev",
        "emobench-emolm",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, copied: Path) -> None:
    file, there, instead, folder, named = MISTAKES[mistake]
    text = (copied / file).read_text()
    assert there in text
    (copied / file).write_text(text.replace(there, instead, 1))
    _, found = check_manifests.kubernetes(copied / folder)
    assert any(named in problem for problem in found), found


def test_the_command_says_what_is_wrong_and_fails(copied: Path) -> None:
    file = copied / "base" / "raycluster.yaml"
    file.write_text(file.read_text().replace("rayVersion:", "rayversion:"))
    result = subprocess.run(
        [sys.executable, "-m", "infra.check_manifests", str(copied / "base")],
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert (
        result.returncode == 1
        and "RayCluster emobench: spec" in result.stdout
        and "rayversion" in result.stdout
    )


def test_a_closed_schema_keeps_what_kubernetes_leaves_open() -> None:
    schema = {
        "type": "object",
        "properties": {
            "named": {"type": "object", "properties": {"a": {"type": "string"}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    shut = kubernetes_schemas.closed(schema)
    assert shut["additionalProperties"] is False
    assert shut["properties"]["named"]["additionalProperties"] is False
    assert shut["properties"]["map"]["additionalProperties"] == {"type": "string"}
    assert "additionalProperties" not in shut["properties"]["free"]


def selected(manifests: dict[Any, Manifest], labels: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The pod templates whose labels match."""

    def templates(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield from (value[key] for key in ("template", "submitterPodTemplate") if key in value)
            for entry in value.values():
                yield from templates(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from templates(entry)

    for template in templates(list(manifests.values())):
        if labels.items() <= template.get("metadata", {}).get("labels", {}).items():
            yield template


def test_services_and_monitors_name_pods_and_ports_that_exist() -> None:
    manifests = by_kind("overlays/gpu")
    chosen = [entry for (kind, _), entry in manifests.items() if kind in ("Service", "PodMonitor")]
    assert len(chosen) == 3
    for entry in chosen:
        spec = entry["spec"]
        labels = spec["selector"].get("matchLabels", spec["selector"])
        ports = {
            port["name"]
            for pod in selected(manifests, labels)
            for c in containers(pod)
            for port in c.get("ports", [])
        }
        wanted = [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])]
        wanted += [port["targetPort"] for port in spec.get("ports", [])]
        assert wanted and set(wanted) <= ports, entry["metadata"]["name"]
    [endpoint] = manifests["ServiceMonitor", "prefect-server"]["spec"]["endpoints"]
    assert endpoint["port"] in {
        port["name"] for port in manifests["Service", "prefect-server"]["spec"]["ports"]
    }


def test_network_policies_guard_every_pod_and_name_pods_that_exist() -> None:
    manifests = {**by_kind("overlays/gpu"), **by_kind("jobs/train")}
    policies = [entry["spec"] for (kind, _), entry in manifests.items() if kind == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies, "nothing denies by default"
    for policy in policies:
        peers = [peer for rule in policy.get("ingress", []) for peer in rule["from"]]
        for selector in [policy["podSelector"], *[peer.get("podSelector", {}) for peer in peers]]:
            if labels := selector.get("matchLabels"):
                assert list(selected(manifests, labels)), labels


def test_every_object_of_the_namespace_says_so() -> None:
    for (kind, name), entry in by_kind("overlays/gpu").items():
        if kind not in ("Namespace", "ResourceFlavor", "ClusterQueue"):
            assert entry["metadata"].get("namespace") == "emobench", (kind, name)
        else:
            assert "namespace" not in entry["metadata"], (kind, name)


def test_ray_pods_have_shared_memory_that_their_memory_holds() -> None:
    for folder in ("overlays/dev", "overlays/gpu", "jobs/train"):
        for template in selected(by_kind(folder), {"app.kubernetes.io/name": "emobench-ray"}):
            spec = template["spec"]
            [shm] = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
            assert shm["medium"] == "Memory"
            [container] = spec["containers"]
            assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
            assert gib(shm["sizeLimit"]) < gib(container["resources"]["limits"]["memory"]) / 2


def test_whoever_writes_or_reads_models_has_the_volume_that_all_share() -> None:
    for folder in ("overlays/dev", "overlays/gpu", "jobs/train"):
        manifests = by_kind(folder)
        pods = [*selected(manifests, {"app.kubernetes.io/name": "emobench-ray"})]
        if folder != "jobs/train":
            pods += [manifests["Deployment", "prefect-worker"]["spec"]["template"]]
        assert len(pods) >= 2
        for spec in (pod["spec"] for pod in pods):
            assert {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}} in spec["volumes"]
            [container] = spec["containers"]
            assert {"name": "runs", "mountPath": "/app/runs"} in container["volumeMounts"]
    modes = {
        folder: by_kind(folder)["PersistentVolumeClaim", "runs"]["spec"]["accessModes"]
        for folder in ("base", "overlays/gpu", "overlays/dev")
    }
    assert modes["base"] == modes["overlays/gpu"] == ["ReadWriteMany"]
    assert modes["overlays/dev"] == ["ReadWriteOnce"], "one node: a laptop's cluster has no other storage"


def test_a_queued_training_is_a_gang_that_fits_the_recipe_and_the_queue() -> None:
    from emollm.config import load_recipe

    [job] = by_kind("jobs/train").values()
    queue = by_kind("overlays/gpu")["LocalQueue", "trainings"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling") and job["spec"]["shutdownAfterJobFinishes"]
    [group] = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]

    words = job["spec"]["entrypoint"].split()
    recipe = load_recipe(
        words[words.index("train") + 1], [words[i + 1] for i, w in enumerate(words) if w == "--set"]
    )
    [container] = group["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    per_node = int(asked["nvidia.com/gpu"]) // recipe.workers.gpus
    assert recipe.out.startswith("/app/runs/"), "the volume that the gang shares"
    assert per_node * group["replicas"] == recipe.workers.count
    assert per_node * recipe.workers.cpus <= int(asked["cpu"])
    assert per_node * recipe.workers.memory_gib <= gib(asked["memory"])

    [resources] = by_kind("overlays/gpu")["ClusterQueue", "emobench"]["spec"]["resourceGroups"]
    quota = {entry["name"]: entry["nominalQuota"] for entry in resources["flavors"][1]["resources"]}
    for name, amount in asked.items():
        each = gib(amount) if amount.endswith("Gi") else int(amount)
        held = gib(quota[name]) if str(quota[name]).endswith("Gi") else quota[name]
        assert each * group["replicas"] <= held, name


def test_the_cpu_group_scales_and_the_gpu_group_goes_away_when_idle() -> None:
    spec = by_kind("overlays/gpu")["RayCluster", "emobench"]["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert spec["enableInTreeAutoscaling"] and groups["cpu"]["minReplicas"] < groups["cpu"]["maxReplicas"]
    assert groups["gpu"]["minReplicas"] == 0 and groups["gpu"]["idleTimeoutSeconds"] > 0
    assert "gpu" not in {
        group["groupName"]
        for group in by_kind("overlays/dev")["RayCluster", "emobench"]["spec"]["workerGroupSpecs"]
    }


def test_versions_are_those_of_the_project() -> None:
    pinned = dict(
        line.split("==") for line in (PROJECT / "constraints.txt").read_text().split() if "==" in line
    )
    assert by_kind("base")["RayCluster", "emobench"]["spec"]["rayVersion"] == pinned["ray"]
    assert (
        by_kind("jobs/train")["RayJob", "train-emollm"]["spec"]["rayClusterSpec"]["rayVersion"]
        == pinned["ray"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("folder", check_manifests.KUSTOMIZATIONS)
def test_kubectl_renders_the_same(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    assert kubectl, "this test compares our rendering with kubectl's: install kubectl"
    result = subprocess.run([kubectl, "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    theirs = {(e["kind"], e["metadata"]["name"]): e for e in yaml.safe_load_all(result.stdout)}
    assert theirs == by_kind(folder)
