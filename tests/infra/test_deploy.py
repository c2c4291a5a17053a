"""Deployments, work pools and automations: every file fits the flows, and a real server takes them."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from emollm.data.emobench import DataError
from emollm.train.run import train
from flows import train_emollm
from infra import deploy, servers
from infra.kubernetes_schemas import problems
from infra.prefect_api import PrefectApi
from infra.servers import PROJECT_ROOT

FLOWS = {"build_emobench", "train_emollm", "evaluate_emollm", "retrain_emollm"}


def deployments(target: deploy.Target) -> list[dict[str, Any]]:
    found = yaml.safe_load((PROJECT_ROOT / target.file).read_text())["deployments"]
    assert found
    return found


def flow_of(deployment: dict[str, Any]) -> Any:
    path, _, name = deployment["entrypoint"].partition(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("target", [deploy.LOCAL, deploy.KUBERNETES], ids=lambda target: target.pool)
def test_every_deployment_fits_its_flow_and_says_what_it_is(target: deploy.Target) -> None:
    found = deployments(target)
    assert {flow_of(each).fn.__name__ for each in found} == FLOWS
    for each in found:
        flow = flow_of(each)
        flow.validate_parameters({**defaults(flow), **each["parameters"]})
        assert each["description"] and len(each["tags"]) >= 3
        assert each["work_pool"]["name"] == target.pool
        assert each["concurrency_limit"]["limit"] == 1
        retrains = flow.fn.__name__ == "retrain_emollm"
        assert each["concurrency_limit"]["collision_strategy"] == ("CANCEL_NEW" if retrains else "ENQUEUE")
        for schedule in each["schedules"]:
            assert schedule["timezone"] and schedule["active"] is False
            assert schedule["parameters"]["jitter_minutes"] > 0
            flow.validate_parameters({**defaults(flow), **each["parameters"], **schedule["parameters"]})


@pytest.mark.parametrize("target", [deploy.LOCAL, deploy.KUBERNETES], ids=lambda target: target.pool)
def test_every_deployment_trains_into_a_folder_that_train_takes_and_pods_share(target: deploy.Target) -> None:
    with pytest.raises(DataError, match="a folder that all workers see"):
        train(train_emollm.load_recipe("smoke", ["out=s3://emobench/model"]))
    outs = []
    for each in deployments(target):
        overrides = {
            "train_emollm": "overrides",
            "evaluate_emollm": "overrides",
            "retrain_emollm": "train_overrides",
        }
        if name := overrides.get(flow_of(each).fn.__name__):
            parameters = each["parameters"]
            outs.append(train_emollm.load(parameters["recipe"], parameters.get(name, [])).out)
    assert len(outs) >= 3
    if target == deploy.KUBERNETES:
        [shared] = {
            mount["mountPath"] for mount in job_container()["volumeMounts"] if mount["name"] == "runs"
        }
        assert all(out.startswith(f"{shared}/") for out in outs), outs
    else:  # below the folder that the worker runs in: /app/runs in a pod
        assert all(out.startswith("runs/") for out in outs), outs


def job_container() -> dict[str, Any]:
    """The container of a flow run that is a Kubernetes job of its own, as the job template has it."""
    template = json.loads((PROJECT_ROOT / str(deploy.KUBERNETES.job_template)).read_text())
    [container] = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def defaults(flow: Any) -> dict[str, Any]:
    return {
        name: value.get("default") for name, value in flow.parameters.properties.items() if "default" in value
    }


def test_a_flow_run_in_kubernetes_is_locked_down_and_gets_its_secrets_by_name() -> None:
    template = json.loads((PROJECT_ROOT / str(deploy.KUBERNETES.job_template)).read_text())
    manifest = template["job_configuration"]["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    job = filled(manifest, template["variables"]["properties"])
    # The worker asks for a name to be generated; the schema of what people write wants one.
    assert job["metadata"].pop("generateName") == "flow-run-"
    assert problems({**job, "metadata": {**job["metadata"], "name": "flow-run"}}) == []
    variables = set(template["variables"]["properties"])
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(template["job_configuration"])))
    assert used <= variables, used - variables
    # What the pod names is what infra/kubernetes makes.
    base = (PROJECT_ROOT / "infra/kubernetes/base/environment.yaml").read_text()
    secrets = (PROJECT_ROOT / "infra/kubernetes/create_secrets.sh").read_text()
    names = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
    names |= {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert names and all(f"create {name} " in secrets for name in names)
    (config,) = (
        source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source
    )
    assert f"name: {config}" in base


def filled(value: Any, variables: dict[str, Any]) -> Any:
    """The manifest as the worker makes it: placeholders by their defaults, what has none left out, `env` as a list."""
    if isinstance(value, dict):
        found = {name: filled(inner, variables) for name, inner in value.items()}
        return {name: inner for name, inner in found.items() if inner is not None}
    if isinstance(value, list):
        return [filled(inner, variables) for inner in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    name = value.strip("{} -")
    default = "flow-run" if name == "name" else variables[name].get("default")
    if name == "env":
        return [{"name": key, "value": text} for key, text in default.items()]
    return f"{default}-" if value.endswith("-") else default


def test_automations_are_created_once_and_replaced_after_that(prefect_server: servers.PrefectServer) -> None:
    api = PrefectApi(prefect_server.api_url, auth_string=prefect_server.auth_string)
    names = deploy.put_automations(api)
    assert len(names) == 2
    deploy.put_automations(api, within_s=120)
    found = api.call("POST", "/automations/filter", {})
    assert sorted(automation["name"] for automation in found) == sorted(names)
    for automation in found:
        assert automation["enabled"] and automation["trigger"]["posture"] == "Proactive"
        assert automation["trigger"]["within"] == 120.0
    (silent,) = [a for a in found if "silent" in a["name"]]
    assert silent["actions"][0]["state"] == "CRASHED"
    assert silent["trigger"]["after"] == ["prefect.flow-run.heartbeat"]
    shipped = yaml.safe_load(deploy.AUTOMATIONS.read_text())
    # Nobody's heartbeat is slower than Prefect's default of 180 s: three may be missed.
    assert all(automation["trigger"]["within"] >= 3 * 180 for automation in shipped)


def test_without_a_server_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra import services

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(services, "HOME", tmp_path)
    assert deploy.main(["--only-automations"]) == 1
    assert "set PREFECT_API_URL, or start the local one with `make up`" in capsys.readouterr().err


def test_kubernetes_deployments_want_an_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(deploy.IMAGE, raising=False)
    assert deploy.main(["--kubernetes"]) == 1
    assert deploy.IMAGE in capsys.readouterr().err
    assert f"${deploy.IMAGE}" in (PROJECT_ROOT / deploy.KUBERNETES.file).read_text()


@pytest.mark.slow
def test_a_server_takes_both_pools_and_all_deployments(
    prefect_server: servers.PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in prefect_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMOBENCH_IMAGE", "registry.example.org/emobench-emollm:1")
    assert deploy.main([]) == 0
    assert deploy.main(["--kubernetes"]) == 0
    api = PrefectApi(os.environ["PREFECT_API_URL"], auth_string=prefect_server.auth_string)
    pools = {pool["name"]: pool for pool in api.call("POST", "/work_pools/filter", {})}
    for target in (deploy.LOCAL, deploy.KUBERNETES):
        assert pools[target.pool]["type"] == target.kind
        assert pools[target.pool]["concurrency_limit"] == target.limit
    found = api.call("POST", "/deployments/filter", {})
    assert len(found) == len(deployments(deploy.LOCAL)) + len(deployments(deploy.KUBERNETES))
    (train,) = [d for d in found if d["name"] == "cluster" and "train" in d["tags"]]
    assert train["job_variables"]["image"] == "registry.example.org/emobench-emollm:1"
