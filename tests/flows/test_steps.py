"""When a step may be skipped, and what its parameters refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from dataset_build.errors import StorageError
from dataset_build.provenance import sha256_of_bytes
from dataset_build.schema import SCHEMA_VERSION
from flows import artifacts
from flows.build_emobench import build_emobench
from flows.evaluate_emollm import evaluate_emollm, evaluation_folder, model_digest
from flows.evaluate_emollm import plan as plan_evaluation
from flows.ray_jobs import JobFailed, JobLost, NoCluster
from flows.retrain_emollm import jitter_s, retrain_emollm
from flows.steps import Step, StepFailed, run_job, work_of, worth_another_try
from flows.train_emollm import MissingInput, allowances, data_digest, train_emollm
from flows.train_emollm import plan as plan_training


def step(folder: Path, problems: list[str]) -> Step:
    return Step(
        "flow", "recipe", str(folder), str(folder / "final.json"), "today", [], lambda final: problems
    )


def write_final(folder: Path, digest: str) -> None:
    (folder / "final.json").write_text(json.dumps({"inputs_digest": digest, "answer": 42}))


def test_only_a_whole_output_of_the_same_inputs_is_up_to_date(tmp_path: Path) -> None:
    assert step(tmp_path, []).up_to_date() is None
    write_final(tmp_path, "yesterday")
    assert step(tmp_path, []).up_to_date() is None
    write_final(tmp_path, "today")
    assert step(tmp_path, ["train/emoji-00000.parquet is missing"]).up_to_date() is None
    content = step(tmp_path, []).up_to_date()
    assert content is not None and content["answer"] == 42
    (tmp_path / "final.json").write_text("{ half a fi")
    assert "not JSON" in step(tmp_path, []).problems()[0]


def test_an_unfinished_training_goes_on_with_other_code_only_where_the_flow_is_told(tmp_path: Path) -> None:
    _, data = inputs_of_an_evaluation(tmp_path)
    plain, told = (
        plan_training("smoke", [f"data={data}"], allowances(change, False))[1] for change in (False, True)
    )
    assert told.arguments == [*plain.arguments, "--allow-code-change"]
    assert told.inputs_digest == plain.inputs_digest, "the same work: a running job is attached to"
    assert allowances(False, True) == ("--allow-world-size-change",)
    for flow in (train_emollm, retrain_emollm):
        asked = flow.validate_parameters({"allow_code_change": True, "allow_world_size_change": True})
        assert asked["allow_code_change"] and asked["allow_world_size_change"]


def test_a_training_onto_s3_is_refused_before_anything_starts(tmp_path: Path) -> None:
    overrides = ["out=s3://bucket/model"]
    with pytest.raises(ValueError, match="a folder that all workers share"):
        plan_training("smoke", overrides)
    with pytest.raises(ValueError, match="a folder that all workers share"):
        retrain_emollm.fn("smoke", train_overrides=overrides, registry="s3://bucket/registry")


def inputs_of_an_evaluation(folder: Path) -> tuple[str, str]:
    """(model, data): folders with the two records from which an evaluation's digest is taken."""
    model, data = folder / "model", folder / "data"
    model.mkdir(), data.mkdir()
    (model / "training.json").write_text(json.dumps({"model_digest": "m" * 64}))
    manifest = dict.fromkeys(("inputs_digest", "recipe", "code", "sources", "files"), {})
    (data / "manifest.json").write_text(
        json.dumps({**manifest, "schema_version": SCHEMA_VERSION, "digest": "d" * 64})
    )
    return str(model), str(data)


