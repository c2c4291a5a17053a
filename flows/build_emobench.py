"""Flow build-emobench: source data sets → EmoBench, as a Ray job."""

from __future__ import annotations

from typing import Any

from prefect import flow

from dataset_build import storage
from dataset_build.recipe import BuildRecipe, inputs_digest, load_recipe
from flows import artifacts
from flows.notify import flow_ended_badly
from flows.steps import Force, Minutes, Outcome, Overrides, RecipeName, Step, run_step, stop_orphans

NAME = "build-emobench"


def plan(recipe: str, overrides: list[str]) -> tuple[BuildRecipe, Step]:
    """The recipe and its step. Raises ValueError naming the key where the recipe cannot be used."""
    loaded = load_recipe(recipe, overrides)
    settings = [word for override in overrides for word in ("--set", override)]
    return loaded, Step(
        flow=NAME,
        recipe=loaded.name,
        out=loaded.out,
        final=storage.join(loaded.out, "manifest.json"),
        inputs_digest=inputs_digest(loaded),
        arguments=["-m", "dataset_build", "build", recipe, *settings],
        check=lambda manifest: _problems(loaded.out),
    )


@flow(
    name=NAME,
    flow_run_name="{recipe}",
    on_cancellation=[stop_orphans],
    on_failure=[flow_ended_badly],
    on_crashed=[flow_ended_badly],
)
def build_emobench(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = [],  # noqa: B006
    force: Force = False,
    deadline_minutes: Minutes = 24 * 60,
) -> dict[str, Any]:
    """Build EmoBench from its source data sets: convert, check, find duplicates and leakage, split, write, verify.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file
        overrides: values to change in the recipe, each KEY=VALUE with a dotted key, for example seed=1
        force: verify and write the data again, even though it is up to date (manifest.json is removed first);
            finished parts of the same inputs are used again
        deadline_minutes: stop the Ray job after so many minutes; what it finished is kept

    Returns:
        how it went (unchanged, submitted, attached or returned), the folder and the digest
    """
    loaded, step = plan(recipe, overrides)
    outcome = run_step(step, force=force, deadline_minutes=deadline_minutes)
    _record(loaded, outcome)
    return {"how": outcome.how, "out": loaded.out, "digest": outcome.final["digest"], "job": outcome.job_id}


def _problems(out: str) -> list[str]:
    from dataset_build.manifest import verify

    return verify(out, deep=False)


def _record(recipe: BuildRecipe, outcome: Outcome) -> None:
    leakage_path = storage.join(recipe.out, "leakage.json")
    artifacts.record_build(
        recipe.name,
        outcome.final,
        _rejects_by_reason(storage.join(recipe.out, "rejects.parquet")),
        storage.read_json(leakage_path) if storage.exists(leakage_path) else [],
        [
            {"what": "Ray job", "where": outcome.job_url},
            {"what": "data", "where": recipe.out},
            {"what": "data set card", "where": storage.join(recipe.out, "README.md")},
        ],
    )


def _rejects_by_reason(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if not storage.exists(path):
        return []
    with storage.open_read(path) as stream:
        table = pq.read_table(stream, columns=["source", "reason", "detail"])
    counts: dict[tuple[str, str], int] = {}
    example: dict[tuple[str, str], str] = {}
    for row in table.to_pylist():
        key = (row["source"], row["reason"])
        counts[key] = counts.get(key, 0) + 1
        example.setdefault(key, row["detail"])
    return [
        {
            "source": source,
            "reason": reason,
            "rows": counts[source, reason],
            "for example": example[source, reason][:200],
        }
        for source, reason in sorted(counts)
    ]
