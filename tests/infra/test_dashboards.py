"""Alerts and dashboards speak of metrics that exist, in queries that parse, and every alert has its page in the guide."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

import dataset_build.ray_metrics
import emollm.evaluate.ray_metrics
import emollm.train.ray_metrics
from infra import check_manifests, servers
from tests.fixtures import monitoring
from tests.fixtures.monitoring import DASHBOARDS, PROMETHEUS, Query, rules

PROJECT = Path(__file__).resolve().parent.parent.parent
GUIDE = PROJECT / "docs" / "operations.md"

OURS = {
    f"ray_{name}": metric
    for module in (dataset_build.ray_metrics, emollm.train.ray_metrics, emollm.evaluate.ray_metrics)
    for name, metric in module.METRICS.items()
}
# Ray's own, as gauges, that every node exports. The test below reads a real node.
RAYS = {
    "ray_running_jobs",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_node_network_receive_speed",
    "ray_node_network_send_speed",
    "ray_object_store_memory",
    "ray_resources",
    "ray_tasks",
    "ray_actors",
}
# Only nodes with GPUs export these; their names are read from Ray's own dashboards.
RAYS_OF_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used"}
PROMETHEUS_ITSELF = {"up", "ALERTS"}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


ALL = list(monitoring.queries())


def parsed(text: str) -> Any:
    """As Grafana sends it: with a value for its variable."""
    return promql_parser.parse(text.replace("$run", "any"))


def selectors(expression: Any) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(expression, pre_visit=visit)
    return found


def own_metric(name: str) -> str:
    """The name of ours that a series belongs to: a histogram has several series."""
    for part in HISTOGRAM_PARTS:
        whole = name.removesuffix(part)
        if whole != name and whole in OURS and OURS[whole].kind == "histogram":
            return whole
    return name


def test_there_is_a_dashboard_for_every_part_and_none_is_forgotten() -> None:
    assert [path.stem for path in DASHBOARDS] == ["build", "cluster", "evaluate", "train"]
    [generator] = yaml.safe_load((PROJECT / "infra/grafana/kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    assert sorted(generator["files"]) == [f"dashboards/{path.name}" for path in DASHBOARDS]


@pytest.mark.parametrize("query", ALL, ids=lambda query: query.where)
def test_every_query_parses_and_names_metrics_that_exist(query: Query) -> None:
    recorded = {rule["record"] for rule in rules("record")}
    names = {selector.name for selector in selectors(parsed(query.text))}
    assert names
    for name in names:
        known = own_metric(name) in OURS or name in recorded | RAYS | RAYS_OF_GPUS | PROMETHEUS_ITSELF
        assert known, f"{query.where}: nothing exports {name}"


@pytest.mark.parametrize("query", ALL, ids=lambda query: query.where)
def test_rates_are_taken_of_counters_and_labels_are_those_of_the_metric(query: Query) -> None:
    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "increase"):
            [argument] = node.args
            metric = OURS[own_metric(argument.vector_selector.name)]
            assert metric.kind in ("counter", "histogram"), f"{query.where}: {argument} is a {metric.kind}"
        return True

    expression = parsed(query.text)
    promql_parser.walk(expression, pre_visit=visit)
    for selector in selectors(expression):
        metric = OURS.get(own_metric(selector.name))
        if metric is not None:
            asked = set(re.findall(r'(\w+)=~?"', str(selector.matchers))) | set(
                re.findall(r"(\w+)!=", str(selector.matchers))
            )
            assert asked <= {*metric.tags, "le"}, f"{query.where}: {selector.name} has the tags {metric.tags}"


def test_every_metric_of_ours_is_shown_somewhere() -> None:
    shown = {own_metric(selector.name) for query in ALL for selector in selectors(parsed(query.text))}
    assert not set(OURS) - shown, "metrics that no dashboard and no alert looks at"


def test_every_alert_is_whole_and_has_its_section_in_the_guide() -> None:
    sections = re.findall(r"^### (Emo\w+)$", GUIDE.read_text(), re.MULTILINE)
    alerts = rules("alert")
    assert sorted(sections) == sorted(rule["alert"] for rule in alerts), "one section for each alert"
    for rule in alerts:
        assert rule["for"] and rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_every_alert_has_a_case_where_it_fires_and_each_stall_one_where_it_does_not() -> None:
    cases = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yaml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    for rule in rules("alert"):
        of_it = [check["exp_alerts"] for check in checks if check["alertname"] == rule["alert"]]
        assert any(of_it), f"{rule['alert']}: no case where it fires"
        if rule["alert"] != "EmoDiskFilling":  # its case holds a node that is calm beside those that fire
            assert not all(of_it), f"{rule['alert']}: no case where it is silent"


def test_prometheus_on_kubernetes_has_the_same_rules() -> None:
    assert check_manifests.OPERATOR_RULES.read_text() == check_manifests.operator_rules()


def test_scrape_jobs_are_those_that_the_alerts_name() -> None:
    named = {job for query in ALL for job in re.findall(r'job="([^"]+)"', query.text)}
    assert named == {"ray", "prefect-server"}
    for name in ("prometheus.yml", "prometheus.local.yml"):
        jobs = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / name).read_text())["scrape_configs"]}
        assert named <= jobs, name
    monitors = (PROJECT / "infra/kubernetes/components/monitoring/monitors.yaml").read_text()
    assert "{targetLabel: job, replacement: ray}" in monitors and "name: prefect-server" in monitors


def test_a_real_node_exports_the_metrics_of_ray_that_we_name(ray_session: servers.RayHead) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Somebody:
        def here(self) -> bool:
            return True

    actor = Somebody.remote()  # without a task and an actor, nothing is said of either
    assert ray.get([actor.here.remote(), ray.remote(lambda: True).remote()]) == [True, True]
    [node] = ray.nodes()[:1]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    missing, until = RAYS, time.monotonic() + 45
    while missing and time.monotonic() < until:
        exported = set(re.findall(r"^(\w+)", (servers.get(url) or b"").decode(), re.MULTILINE))
        missing = RAYS - exported
        time.sleep(0.5 if missing else 0)
    assert not missing, f"not exported by a node of this Ray: {sorted(missing)}"


def test_names_of_gpu_metrics_are_those_that_ray_declares() -> None:
    import ray

    source = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    for name in RAYS_OF_GPUS:
        assert f'"{name.removeprefix("ray_")}"' in source, name
