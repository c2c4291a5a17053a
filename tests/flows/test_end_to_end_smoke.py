"""The four flows on real servers with the smoke recipes: generated pictures, tiny random models.

It shows that the path is whole, not that anything is learned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra import quickstart, servers
from infra.prefect_api import PrefectApi
from infra.servers import clean_environment
from infra.services import Services
from tests.fixtures.emoji_tree import smoke_overrides, write_emoji_tree
from tests.fixtures.webhook import Webhook


class Retraining(NamedTuple):
    """`refused` is a second run, started while the first one was running."""

    out: Path
    parameters: dict[str, Any]
    run: dict[str, Any]
    refused: dict[str, Any]
    api: PrefectApi


@pytest.fixture(scope="module")
def retraining(local_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Retraining:
    """retrain-emollm/smoke, run once through its deployment."""
    from tests.fixtures.tiny_models import LANGUAGE, VISION, write_tiny_models

    folder = tmp_path_factory.mktemp("smoke")
    write_emoji_tree(folder / "samples")
    write_tiny_models(folder / "models")
    out = folder / "runs"
    parameters = {
        "recipe": "smoke",
        "build_overrides": smoke_overrides(folder / "samples", out / "emobench"),
        "train_overrides": [
            f"data={out / 'emobench'}",
            f"out={out / 'model'}",
            f"foundation.vision={folder / 'models' / VISION}",
            f"foundation.language={folder / 'models' / LANGUAGE}",
        ],
        "deadline_minutes": 4,
    }
    api = local_services.api
    deployment = api.deployment_id("retrain-emollm/smoke")
    second: list[str] = []

    def start_a_second() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            first = api.open_run_of(deployment)
            if first and first["state_type"] == "RUNNING":
                second.append(str(api.start(deployment, {**parameters, "deadline_minutes": 5})["id"]))
                return
            time.sleep(0.2)

    meanwhile = threading.Thread(target=start_a_second)
    meanwhile.start()
    run = quickstart.run_flow(local_services, "retrain-emollm/smoke", parameters)
    meanwhile.join()
    return Retraining(out, parameters, run, api.run(second[0]), api)


def artifact(retraining: Retraining, key: str) -> Any:
    """The newest artifact of a key that this run or a run it called left: rows of a table, or text."""
    run_id = str(retraining.run["id"])
    body = {
        "artifacts": {
            "flow_run_id": {"any_": [run_id, *retraining.api.children(run_id)]},
            "key": {"any_": [key]},
        },
        "sort": "CREATED_DESC",
        "limit": 1,
    }
    found = retraining.api.call("POST", "/artifacts/filter", body)
    assert found, f"the run left no artifact {key}"
    data = found[0]["data"]
    return json.loads(data) if isinstance(data, str) and data.startswith("[{") else data


def history(retraining: Retraining) -> list[dict[str, Any]]:
    lines = (retraining.out / "registry" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_emobench_model_scores_and_report_are_there(retraining: Retraining) -> None:
    out = retraining.out
    manifest = json.loads((out / "emobench" / "manifest.json").read_text())
    for splits in manifest["sources"].values():
        for counts in splits.values():
            assert counts["records"] == counts["kept"] + counts["rejected"] + counts["duplicates"]
    training = json.loads((out / "model" / "training.json").read_text())
    assert training["data_digest"] == manifest["digest"]
    assert [fold["fold"] for fold in training["folds"]] == [0, 1]
    results = json.loads((out / "evaluation" / "results.json").read_text())
    assert results["data_digest"] == manifest["digest"]
    emo_c = results["sub_tasks"]["emo_c"]
    assert emo_c["n"] > 0 and emo_c["ci95"][0] <= emo_c["accuracy"] <= emo_c["ci95"][1]
    assert set(emo_c["baselines"]) == {"majority", "text_only", "untrained"}
    assert results["sub_tasks"]["hate"]["n"] == 0
    report = (out / "evaluation" / "report.html").read_text()
    assert "<html" in report.lower() and "emo" in report.lower()


def test_of_two_starts_at_once_one_runs_and_the_other_is_refused(retraining: Retraining) -> None:
    assert retraining.run["state_type"] == "COMPLETED"
    assert retraining.refused["state_type"] == "CANCELLED"
    assert "concurrency" in retraining.refused["state"]["message"]
    lease = json.loads((retraining.out / "registry" / "retraining.json").read_text())
    assert lease["flow_run"] is None, "the run that has ended still holds the registry"


def test_the_webhook_was_told_of_the_promotion(retraining: Retraining, planted: Webhook) -> None:
    (body,) = [body for body in planted.bodies if body["event"] == "promoted"]
    assert body["flow"] == "retrain-emollm" and body["message"] == "there was no champion yet"
    assert body["registry"] == str(retraining.out / "registry")


def test_no_secret_is_in_a_log_an_artifact_a_manifest_a_database_or_a_job(
    retraining: Retraining, local_services: Services, planted: Webhook
) -> None:
    assert local_services.ray
    token = (local_services.home / "ray-token").read_text().strip()
    environments = [
        process.environ() for process in servers.family(local_services.ray.process) if process.is_running()
    ]
    assert any(env.get("PLANTED_PASSWORD") == planted.token for env in environments), (
        "nobody could have leaked it"
    )
    places = [retraining.out, local_services.home, Path(local_services.ray.temp_dir)]
    files = [
        file
        for place in places
        for file in place.rglob("*")
        if file.is_file() and not file.is_symlink() and file.name != "ray-token"
    ]
    assert len(files) > 100
    for file in files:
        content = file.read_bytes()
        for secret in (planted.token, token):
            assert secret.encode() not in content, f"{file} holds a secret"
    said = json.dumps(retraining.api.call("POST", "/artifacts/filter", {"limit": 200}))
    said += json.dumps(retraining.api.call("POST", "/flow_runs/filter", {"limit": 200}))
    assert planted.token not in said and token not in said


def test_the_first_model_is_promoted_and_copied(retraining: Retraining) -> None:
    registry = retraining.out / "registry"
    champion = json.loads((registry / "champion.json").read_text())
    training = json.loads((retraining.out / "model" / "training.json").read_text())
    assert champion["model_digest"] == training["model_digest"]
    assert champion["reason"] == "there was no champion yet"
    assert (registry / champion["model"] / "training.json").exists()
    first = history(retraining)[0]
    assert (first["decision"], first["model_digest"]) == ("promoted", training["model_digest"])
    assert (first["data_digest"], first["champion_data_digest"]) == (training["data_digest"], None)


def test_the_run_left_its_artifacts(retraining: Retraining) -> None:
    counts = artifact(retraining, "counts-smoke")
    assert counts[-1]["source"] == "total" and counts[-1]["kept"] > 0
    assert {row["reason"] for row in artifact(retraining, "rejects-smoke")} == {"source_rule"}
    scores = artifact(retraining, "scores-smoke")
    assert [row["sub_task"] for row in scores][0] == "emo_c" and scores[-1]["sub_task"] == "overall"
    assert "[" in scores[0]["accuracy"]
    assert len(artifact(retraining, "training-smoke")) == 2
    curves = artifact(retraining, "training-curves-smoke")
    assert set(curves[0]) == {"step", "fold-0", "fold-1"} and curves[-1]["step"] > curves[0]["step"]
    assert "report.html" in artifact(retraining, "links-evaluate-smoke")
    assert "/#/jobs/train-emollm-smoke-" in artifact(retraining, "links-train-smoke")
    decision = {row["what"]: row["value"] for row in artifact(retraining, "decision-smoke")}
    assert decision["decision"] == "promoted"


LIST_JOBS = (
    "import json; from flows import ray_jobs; "
    "print('JOBS', json.dumps([job.model_dump(mode='json') for job in ray_jobs.connect().list_jobs()]))"
)


def test_each_step_was_one_ray_job_with_its_deterministic_id(
    retraining: Retraining, local_services: Services
) -> None:
    from flows import ray_jobs

    # In a process of its own: Ray keeps the first token that a process has used, and this one has used another's.
    environment = clean_environment(local_services.env)
    listed = subprocess.run(
        [sys.executable, "-c", LIST_JOBS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("JOBS ")]
    jobs = {job["submission_id"]: job for job in json.loads(line.removeprefix("JOBS "))}
    for flow, path in (
        ("build-emobench", "emobench/manifest.json"),
        ("train-emollm", "model/training.json"),
        ("evaluate-emollm", "evaluation/results.json"),
    ):
        digest = json.loads((retraining.out / path).read_text())["inputs_digest"]
        job = jobs[ray_jobs.job_name(flow, "smoke", digest)]
        assert job["status"] == "SUCCEEDED"
        assert job["metadata"]["flow_run"] == retraining.run["id"]
    token = Path(local_services.env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    secret = os.environ["PLANTED_PASSWORD"]
    assert token and token not in line and secret not in line
    tags = retraining.api.run(retraining.run["id"])["tags"]
    assert len([tag for tag in tags if tag.startswith("ray-job:")]) == 3


def test_a_second_run_finds_nothing_to_do(
    retraining: Retraining, local_services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in retraining.out.rglob("*.json")
        if "registry" not in path.parts
    }
    quickstart.run_flow(local_services, "retrain-emollm/smoke", retraining.parameters)
    said = capsys.readouterr().out
    assert said.count("unchanged: ") >= 3 and "nothing changed" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [entry["decision"] for entry in history(retraining)] == ["promoted", "unchanged"]


def test_the_quickstart_command_sees_that_without_starting_a_service(
    retraining: Retraining, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "infra.quickstart", "--recipe", "smoke", "--no-samples"]
    command += ["--home", str(tmp_path / "services")]
    command += [word for value in retraining.parameters["build_overrides"] for word in ("--set-build", value)]
    command += [word for value in retraining.parameters["train_overrides"] for word in ("--set-train", value)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (
        "nothing changed" in result.stdout and "overall" in result.stdout and "peak memory" in result.stdout
    )
    assert not (tmp_path / "services" / "state.json").exists()


def test_a_failing_step_ends_the_flow_with_the_jobs_own_words(
    retraining: Retraining, local_services: Services, tmp_path: Path
) -> None:
    broken = [
        *(value for value in retraining.parameters["train_overrides"] if not value.startswith("out=")),
        f"out={tmp_path / 'model'}",
        "folds=[7]",  # the job refuses it before it starts a worker
    ]
    parameters = {"recipe": "smoke", "overrides": broken, "deadline_minutes": 3}
    with pytest.raises(quickstart.QuickstartFailed, match=r"folds \[7\] were asked for") as failed:
        quickstart.run_flow(local_services, "train-emollm/smoke", parameters)
    assert "Traceback" not in str(failed.value)
