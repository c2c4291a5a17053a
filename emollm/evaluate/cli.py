"""`emollm evaluate`; `report` and `compare` are in `cli_runs`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from emollm.evaluate import cli_runs

DONE, DATA_PROBLEM, USAGE = 0, 1, 2
# What the table on the terminal compares with; the report has the others too.
TABLE_COMPARES = ("majority", "text_only", "untrained", "linear_probe")


def add_subcommands(subparsers: Any) -> None:
    """Add `evaluate`, `report` and `compare` to an argparse sub-parser collection; each sets `run`, which returns the exit code."""
    evaluate = subparsers.add_parser(
        "evaluate",
        help="score a model on EmoBench",
        description="Score a model on EmoBench and leave results.json, samples.parquet and report.html. "
        "Killed and started again, it goes on where it was; started again when done, it says that nothing changed.",
    )
    evaluate.add_argument(
        "--model", metavar="M",
        help="a folder that `train` or `export` wrote; hf:NAME_OR_FOLDER, any image-text-to-text model of transformers; "
        "or openai:NAME, a model behind --endpoint",
    )  # fmt: skip
    evaluate.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible base URL, such as http://127.0.0.1:8000/v1"
    )
    evaluate.add_argument("--data", metavar="OUT", help="EmoBench folder (default: the recipe's)")
    evaluate.add_argument(
        "--out",
        metavar="DIR",
        help="where results go (default: `evaluation` beside the model, or below runs/)",
    )
    evaluate.add_argument(
        "--recipe", metavar="RECIPE", help="a train recipe: its `evaluate` section, data and model"
    )
    evaluate.add_argument(
        "--split", choices=("test", "val", "train"), help="which rows are asked (default: test)"
    )
    evaluate.add_argument(
        "--sub-task", action="append", metavar="NAME", help="only this sub-task; can be repeated"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="at most N samples per sub-task")
    evaluate.add_argument(
        "--mode", choices=("likelihood", "generate"),
        help="options by log-likelihood (default), or generated text that is parsed (the only one for endpoints)",
    )  # fmt: skip
    evaluate.add_argument(
        "--ablation", choices=("none", "text_only", "image_only"), help="what of a sample is withheld"
    )
    evaluate.add_argument(
        "--calibrate",
        action="store_true",
        help="divide by the option probabilities under a content-free input",
    )
    evaluate.add_argument(
        "--allow-failures", action="store_true",
        help="a request that failed for good counts as endpoint_error; without this the run stops there",
    )  # fmt: skip
    evaluate.add_argument("--dry-run", action="store_true", help="say what would be asked, and stop")
    again = evaluate.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted run was (always done; for scripts that say so)",
    )
    again.add_argument("--force", action="store_true", help="ask again, also what has an answer already")
    evaluate.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a value of the evaluate section (bootstrap.samples=500), or of the recipe where one is given",
    )  # fmt: skip
    evaluate.set_defaults(run=run_evaluate)

    cli_runs.add_subcommands(subparsers)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run `emollm evaluate`; returns the exit code."""
    from emollm.config import RecipeError

    try:
        model, data, out, recipe = _what_to_score(arguments)
    except RecipeError as error:
        return _fail(error, USAGE)
    except ValueError as error:
        return _fail(error, DATA_PROBLEM)
    if not model or not data:
        missing = "--model" if not model else "--data"
        return _fail(f"{missing} is missing; name a folder with it, or a recipe with --recipe", USAGE)
    from emollm.evaluate import results as evaluation

    try:
        if arguments.dry_run:
            from emollm.evaluate.dry import describe

            print(describe(model, data, out, recipe))
            return DONE
        digest = evaluation.inputs_digest_of(
            evaluation.read_model(model, recipe), evaluation.read_data_manifest(data), recipe
        )
        if arguments.force:
            evaluation.forget(out)
        known = evaluation.finished(out, digest)
        results = known or evaluation.evaluate(model, data, out, recipe)
    except ValueError as error:
        return _fail(error, DATA_PROBLEM)
    except Exception as error:
        cause = _cause_in_worker(error)
        if cause is None:
            raise
        return _fail(cause, DATA_PROBLEM)
    if known:
        print(f"nothing changed: {out} holds the results of this model, data, recipe and code")
    print_scores(results)
    report = os.path.join(out, evaluation.REPORT)
    print(f"report: {report}\nresults: {os.path.join(out, evaluation.RESULTS)}", flush=True)
    return DONE


