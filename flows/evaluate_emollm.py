"""Flow evaluate-emollm: EmoLLM + EmoBench → scores with intervals and a report, as a Ray job."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from emollm.config import TrainRecipe, evaluate_inputs_digest, load_recipe
from flows import artifacts
from flows.notify import flow_ended_badly
from flows.steps import Force, Minutes, Overrides, RecipeName, Step, run_step, stop_orphans
from flows.train_emollm import MissingInput, data_digest

NAME = "evaluate-emollm"
OUTPUTS = ("results.json", "samples.parquet", "report.html")
Folder = Annotated[str | None, Field(min_length=1, max_length=1000)]


def evaluation_folder(recipe: TrainRecipe) -> str:
    """Beside the model: runs/NAME/model → runs/NAME/evaluation."""
    return storage.join(recipe.out.rstrip("/").rpartition("/")[0] or ".", "evaluation")


def plan(
    recipe: str,
    overrides: list[str],
    model: str | None = None,
    data: str | None = None,
    out: str | None = None,
) -> tuple[TrainRecipe, Step]:
    """The recipe and its step. Raises ValueError where the recipe cannot be used, or model or data are missing."""
    loaded = load_recipe(recipe, overrides)
    model, data, out = model or loaded.out, data or loaded.data, out or evaluation_folder(loaded)
    settings = [word for override in overrides for word in ("--set", override)]
    return loaded, Step(
        flow=NAME,
        recipe=loaded.name,
        out=out,
        final=storage.join(out, "results.json"),
        inputs_digest=evaluate_inputs_digest(loaded.evaluate, model_digest(model), data_digest(data)),
        arguments=[
            *("-m", "emollm", "evaluate", "--recipe", recipe),
            *("--model", model, "--data", data, "--out", out),
            *settings,
        ],
        check=lambda results: _problems(out, results),
        force_arguments=("--force",),
    )


def _problems(out: str, results: dict[str, Any]) -> list[str]:
    """What results.json promises and the folder does not hold: missing files, and files with other content."""
    missing = [
        f"{storage.join(out, name)} is not there"
        for name in OUTPUTS
        if not storage.exists(storage.join(out, name))
    ]
    if missing:
        return missing
    recorded = results.get("files") or {}
    if "samples.parquet" not in recorded:
        return [f"{storage.join(out, 'results.json')} does not say what samples.parquet should hold"]
    return [
        f"{storage.join(out, name)} is not the file that results.json describes"
        for name, file in recorded.items()
        if not storage.exists(storage.join(out, name))
        or sha256_of_file(storage.join(out, name)) != file["sha256"]
    ]


def model_digest(model: str) -> str:
    """The digest of the model in `model`. Raises MissingInput where no training has finished there."""
    path = storage.join(model, "training.json")
    if not storage.exists(path):
        raise MissingInput(
            f"{model} holds no finished model (no training.json); run the train-emollm flow first"
        )
    return str(storage.read_json(path)["model_digest"])


@flow(
    name=NAME,
    flow_run_name="{recipe}",
    on_cancellation=[stop_orphans],
    on_failure=[flow_ended_badly],
    on_crashed=[flow_ended_badly],
)
def evaluate_emollm(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    model: Folder = None,
    data: Folder = None,
    out: Folder = None,
    force: Force = False,
    deadline_minutes: Minutes = 24 * 60,
) -> dict[str, Any]:
    """Score a trained EmoLLM on the test rows of an EmoBench against its baselines, and write the report.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file
        overrides: values to change in the recipe, each KEY=VALUE with a dotted key, for example seed=1
        model: folder with the trained model; empty: the recipe's own
        data: EmoBench folder; empty: the recipe's own
        out: where the results go; empty: `evaluation` beside the model
        force: ask the model anew, even though the scores are up to date; stored answers are removed
        deadline_minutes: stop the Ray job after so many minutes; what it finished is kept

    Returns:
        how it went (unchanged, submitted, attached or returned), the folder and the overall accuracy
    """
    loaded, step = plan(recipe, overrides, model, data, out)
    outcome = run_step(step, force=force, deadline_minutes=deadline_minutes)
    links: list[artifacts.Row] = [
        {"what": "Ray job", "where": outcome.job_url},
        {"what": "report", "where": storage.join(step.out, "report.html")},
        {"what": "scores", "where": step.final},
    ]
    artifacts.record_scores(loaded.name, outcome.final, links)
    return {"how": outcome.how, "out": step.out, "overall": outcome.final["overall"], "job": outcome.job_id}
