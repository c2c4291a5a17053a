"""Flow retrain-emollm: build → train → evaluate → promote if better. Steps whose inputs are unchanged are skipped."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Cancelled
from pydantic import Field

from dataset_build import storage
from dataset_build.progress import duration
from dataset_build.recipe import load_recipe as load_build_recipe
from emollm.config import TrainRecipe
from emollm.config import load_recipe as load_train_recipe
from flows import artifacts, orphans, promotion
from flows import build_emobench as build_emobench_flow
from flows import evaluate_emollm as evaluate_emollm_flow
from flows import registry as registry_of_models
from flows import train_emollm as train_emollm_flow
from flows.build_emobench import build_emobench
from flows.evaluate_emollm import Folder, evaluate_emollm
from flows.lease import AlreadyRunning, only_one, prefect_server
from flows.notify import flow_ended_badly, send
from flows.steps import Force, Minutes, Overrides, RecipeName, root_flow_run_id, stop_orphans
from flows.train_emollm import data_digest, train_emollm

NAME = "retrain-emollm"
GuardRail = Annotated[float, Field(ge=0, le=1)]
Jitter = Annotated[float, Field(ge=0, le=24 * 60)]
BuildRecipeName = Annotated[str | None, Field(min_length=1, max_length=500)]


@flow(
    name=NAME,
    flow_run_name="{recipe}",
    on_cancellation=[stop_orphans],
    on_failure=[flow_ended_badly],
    on_crashed=[flow_ended_badly],
)
def retrain_emollm(
    recipe: RecipeName = "quickstart",
    build_recipe: BuildRecipeName = None,
    build_overrides: Overrides = [],  # noqa: B006
    train_overrides: Overrides = [],  # noqa: B006
    registry: Folder = None,
    guard_rail: GuardRail = promotion.GUARD_RAIL,
    jitter_minutes: Jitter = 0.0,
    force: Force = False,
    deadline_minutes: Minutes = 7 * 24 * 60,
    allow_code_change: bool = False,
    allow_world_size_change: bool = False,
) -> Any:
    """Bring data, model and scores up to date, then make the model the champion if it is better on the same test rows.

    A step whose inputs and code are unchanged is skipped. One run at a time works on a registry: a second one is refused
    (its state is Cancelled, and its message names the first).

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file
        build_recipe: recipe of the EmoBench build; empty: the shipped one with the same name
        build_overrides: values to change in the build recipe, each KEY=VALUE with a dotted key, for example seed=1
        train_overrides: values to change in the train recipe, each KEY=VALUE with a dotted key, for example seed=1
        registry: folder or s3://BUCKET/PREFIX of the registry of models; empty: `registry` beside the model
        guard_rail: by how much the accuracy of a single sub-task may fall for a model that is better overall (0.03: three
            points)
        jitter_minutes: a scheduled run waits a random time of up to so many minutes, so that several schedules of the same
            time do not start at once; a run started by hand never waits
        force: train and evaluate from scratch, even though model and scores are up to date; the data is not built anew
        deadline_minutes: stop each Ray job after so many minutes; what it finished is kept
        allow_code_change: go on with an unfinished training that other code began
        allow_world_size_change: go on with an unfinished training that another number of workers began

    Returns:
        the decision (promoted, kept or unchanged), its reason, and how each step went
    """
    # Both recipes are checked before anything starts.
    build = load_build_recipe(build_recipe or recipe, build_overrides)
    train_overrides = _with_data(load_train_recipe(recipe, train_overrides), build.out, train_overrides)
    loaded = train_emollm_flow.load(recipe, train_overrides)
    folder, run_id = registry or registry_folder(loaded), root_flow_run_id()
    storage.check_place(folder, "registry")
    _wait_a_little(run_id, jitter_minutes)

    limit_s = 3 * deadline_minutes * 60
    try:
        with only_one(folder, run_id, prefect_server(), limit_s, orphans.is_open):
            built = build_emobench(build_recipe or recipe, build_overrides, False, deadline_minutes)
            trained = train_emollm(
                recipe, train_overrides, force, deadline_minutes, allow_code_change, allow_world_size_change
            )
            scored = evaluate_emollm(recipe, train_overrides, force=force, deadline_minutes=deadline_minutes)
            steps = {"build": built["how"], "train": trained["how"], "evaluate": scored["how"]}
            decision = _decide(loaded, folder, guard_rail, trained["model_digest"], scored, steps)
    except AlreadyRunning as busy:
        return Cancelled(message=str(busy))
    return {
        "decision": decision["decision"],
        "reason": decision["reason"],
        "steps": steps,
        "evaluation": scored["out"],
        "registry": folder,
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
    history = registry_of_models.read_history(registry_folder(loaded))
    return bool(trained and scored and history and history[-1]["model_digest"] == trained["model_digest"])


def registry_folder(recipe: TrainRecipe) -> str:
    """Beside the model: runs/NAME/model → runs/NAME/registry."""
    return storage.join(recipe.out.rstrip("/").rpartition("/")[0] or ".", "registry")


def _with_data(recipe: TrainRecipe, data: str, overrides: list[str]) -> list[str]:
    """Overrides that make the training read what the build writes, where the two recipes disagree about it."""
    same = storage.filesystem(recipe.data)[1] == storage.filesystem(data)[1]
    return overrides if same else [*overrides, f"data={data}"]


def jitter_s(run_id: str, jitter_minutes: float) -> float:
    """How long a scheduled run waits: the same time whenever the same run is asked, so that a retry waits no other."""
    return random.Random(run_id).uniform(0, jitter_minutes * 60)


def _wait_a_little(run_id: str, jitter_minutes: float) -> None:
    context = FlowRunContext.get()
    if jitter_minutes and context and context.flow_run and context.flow_run.auto_scheduled:
        pause = jitter_s(run_id, jitter_minutes)
        get_run_logger().info(
            "waiting %s of at most %.0f min, as scheduled runs do", duration(pause), jitter_minutes
        )
        time.sleep(pause)


def _decide(
    loaded: TrainRecipe,
    folder: str,
    guard_rail: float,
    model_digest: str,
    scored: dict[str, Any],
    steps: dict[str, str],
) -> dict[str, Any]:
    """Compare with the champion, write the decision down, tell about a promotion, record it as an artifact."""
    for _ in range(3):
        try:
            record = _decide_once(loaded, folder, guard_rail, model_digest, scored, steps)
            break
        except (
            registry_of_models.Conflict
        ) as conflict:  # somebody rolled back or promoted meanwhile: compare anew
            get_run_logger().warning("%s; deciding again", conflict)
    else:
        raise RuntimeError(f"{folder}: others keep changing the champion; start the flow again")
    links = [
        {"what": "report", "where": storage.join(scored["out"], "report.html")},
        {"what": "registry", "where": folder},
    ]
    if record["decision"] == "promoted":
        send("promoted", flow=NAME, registry=folder, message=record["reason"], model_digest=model_digest)
    artifacts.record_decision(loaded.name, record, links)
    return record


def _decide_once(
    loaded: TrainRecipe,
    folder: str,
    guard_rail: float,
    model_digest: str,
    scored: dict[str, Any],
    steps: dict[str, str],
) -> dict[str, Any]:
    logger, data = get_run_logger(), data_digest(loaded.data)
    champion = registry_of_models.read_champion(folder)
    comparison = None
    if champion.entry and champion.model_digest != model_digest:
        draws, seed = loaded.evaluate.bootstrap.samples, loaded.evaluate.bootstrap.seed
        theirs = storage.join(folder, champion.entry["evaluation"])
        comparison = promotion.compare(scored["out"], theirs, draws, seed)
    verdict, reason = promotion.decide(
        champion.entry,
        model_digest,
        comparison,
        guard_rail=guard_rail,
        barred=registry_of_models.barred(folder, model_digest),
    )
    if set(steps.values()) == {"unchanged"}:
        why = f"nothing changed: data {data[:16]}, recipe and code are those of model {model_digest[:16]}"
        reason = f"{why}; {reason}"
    logger.info("%s: %s", verdict, reason)
    entry: dict[str, Any] = {
        "model_digest": model_digest,
        "data_digest": data,
        "overall": scored["overall"].get("accuracy"),
        "champion": champion.model_digest,
        "champion_data_digest": champion.entry.get("data_digest") if champion.entry else None,
    }
    if comparison:
        entry |= {"diff": comparison.diff, "diff_ci95": list(comparison.ci95), "n": comparison.n}
        entry |= {"left_out": comparison.left_out, "diff_per_sub_task": comparison.sub_tasks}
        entry["rows_per_sub_task"] = {task: shared._asdict() for task, shared in comparison.rows.items()}
        entry["guard_rail"] = guard_rail
    return registry_of_models.write_decision(
        folder, verdict, reason, entry, model=loaded.out, evaluation=scored["out"], champion=champion
    )