def _what_to_score(arguments: argparse.Namespace) -> tuple[str | None, str | None, str, Any]:
    """(model, data, out, evaluate recipe) from the arguments. Raises RecipeError."""
    from emollm import config
    from emollm.evaluate import models
    from emollm.evaluate import results as evaluation

    overrides = list(arguments.overrides)
    if arguments.split:
        overrides.append(f"split={arguments.split}")
    if arguments.limit is not None:
        overrides.append(f"limit={arguments.limit}")
    if arguments.sub_task:
        overrides.append(f"sub_tasks=[{', '.join(arguments.sub_task)}]")
    if arguments.endpoint:
        overrides.append(f"endpoint.url={arguments.endpoint}")
    endpoint = models.kind_of(arguments.model or "") == models.ENDPOINT
    if arguments.mode or (
        endpoint and not any(one.startswith(("mode=", "evaluate.mode=")) for one in overrides)
    ):
        overrides.append(f"mode={arguments.mode or 'generate'}")
    if arguments.ablation:
        overrides.append(f"ablation={arguments.ablation}")
    overrides += [f"{name}=true" for name in ("calibrate", "allow_failures") if getattr(arguments, name)]
    mine, others = _sorted_overrides(overrides)
    model, data = arguments.model, arguments.data
    if arguments.recipe:
        train_recipe = config.load_recipe(
            arguments.recipe, [*others, *(f"evaluate.{override}" for override in mine)]
        )
        recipe = train_recipe.evaluate
        model, data = model or train_recipe.out, data or train_recipe.data
    else:
        if others:
            raise config.RecipeError(
                f"--set {others[0]}: not a key of the evaluate section; it needs --recipe"
            )
        recipe = config.evaluate_recipe(mine)
        if model and not data and models.kind_of(model) == models.EMOLLM:
            trained_on = evaluation.read_model(model).recipe
            data = trained_on["data"] if trained_on else None
    narrowed = [one for one in mine if one.partition("=")[0] in ("split", "sub_tasks", "limit")]
    out = arguments.out or models.default_out(model or ".", recipe, narrowed)
    return model, data, out, recipe


def _sorted_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(overrides of the evaluate section without its prefix, overrides of other parts of a train recipe)."""
    from emollm.config import EvaluateRecipe

    mine, others = [], []
    for override in overrides:
        key = override.partition("=")[0]
        if key.startswith("evaluate."):
            mine.append(override.removeprefix("evaluate."))
        elif key in EvaluateRecipe.model_fields or key.startswith(("bootstrap.", "endpoint.")):
            mine.append(override)
        else:
            others.append(override)
    return mine, others


def _cause_in_worker(error: BaseException) -> BaseException | None:
    """The user error that a Ray worker raised, if `error` is Ray's wrapping of one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ValueError) and type(seen).__module__.startswith(("emollm.", "dataset_build.")):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def print_scores(results: dict[str, Any]) -> None:
    """The score table, on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from emollm.evaluate.charts import percent, points
    from emollm.evaluate.report import SHORT_NAMES, SHORT_TASKS

    entries = [(SHORT_TASKS[name], entry) for name, entry in results["sub_tasks"].items()]
    shown = [name for name in TABLE_COMPARES if any(name in _compared(entry) for _, entry in entries)]
    table = Table(
        show_lines=True,
        title=escape(f"EmoBench: {results['name']} ({results['split']})"),
        title_justify="left",
    )
    table.add_column("sub-task")
    rates = any(any(entry["invalid"].values()) for _, entry in entries if entry["n"])
    for heading in (
        "n", *(["invalid"] if rates else []), "accuracy", *(f"above {SHORT_NAMES[name]}" for name in shown)
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for title, entry in entries:
        name = f"{title}\n[dim]{entry['note']}[/dim]" if entry.get("note") else title
        counts = [str(entry["n"])]
        if rates and entry["n"]:
            counts.append(percent(sum(entry["invalid"].values()) / entry["n"]))
        table.add_row(name, *counts, *(_cells(entry, shown, percent, points) if entry["n"] else []))
    overall = results["overall"]
    if overall["accuracy"] is not None:
        table.add_section()
        empty = [""] * (1 + rates)
        table.add_row(
            f"mean of {len(overall['sub_tasks'])}", *empty, *_cells(overall, shown, percent, points)
        )
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    console.print(
        "[dim]below a score: 95 % intervals; above X: points of accuracy above X; ✓ where its paired interval lies above zero[/dim]"
    )


def _compared(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry.get("baselines", {}), **entry.get("references", {})}


def _cells(entry: dict[str, Any], shown: list[str], percent: Any, points: Any) -> list[str]:
    low, high = (f"{100 * bound:.1f}" for bound in entry["ci95"])
    cells = [f"{percent(entry['accuracy'])}\n[dim]{low} to {high}[/dim]"]
    for name in shown:
        other = _compared(entry).get(name)
        if other is None:
            cells.append("–")
            continue
        low, high = (points(bound) for bound in other["diff_ci95"])
        cells.append(
            f"{points(other['diff'])}{' ✓' if other['beaten'] else '  '}\n[dim]{low} to {high}[/dim]"
        )
    return cells


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
