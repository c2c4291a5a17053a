"""Flow train-emollm: EmoBench → EmoLLM, as a Ray job."""

from __future__ import annotations

import json
from typing import Any

from prefect import flow

from dataset_build import storage
from dataset_build.provenance import sha256_of_file, sha256_of_json
from emollm.config import TrainRecipe, load_recipe, train_inputs_digest
from flows import artifacts
from flows.notify import flow_ended_badly
from flows.steps import Force, Minutes, Overrides, RecipeName, Step, run_step, stop_orphans

NAME = "train-emollm"


class MissingInput(ValueError):
    """What a flow works on is not there yet."""


def load(recipe: str, overrides: list[str]) -> TrainRecipe:
    """The recipe. Raises ValueError where it cannot be used for a training; see `emollm.train.run`."""
    loaded = load_recipe(recipe, overrides)
    if storage.is_remote(loaded.out):
        raise ValueError(
            f"out: {loaded.out}: models are trained into a folder that all workers share; name one (the registry of "
            "retrain-emollm may be on s3://, and keeps copies of promoted models)"
        )
    return loaded


def plan(recipe: str, overrides: list[str], allowances: tuple[str, ...] = ()) -> tuple[TrainRecipe, Step]:
    """The recipe and its step. Raises ValueError where the recipe cannot be used or there is no EmoBench yet."""
    loaded = load(recipe, overrides)
    settings = [word for override in overrides for word in ("--set", override)]
    return loaded, Step(
        flow=NAME,
        recipe=loaded.name,
        out=loaded.out,
        final=storage.join(loaded.out, "training.json"),
        inputs_digest=train_inputs_digest(loaded, data_digest(loaded.data)),
        arguments=["-m", "emollm", "train", recipe, *settings, *allowances],
        check=lambda training: _problems(loaded.out, training),
        force_arguments=("--force",),
    )


def allowances(code_change: bool, world_size_change: bool) -> tuple[str, ...]:
    """What an unfinished training may go on with, as options of `emollm train`."""
    chosen = {"--allow-code-change": code_change, "--allow-world-size-change": world_size_change}
    return tuple(option for option, wanted in chosen.items() if wanted)


def data_digest(data: str) -> str:
    """The digest of the EmoBench in `data`. Raises MissingInput where there is none, or an unfinished one."""
    from dataset_build.manifest import read_manifest

    if not storage.exists(storage.join(data, "manifest.json")):
        raise MissingInput(
            f"{data} holds no finished EmoBench (no manifest.json); run the build-emobench flow first"
        )
    return str(read_manifest(data)["digest"])


@flow(
    name=NAME,
    flow_run_name="{recipe}",
    on_cancellation=[stop_orphans],
    on_failure=[flow_ended_badly],
    on_crashed=[flow_ended_badly],
)
def train_emollm(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    force: Force = False,
    deadline_minutes: Minutes = 7 * 24 * 60,
    allow_code_change: bool = False,
    allow_world_size_change: bool = False,
) -> dict[str, Any]:
    """Train EmoLLM on an EmoBench: align the projector, tune, export every fold. A killed training goes on.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file
        overrides: values to change in the recipe, each KEY=VALUE with a dotted key, for example seed=1
        force: train anew from the first step, even though the model is up to date; finished folds are removed
        deadline_minutes: stop the Ray job after so many minutes; what it finished is kept
        allow_code_change: go on with an unfinished training that other code began
        allow_world_size_change: go on with an unfinished training that another number of workers began

    Returns:
        how it went (unchanged, submitted, attached or returned), the folder and the model's digest
    """
    loaded, step = plan(recipe, overrides, allowances(allow_code_change, allow_world_size_change))
    outcome = run_step(step, force=force, deadline_minutes=deadline_minutes)
    links: list[artifacts.Row] = [
        {"what": "Ray job", "where": outcome.job_url},
        {"what": "model", "where": loaded.out},
        {"what": "training curves", "where": storage.join(loaded.out, "training.png")},
        {"what": "EmoBench", "where": loaded.data},
    ]
    artifacts.record_training(loaded.name, outcome.final, links)
    artifacts.record_curves(loaded.name, _curves(loaded.out, outcome.final))
    return {
        "how": outcome.how,
        "out": loaded.out,
        "model_digest": outcome.final["model_digest"],
        "job": outcome.job_id,
    }


def _curves(out: str, training: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Per fold the lines of its log; a model that came without logs has none."""
    found = {}
    for fold in training.get("folds", []):
        path = storage.join(out, fold["path"], "log", "metrics.jsonl")
        if storage.exists(path):
            lines = storage.read_bytes(path).decode().splitlines()
            found[fold["path"]] = [json.loads(line) for line in lines if line.endswith("}")]
    return found


def _problems(out: str, training: dict[str, Any]) -> list[str]:
    """What training.json promises and the folder does not hold: folds, and the weights of its digest."""
    for fold in training.get("folds", []):
        config = storage.join(out, fold["path"], "config.json")
        if not storage.exists(config):
            return [f"{config} is named by training.json, but not there"]
    weights = [
        name for name in storage.list_files(out) if name.startswith("fold-") and name.endswith(".safetensors")
    ]
    found = sha256_of_json({name: sha256_of_file(storage.join(out, name)) for name in weights})
    return (
        []
        if found == training.get("model_digest")
        else [f"the weights in {out} are not those of training.json"]
    )
