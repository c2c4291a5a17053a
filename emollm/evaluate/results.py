"""One evaluation from end to end: which rows, their answers, their scores, and the three files that are left behind.

`OUT/samples.parquet` and `OUT/report.html` are written first, `OUT/results.json` last: where it is, the evaluation is whole.
"""

from __future__ import annotations

from typing import Any

from dataset_build import storage
from dataset_build.provenance import code_version, sha256_of_file
from emollm.config import EvaluateRecipe, evaluate_inputs_digest
from emollm.evaluate.models import Model, read_model
from emollm.evaluate.protocol import EvaluationError

# 1.1: calibration, intervals of all scores, scores per label, two levels of open answers. Readers take any 1.x.
RESULTS_VERSION = "1.1"
RESULTS, SAMPLES, REPORT = "results.json", "samples.parquet", "report.html"


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
    """Remove the results and every cached answer and response in `out`."""
    from emollm.evaluate import collect

    storage.remove(storage.join(out, RESULTS))
    collect.forget(out)


def inputs_digest_of(model: Model, manifest: dict[str, Any], recipe: EvaluateRecipe) -> str:
    return evaluate_inputs_digest(recipe, model.digest, manifest["digest"])


def evaluate(model_path: str, data: str, out: str, recipe: EvaluateRecipe) -> dict[str, Any]:
    """Score a model and write OUT; returns the content of results.json. `unchanged` in it is never stored.

    Raises EvaluationError (a ValueError) for anything the caller can put right.
    """
    from emollm.evaluate import asking, collect, records, report, run, scores
    from emollm.evaluate.protocol import read_rows, select_rows

    model, manifest = read_model(model_path, recipe), read_data_manifest(data)
    if model.data_digest not in (None, manifest["digest"]):
        raise EvaluationError(
            f"{model_path} was trained on the EmoBench with digest {model.data_digest}, {data} has {manifest['digest']}: its "
            "test rows may have been training rows. Train again on this data, or name the data it was trained on"
        )
    inputs_digest = inputs_digest_of(model, manifest, recipe)
    rows = read_rows(data, manifest)
    asked, left_out = select_rows(rows, recipe.split, recipe.sub_tasks, recipe.limit, model.protocols(rows))
    if not asked:
        raise EvaluationError(
            f"{data}: no row of split {recipe.split} in {', '.join(recipe.sub_tasks)}; widen the recipe"
        )
    print(f"evaluate: {len(asked)} samples of {data} by {model_path}", flush=True)
    job = run.Job(
        data, out, model.path, model.kind, model.recipe, asking.Asking.of(recipe), recipe.endpoint,
        recipe.allow_failures, recipe.batch_size, recipe.threads,
    )  # fmt: skip
    answers, baselines, work = collect.collect(model, manifest, rows, asked, recipe, job)
    made = records.make_records(asked, answers, baselines, manifest)
    results = {
        "schema_version": RESULTS_VERSION,
        "inputs_digest": inputs_digest,
        "name": model.name,
        "split": recipe.split,
        "model": {
            "kind": model.kind, "path": model_path, "digest": model.digest, "inputs_digest": model.inputs_digest,
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


def _synonyms_version() -> str:
    from emollm.evaluate.open_set import load_table

    return load_table().version
