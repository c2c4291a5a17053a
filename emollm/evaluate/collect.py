"""The answers of one evaluation: those of the model, of the passes it is compared with, and of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_json
from emollm.config import EvaluateRecipe
from emollm.evaluate import plan
from emollm.evaluate.asking import Asking
from emollm.evaluate.models import EMOLLM, ENDPOINT, Model
from emollm.evaluate.protocol import Row

# The one sub-task whose labels a linear probe can read off the pictures' features.
PROBED_SUB_TASK = "emo_c"


def passes_of(model: Model, recipe: EvaluateRecipe) -> list[str]:
    """The passes over the asked rows, the model's own first. What a model cannot be compared with is left out, and said."""
    passes = [plan.MODEL]
    if "text_only" in recipe.baselines and recipe.ablation != "text_only":
        passes.append(plan.TEXT_ONLY)
    if "untrained" in recipe.baselines:
        if model.recipe is None:
            print(
                "evaluate: no untrained baseline: only a training says what its model started from",
                flush=True,
            )
        else:
            passes.append(plan.UNTRAINED)
    return passes


def make_plan(
    model: Model, data_digest: str, rows: Sequence[Row], asked: Sequence[Row], recipe: EvaluateRecipe
) -> plan.Plan:
    """The shards of an evaluation."""
    digest = sha256_of_json(
        [model.digest, model.inputs_digest, data_digest, Asking.of(recipe), _request(recipe, model)]
    )
    passes = passes_of(model, recipe)
    return plan.make_plan(asked, _probed(model, rows, asked, recipe), passes, model.folds, digest)


def _request(recipe: EvaluateRecipe, model: Model) -> list[Any]:
    """What of an endpoint's settings changes its answers."""
    if model.kind != ENDPOINT or recipe.endpoint is None:
        return []
    return [recipe.endpoint.seed, recipe.endpoint.request]


def _probed(model: Model, rows: Sequence[Row], asked: Sequence[Row], recipe: EvaluateRecipe) -> list[Row]:
    """The rows whose pictures' features the linear probe needs; none where a row has not exactly one picture or clip."""
    wanted = recipe.linear_probe and model.kind == EMOLLM
    if not wanted or not any(row.sub_task == PROBED_SUB_TASK for row in asked):
        return []
    mine = [row for row in rows if row.sub_task == PROBED_SUB_TASK]
    return mine if all(len(row.media_kinds) == 1 for row in mine) else []


def collect(
    model: Model,
    manifest: dict[str, Any],
    rows: Sequence[Row],
    asked: Sequence[Row],
    recipe: EvaluateRecipe,
    job: Any,
) -> tuple[list[Any], dict[str, list[Any]], dict[str, Any]]:
    """(answers of the model, answer texts of each baseline, how much was scored), one answer per asked row."""
    from emollm.evaluate import baselines, baselines_neighbours, records, run

    work_plan = make_plan(model, manifest["digest"], rows, asked, recipe)
    work = run.score_shards(work_plan, job, recipe.workers)
    answers, features = run.read_answers(work_plan, job.out)
    run.forget_other_answers(work_plan, job.out)
    said: dict[str, list[Any]] = {}
    if "majority" in recipe.baselines:
        said["majority"] = baselines.majority_answers(rows, asked)
    if "random" in recipe.baselines:
        said["random"] = baselines_neighbours.random_answers(rows, asked)
    for name in work_plan.passes[1:]:
        given = run.answers_for(work_plan, answers, name, asked)
        said[name] = [records.judge_answer(row, answer) for row, answer in zip(asked, given, strict=True)]
    probed = _probed(model, rows, asked, recipe)
    if recipe.linear_probe and not probed and any(row.sub_task == PROBED_SUB_TASK for row in asked):
        print(
            f"evaluate: no linear probe: it is for EmoLLMs on data whose {PROBED_SUB_TASK} rows have one picture or clip"
        )
    if probed:
        said["linear_probe"] = _probe_answers(asked, probed, features, manifest)
    if recipe.nearest_neighbour:
        said["nearest_neighbour"] = baselines_neighbours.nearest_neighbour_answers(job.data, rows, asked)
    return run.answers_for(work_plan, answers, plan.MODEL, asked), said, work


def _probe_answers(
    asked: Sequence[Row], probed: Sequence[Row], features: Any, manifest: dict[str, Any]
) -> list[str | None]:
    """The linear probe's answer to each asked row of its sub-task, None for the others."""
    from emollm.evaluate.baselines import linear_probe_answers
    from emollm.evaluate.records import group_names

    groups = dict(zip((row.uid for row in probed), group_names(probed, manifest), strict=True))
    mine = [row for row in asked if row.sub_task == PROBED_SUB_TASK]
    answers = linear_probe_answers(probed, mine, features, groups)
    by_uid = dict(zip((row.uid for row in mine), answers, strict=True))
    return [by_uid.get(row.uid) for row in asked]


def forget(out: str) -> None:
    """Remove every cached answer and response in `out`."""
    from emollm.evaluate.cache import RESPONSES_FOLDER
    from emollm.evaluate.run import ANSWERS_FOLDER

    for folder in (ANSWERS_FOLDER, RESPONSES_FOLDER):
        for name in storage.list_files(storage.join(out, folder)):
            storage.remove(storage.join(out, folder, name))
