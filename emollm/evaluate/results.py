"""One evaluation from end to end: which rows, their answers, their scores, and the three files that are left behind.

`OUT/samples.parquet` and `OUT/report.html` are written first, `OUT/results.json` last: where it is, the evaluation is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataset_build import storage
from dataset_build.provenance import code_version, sha256_of_file, sha256_of_json
from emollm.config import EvaluateRecipe, evaluate_inputs_digest
from emollm.evaluate.protocol import EvaluationError

# 1.1: calibration, intervals of all scores, scores per label, two levels of open answers. Readers take any 1.x.
RESULTS_VERSION = "1.1"
RESULTS, SAMPLES, REPORT = "results.json", "samples.parquet", "report.html"
# The one sub-task whose labels a linear probe can read off the pictures' features.
PROBED_SUB_TASK = "emo_c"


@dataclass(frozen=True)
class Model:
    """What is scored. `folds` is None for a single model folder, which answers what `protocol` tests and no more."""

    path: str
    name: str
    digest: str
    inputs_digest: str | None
    data_digest: str | None
    folds: tuple[int, ...] | None
    recipe: dict[str, Any] | None
    protocol: int = 0


def read_model(path: str) -> Model:
    """The trained model in `path`: a folder with training.json and fold-k folders, or one saved model.

    Raises EvaluationError naming what is missing.
    """
    training_path = storage.join(path, "training.json")
    if storage.exists(training_path):
        training = storage.read_json(training_path)
        folds = tuple(sorted(int(fold["fold"]) for fold in training["folds"]))
        if not folds:
            raise EvaluationError(f"{training_path}: names no fold; train again")
        for fold in training["folds"]:
            if fold["path"] != f"fold-{fold['fold']}" or not storage.exists(
                storage.join(path, fold["path"], "config.json")
            ):
                raise EvaluationError(
                    f"{path}/{fold['path']}: named in training.json, but no model is there; train again"
                )
        return Model(
            path, training["recipe"]["name"], training["model_digest"], training["inputs_digest"], training["data_digest"],
            folds, training["recipe"],
        )  # fmt: skip
    if storage.exists(storage.join(path, "config.json")):
        weights = [name for name in storage.list_files(path) if not name.startswith("log/")]
        digest = sha256_of_json({name: sha256_of_file(storage.join(path, name)) for name in weights})
        fold_path = storage.join(path, "fold.json")
        fold = storage.read_json(fold_path) if storage.exists(fold_path) else {}
        name = path.rstrip("/").rsplit("/", 1)[-1]
        return Model(path, name, digest, None, fold.get("data_digest"), None, None, fold.get("fold", 0))
    raise EvaluationError(
        f"{path}: neither training.json nor config.json is there; give a folder that `emollm train` wrote"
    )


def read_data_manifest(data: str) -> dict[str, Any]:
    path = storage.join(data, "manifest.json")
    if not storage.exists(path):
        raise EvaluationError(f"{path} is not there; build EmoBench first, or name its folder with --data")
    manifest: dict[str, Any] = storage.read_json(path)
    return manifest


def finished(out: str, inputs_digest: str) -> dict[str, Any] | None:
    """The results in `out`, if they are of these inputs and whole (results.json, samples.parquet unchanged, report.html)."""
    path = storage.join(out, RESULTS)
    if not storage.exists(path):
        return None
    results: dict[str, Any] = storage.read_json(path)
    if results.get("inputs_digest") != inputs_digest:
        return None
    samples = storage.join(out, SAMPLES)
    whole = storage.exists(samples) and sha256_of_file(samples) == results["files"][SAMPLES]["sha256"]
    return results if whole and storage.exists(storage.join(out, REPORT)) else None


def forget(out: str) -> None:
    """Remove the results and every cached answer in `out`."""
    from emollm.evaluate.run import ANSWERS_FOLDER

    storage.remove(storage.join(out, RESULTS))
    folder = storage.join(out, ANSWERS_FOLDER)
    for name in storage.list_files(folder):
        storage.remove(storage.join(folder, name))


def inputs_digest_of(model: Model, manifest: dict[str, Any], recipe: EvaluateRecipe) -> str:
    return evaluate_inputs_digest(recipe, model.digest, manifest["digest"])


def evaluate(model_path: str, data: str, out: str, recipe: EvaluateRecipe) -> dict[str, Any]:
    """Score a model and write OUT; returns the content of results.json. `unchanged` in it is never stored.

    Raises EvaluationError (a ValueError) for anything the caller can put right.
    """
    from emollm.evaluate import records, report, run, scores
    from emollm.evaluate.protocol import read_rows, select_rows

    model, manifest = read_model(model_path), read_data_manifest(data)
    if model.data_digest not in (None, manifest["digest"]):
        raise EvaluationError(
            f"{model_path} was trained on the EmoBench with digest {model.data_digest}, {data} has {manifest['digest']}: its "
            "test rows may have been training rows. Train again on this data, or name the data it was trained on"
        )
    inputs_digest = inputs_digest_of(model, manifest, recipe)
    rows = read_rows(data, manifest)
    asked, left_out = select_rows(
        rows, recipe.split, recipe.sub_tasks, recipe.limit, model.folds or (model.protocol,)
    )
    if not asked:
        raise EvaluationError(
            f"{data}: no row of split {recipe.split} in {', '.join(recipe.sub_tasks)}; widen the recipe"
        )
    print(f"evaluate: {len(asked)} samples of {data} by {model_path}", flush=True)
    job = run.Job(data, out, model_path, model.recipe, recipe.batch_size, recipe.threads)
    answers, baselines, work = _answers(model, manifest, rows, asked, recipe, job)
    made = records.make_records(asked, answers, baselines, manifest)
    results = {
        "schema_version": RESULTS_VERSION,
        "inputs_digest": inputs_digest,
        "name": model.name,
        "split": recipe.split,
        "model": {
            "path": model_path, "digest": model.digest, "inputs_digest": model.inputs_digest,
            "folds": list(model.folds) if model.folds else None, "recipe": model.recipe,
        },
        "recipe": recipe.model_dump(mode="json"),
        "code": code_version(),
        "data": data,
        "data_digest": manifest["digest"],
        "synonyms_version": _synonyms_version(),
        "n": len(made),
        "left_out": left_out,
        "scoring": work,
        **scores.score_all(made, recipe),
        "files": {SAMPLES: records.write_samples(storage.join(out, SAMPLES), made)},
    }  # fmt: skip
    report.write_report(out, results)
    storage.write_json(storage.join(out, RESULTS), results)
    return results


def _answers(
    model: Model,
    manifest: dict[str, Any],
    rows: Sequence[Any],
    asked: Sequence[Any],
    recipe: EvaluateRecipe,
    job: Any,
) -> tuple[list[Any], dict[str, list[Any]], dict[str, Any]]:
    """(answers of the model, answer texts of each baseline, how much was scored), one answer per asked row."""
    from emollm.evaluate import baselines, plan, records, run

    passes = [plan.MODEL]
    if "text_only" in recipe.baselines:
        passes.append(plan.TEXT_ONLY)
    if "untrained" in recipe.baselines:
        if model.recipe is None:
            print(
                "evaluate: no untrained baseline, since a single model does not say what it started from",
                flush=True,
            )
        else:
            passes.append(plan.UNTRAINED)
    probed_asked = [row for row in asked if row.sub_task == PROBED_SUB_TASK] if recipe.linear_probe else []
    probed = (
        [row for row in rows if row.sub_task == PROBED_SUB_TASK and row.media_sha256] if probed_asked else []
    )
    digest = sha256_of_json([model.digest, model.inputs_digest, manifest["digest"]])
    work_plan = plan.make_plan(asked, probed, passes, model.folds, digest)
    work = run.score_shards(work_plan, job, recipe.workers)
    answers, features = run.read_answers(work_plan, job.out)
    run.forget_other_answers(work_plan, job.out)
    said: dict[str, list[Any]] = {}
    if "majority" in recipe.baselines:
        said["majority"] = baselines.majority_answers(rows, asked)
    for name in passes[1:]:
        given = run.answers_for(work_plan, answers, name, asked)
        said[name] = [records.text_of(row, answer) for row, answer in zip(asked, given, strict=True)]
    if probed_asked:
        said["linear_probe"] = _probe_answers(asked, probed, probed_asked, features, manifest)
    return run.answers_for(work_plan, answers, plan.MODEL, asked), said, work


def _synonyms_version() -> str:
    from emollm.evaluate.open_set import load_table

    return load_table().version


def _probe_answers(
    asked: Sequence[Any],
    probed: Sequence[Any],
    probed_asked: Sequence[Any],
    features: Any,
    manifest: dict[str, Any],
) -> list[str | None]:
    """The linear probe's answer to each asked row of its sub-task, None for the others."""
    from emollm.evaluate.baselines import linear_probe_answers
    from emollm.evaluate.protocol import cluster_keys
    from emollm.evaluate.statistics import linked_groups

    uids = [row.uid for row in probed]
    groups = dict(
        zip(uids, linked_groups([cluster_keys(row, manifest) for row in probed], uids), strict=True)
    )
    answers = linear_probe_answers(probed, probed_asked, features, groups)
    by_uid = dict(zip((row.uid for row in probed_asked), answers, strict=True))
    return [by_uid.get(row.uid) for row in asked]