def test_an_evaluation_whose_samples_were_cut_off_is_done_again(tmp_path: Path) -> None:
    model, data = inputs_of_an_evaluation(tmp_path)
    out = tmp_path / "evaluation"
    planned = plan_evaluation("smoke", [], model, data, str(out))[1]
    out.mkdir()
    samples = b"rows" * 1000
    (out / "samples.parquet").write_bytes(samples)
    (out / "report.html").write_text("<html>")
    results = {
        "inputs_digest": planned.inputs_digest,
        "files": {"samples.parquet": {"sha256": sha256_of_bytes(samples)}},
    }
    (out / "results.json").write_text(json.dumps(results))
    assert planned.up_to_date() is not None

    (out / "samples.parquet").write_bytes(samples[:-1])
    assert planned.up_to_date() is None
    assert "samples.parquet is not the file" in planned.problems()[0]

    (out / "samples.parquet").write_bytes(samples)
    (out / "report.html").unlink()
    assert "report.html is not there" in planned.problems()[0]

    (out / "report.html").write_text("<html>")
    (out / "results.json").write_text(json.dumps({**results, "files": {}}))
    assert "does not say what samples.parquet" in planned.problems()[0]


def test_force_makes_the_job_start_from_scratch_as_the_next_attempt_at_the_same_work(tmp_path: Path) -> None:
    model, data = inputs_of_an_evaluation(tmp_path)
    steps = [
        plan_evaluation("smoke", ["seed=1"], model, data, str(tmp_path / "evaluation"))[1],
        plan_training("smoke", [f"data={data}", f"out={model}"])[1],
    ]
    for planned in steps:
        usual, forced = (
            work_of(planned, force=force, deadline_minutes=5, owner="run") for force in (False, True)
        )
        assert forced.arguments == [*usual.arguments, "--force"]
        assert "--force" not in usual.arguments
        assert (forced.name, forced.out, forced.metadata) == (usual.name, usual.out, usual.metadata)
        assert forced.name.endswith(planned.inputs_digest[:16])
    build = step(tmp_path, [])  # its job takes no such argument
    assert work_of(build, force=True, deadline_minutes=5, owner="run").arguments == build.arguments


@pytest.mark.parametrize("number", [0, 1])
def test_the_commands_take_what_a_forced_step_says(number: int, tmp_path: Path) -> None:
    model, data = inputs_of_an_evaluation(tmp_path)
    allowed = allowances(code_change=True, world_size_change=True)
    training = plan_training("smoke", [f"data={data}"], allowed)[1]
    planned = (plan_evaluation("smoke", [], model, data)[1], training)[number]
    assert len(allowed) == 2 and training.arguments[-2:] == list(allowed)
    work = work_of(planned, force=True, deadline_minutes=5, owner="run")
    command = [sys.executable, *work.arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "--force" in result.stdout


def test_missing_inputs_name_the_flow_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="build-emobench"):
        data_digest(str(tmp_path))
    with pytest.raises(MissingInput, match="train-emollm"):
        model_digest(str(tmp_path))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"overrides": ["no equals sign"]}, "overrides"),
        ({"recipe": ""}, "recipe"),
        ({"deadline_minutes": -1}, "deadline_minutes"),
        ({"force": "perhaps"}, "force"),
    ],
)
def test_parameters_are_checked_before_anything_starts(parameters: dict[str, Any], field: str) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match=field):
        build_emobench.validate_parameters({"recipe": "quickstart", **parameters})


