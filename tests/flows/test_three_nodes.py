"""The flows on a Ray cluster of three nodes, storage on S3, give what they give on one: the same data and the same scores.

EmoBench, evaluations and the registry are on S3; the models are in a folder that all nodes share, as `train` wants it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from dataset_build import storage
from infra import servers, services
from infra.servers import Process
from tests.fixtures.emoji_tree import write_emoji_tree
from tests.fixtures.house import House
from tests.fixtures.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def house(s3_environment: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    from tests.fixtures.tiny_models import write_tiny_models

    write_emoji_tree(tmp_path / "samples")
    write_tiny_models(tmp_path / "models")
    monkeypatch.setattr(services, "LEAST_LOGICAL_CPUS", 2)
    monkeypatch.setattr(services.os, "cpu_count", lambda: 2)
    home = Path(tempfile.mkdtemp(prefix="emonodes"))
    house = House(home, tmp_path)
    try:
        yield house
    finally:
        services.down(home)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def busy(nodes: dict[str, Process]) -> Iterator[dict[str, set[str]]]:
    """Which of Ray's tasks and actors ran on which node meanwhile."""
    found: dict[str, set[str]] = defaultdict(set)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            for node, process in nodes.items():
                for member in servers.descendants(process):
                    try:
                        words = member.cmdline()
                    except psutil.Error:
                        continue
                    if words and words[0].startswith("ray::") and "IDLE" not in words[0]:
                        found[node].add(words[0].removeprefix("ray::"))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


def test_three_nodes_with_storage_on_s3_give_the_data_and_the_scores_of_one(
    house: House, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket("three-nodes")
    s3_server.upload(tmp_path / "samples", f"{bucket}/samples")
    models = house.foundations()

    def build(name: str) -> list[str]:
        return [f"root={bucket}/samples", f"out={bucket}/{name}/emobench"]

    def train(name: str) -> list[str]:
        return [
            f"data={bucket}/{name}/emobench",
            f"out={tmp_path / name / 'model'}",
            *models,
            "folds=[0]",
            "evaluate.workers=2",
        ]

    registry = f"{bucket}/one/registry"
    ended = house.wait_for_end(
        house.start_flow(
            "retrain-emollm/smoke",
            {
                "recipe": "smoke",
                "build_overrides": build("one"),
                "train_overrides": train("one"),
                "registry": registry,
                "deadline_minutes": 5,
            },
        )
    )
    assert ended["state_type"] == "COMPLETED"
    champion = storage.read_json(f"{registry}/champion.json")
    one: dict[str, Any] = storage.read_json(f"{registry}/{champion['evaluation']}/results.json")

    assert house.services.ray
    nodes = {"head": house.services.ray.process}
    # One free CPU on each node: the two workers of a training or an evaluation cannot be on the same one.
    with house.held(leave=1, log=tmp_path / "holder.log"), ExitStack() as stack:
        for name in ("second", "third"):
            nodes[name] = stack.enter_context(house.node(tmp_path / f"{name}.log", cpus=1))
        for step, parameters in (
            ("build", {"overrides": build("three")}),
            ("train", {"overrides": train("three")}),
            ("evaluate", {"overrides": train("three"), "out": f"{bucket}/three/evaluation"}),
        ):
            began = time.monotonic()
            with busy(nodes) as ran:
                ended = house.wait_for_end(house.start(step, **parameters))
            print(f"{step}: {time.monotonic() - began:.0f} s; {dict(ran)}")
            assert ended["state_type"] == "COMPLETED"
            assert ran["second"] or ran["third"], f"{step}: nothing ran on another node than the head"

    manifests = [storage.read_json(f"{bucket}/{name}/emobench/manifest.json") for name in ("one", "three")]
    assert manifests[0]["digest"] == manifests[1]["digest"]
    assert manifests[0]["files"] == manifests[1]["files"]
    weights = [load_file(tmp_path / name / "model/fold-0/trained.safetensors") for name in ("one", "three")]
    # Not the same bits: 2.8e-6 apart where it was seen, from the first step on. Why is not known.
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-5
    three = storage.read_json(f"{bucket}/three/evaluation/results.json")
    assert three["data_digest"] == one["data_digest"] == manifests[0]["digest"]
    for task, scores in one["sub_tasks"].items():
        assert (three["sub_tasks"][task]["n"], three["sub_tasks"][task]["accuracy"]) == (
            scores["n"],
            scores["accuracy"],
        )
    assert three["overall"] == one["overall"]
    assert one["sub_tasks"]["emo_c"]["n"] > 0
