"""Flow retrain-emollm: build → train → evaluate → promote if better. Steps whose inputs are unchanged are skipped."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import Field

from dataset_build import storage
from dataset_build.recipe import load_recipe as load_build_recipe
from emollm.config import TrainRecipe
from emollm.config import load_recipe as load_train_recipe
from flows import artifacts, registry
from flows import build_emobench as build_emobench_flow
from flows import evaluate_emollm as evaluate_emollm_flow
from flows import train_emollm as train_emollm_flow
from flows.build_emobench import build_emobench
from flows.evaluate_emollm import evaluate_emollm
from flows.steps import Force, Minutes, Overrides, RecipeName, stop_orphans
from flows.train_emollm import data_digest, train_emollm

NAME = "retrain-emollm"
BuildRecipeName = Annotated[str | None, Field(min_length=1, max_length=500)]


@flow(name=NAME, flow_run_name="{recipe}", on_cancellation=[stop_orphans])
def retrain_emollm(
    recipe: RecipeName = "quickstart",
    build_recipe: BuildRecipeName = None,
    build_overrides: Overrides = [],  # noqa: B006
    train_overrides: Overrides = [],  # noqa: B006
    force: Force = False,
    deadline_minutes: Minutes = 7 * 24 * 60,
) -> dict[str, Any]:
    """Bring data, model and scores up to date, then make the model the champion if it is better on the same test rows.

    A step whose inputs and code are unchanged is skipped.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file
        build_recipe: recipe of the EmoBench build; empty: the shipped one with the same name
        build_overrides: values to change in the build recipe, each KEY=VALUE with a dotted key, for example seed=1
        train_overrides: values to change in the train recipe, each KEY=VALUE with a dotted key, for example seed=1
        force: train and evaluate from scratch, even though model and scores are up to date; the data is not built anew
        deadline_minutes: stop each Ray job after so many minutes; what it finished is kept

    Returns:
        the decision (promoted, kept or unchanged), its reason, and how each step went
    """
    build = load_build_recipe(
        build_recipe or recipe, build_overrides
    )  # both are checked before anything starts
    train_overrides = _with_data(load_train_recipe(recipe, train_overrides), build.out, train_overrides)
    loaded = load_train_recipe(recipe, train_overrides)

    built = build_emobench(build_recipe or recipe, build_overrides, False, deadline_minutes)
    trained = train_emollm(recipe, train_overrides, force, deadline_minutes)
    scored = evaluate_emollm(recipe, train_overrides, force=force, deadline_minutes=deadline_minutes)
    decision = _decide(loaded, trained["model_digest"], scored)
    steps = {"build": built["how"], "train": trained["how"], "evaluate": scored["how"]}
    if set(steps.values()) == {"unchanged"}:
        get_run_logger().info("nothing changed: data, code and recipes are those of the last run")
    return {
        "decision": decision["decision"],
        "reason": decision["reason"],
        "steps": steps,
        "evaluation": scored["out"],
    }


def up_to_date(recipe: str, build_overrides: list[str], train_overrides: list[str]) -> bool:
    """Whether a run would find nothing to do: every output whole and of today's inputs, its model decided upon."""
    try:
        build, step = build_emobench_flow.plan(recipe, build_overrides)
        if step.up_to_date() is None:
            return False
        overrides = _with_data(load_train_recipe(recipe, train_overrides), build.out, train_overrides)
        loaded, step = train_emollm_flow.plan(recipe, overrides)
        trained = step.up_to_date()
        scored = trained and evaluate_emollm_flow.plan(recipe, overrides)[1].up_to_date()
    except ValueError:  # something is missing: the flow itself will say what, and what to do
        return False
    history = registry.read_history(registry_folder(loaded))
    return bool(trained and scored and history and history[-1]["model_digest"] == trained["model_digest"])


def registry_folder(recipe: TrainRecipe) -> str:
    """Beside the model: runs/NAME/model → runs/NAME/registry."""
    return storage.join(recipe.out.rstrip("/").rpartition("/")[0] or ".", "registry")


def _with_data(recipe: TrainRecipe, data: str, overrides: list[str]) -> list[str]:
    """Overrides that make the training read what the build writes, where the two recipes disagree about it."""
    same = storage.filesystem(recipe.data)[1] == storage.filesystem(data)[1]
    return overrides if same else [*overrides, f"data={data}"]


def _decide(loaded: TrainRecipe, model_digest: str, scored: dict[str, Any]) -> dict[str, Any]:
    """Compare with the champion, write the decision down, record it as an artifact."""
    logger, folder = get_run_logger(), registry_folder(loaded)
    champion, data = registry.read_champion(folder), data_digest(loaded.data)
    comparison = None
    if champion is not None and champion["model_digest"] != model_digest:
        draws, seed = loaded.evaluate.bootstrap.samples, loaded.evaluate.bootstrap.seed
        theirs = storage.join(folder, champion["evaluation"])
        comparison = registry.compare(scored["out"], theirs, draws, seed)
    verdict, reason = registry.decide(champion, model_digest, comparison)
    logger.info("%s: %s", verdict, reason)
    entry: dict[str, Any] = {
        "model_digest": model_digest,
        "data_digest": data,
        "overall": scored["overall"].get("accuracy"),
        "champion": champion["model_digest"] if champion else None,
        "champion_data_digest": champion.get("data_digest") if champion else None,
    }
    if comparison:
        entry |= {"diff": comparison.diff, "diff_ci95": list(comparison.ci95), "n": comparison.n}
        entry |= {"left_out": comparison.left_out, "diff_per_sub_task": comparison.sub_tasks}
        entry["rows_per_sub_task"] = {task: shared._asdict() for task, shared in comparison.rows.items()}
    record = registry.write_decision(
        folder, verdict, reason, entry, model=loaded.out, evaluation=scored["out"]
    )
    links = [
        {"what": "report", "where": storage.join(scored["out"], "report.html")},
        {"what": "registry", "where": folder},
    ]
    artifacts.record_decision(loaded.name, record, links)
    return record