@pytest.mark.parametrize("flow", [build_emobench, train_emollm, evaluate_emollm, retrain_emollm])
def test_the_parameters_are_described_for_the_prefect_page(flow: Any) -> None:
    properties = flow.parameters.properties
    assert {"recipe", "force", "deadline_minutes"} <= set(properties)
    for name, value in properties.items():
        assert value.get("description"), name


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"guard_rail": -0.01}, "guard_rail"),
        ({"jitter_minutes": 1e9}, "jitter_minutes"),
        ({"registry": ""}, "registry"),
    ],
)
def test_what_a_retraining_refuses(parameters: dict[str, Any], field: str) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match=field):
        retrain_emollm.validate_parameters({"recipe": "quickstart", **parameters})


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (NoCluster("the cluster does not answer"), True),
        (StorageError("s3://bucket/x: S3 did not give it"), True),
        (requests.exceptions.ConnectTimeout(), True),
        (httpx.ConnectError("refused"), True),
        (ConnectionResetError(), True),
        (JobLost("job", "its process was killed", -9), True),
        (JobFailed("job", "exit code 1", 1), False),
        (JobFailed("job", "exit code 2", 2), False),
        (JobFailed("job", "deadline"), False),
        (StepFailed("it ended well, but"), False),
        (MissingInput("run build-emobench first"), False),
        (ValueError("sources.0.rot: unknown key"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_only_what_may_work_later_is_tried_again(error: Exception, again: bool) -> None:
    from prefect.states import Failed

    assert worth_another_try(None, None, Failed(data=error)) == again
    assert run_job.retry_condition_fn is worth_another_try and run_job.retries == 3


def test_jitter_is_within_its_bound_differs_between_runs_and_not_between_tries() -> None:
    waits = [jitter_s(f"run-{n}", 15) for n in range(50)]
    assert all(0 <= wait <= 15 * 60 for wait in waits)
    assert len({round(wait) for wait in waits}) > 40 and max(waits) > 600
    assert jitter_s("run-1", 15) == waits[1]
    assert jitter_s("run-1", 0) == 0


def test_evaluation_lies_beside_the_model() -> None:
    from emollm.config import load_recipe

    assert evaluation_folder(load_recipe("quickstart", ["out=runs/x/model"])) == "runs/x/evaluation"
    assert (
        evaluation_folder(load_recipe("quickstart", ["out=s3://bucket/x/model/"]))
        == "s3://bucket/x/evaluation"
    )


def test_the_ledger_balances_in_its_table() -> None:
    counts = {"records": 10, "kept": 7, "rejected": 2, "duplicates": 1}
    rows = artifacts.counts_ledger(
        {"sources": {"a": {"train": counts, "test": counts}, "b": {"train": counts}}}
    )
    total = rows[-1]
    assert total["source"] == "total"
    assert total["records"] == total["kept"] + total["rejected"] + total["duplicates"] == 30


def test_scores_are_shown_with_intervals_gains_and_notes() -> None:
    rows = artifacts.score_rows(
        {
            "sub_tasks": {
                "emo_c": {
                    "n": 189,
                    "accuracy": 0.44,
                    "ci95": [0.34, 0.54],
                    "baselines": {
                        "majority": {"accuracy": 0.27, "ci95": [0.2, 0.3], "diff_ci95": [0.06, 0.27]}
                    },
                },
                "hate": {"n": 0, "accuracy": None, "ci95": None, "note": "no openly licensed sample"},
            },
            "overall": {"accuracy": 0.44, "ci95": [0.34, 0.54]},
        }
    )
    emo_c, hate, overall = rows
    assert emo_c["accuracy"] == "0.440 [0.340, 0.540]"
    assert emo_c["gain over majority"] == "[0.060, 0.270]"
    assert (hate["n"], hate["accuracy"], hate["note"]) == (0, "–", "no openly licensed sample")
    assert overall["sub_task"] == "overall"
    assert len({tuple(row) for row in rows}) == 1, "all rows need the same columns, in the same order"


def test_artifact_keys_are_what_prefect_takes() -> None:
    assert artifacts.key_of("counts", "My recipe_v1.2") == "counts-my-recipe-v1-2"


def test_training_curves_are_a_table_of_evenly_spread_steps_and_a_line_that_shows_their_shape() -> None:
    long = [{"step": step, "loss": 3.0 - step / 500} for step in range(1, 1001)]
    rows = artifacts.curve_rows({"fold-0": long, "fold-1": long[:500]})
    assert len(rows) == 40
    assert rows[0] == {"step": 1, "fold-0": 2.998, "fold-1": 2.998}
    assert rows[-1] == {"step": 1000, "fold-0": 1.0, "fold-1": ""}
    assert artifacts.sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert artifacts.sparkline([2.0, float("nan"), 2.0]) == "▁▁"
    assert artifacts.curve_rows({}) == [] and artifacts.sparkline([]) == ""
