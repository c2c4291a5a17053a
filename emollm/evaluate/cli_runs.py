"""`emollm report`, `compare` and `lmms-tasks`: what is made of finished evaluations and for other tools. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DONE, DATA_PROBLEM, USAGE = 0, 1, 2


def add_subcommands(subparsers: Any) -> None:
    """Add `report`, `compare` and `lmms-tasks` to an argparse sub-parser collection; each sets `run`, which returns the exit code."""
    report = subparsers.add_parser(
        "report",
        help="write report.html of one evaluation, or of several side by side",
        description="Write report.html of a finished evaluation again, from its results.json and samples.parquet; or one page "
        "that shows several evaluations of the same samples side by side.",
    )
    report.add_argument(
        "folders",
        metavar="RUN",
        nargs="+",
        help="evaluation folder (or the run folder that holds `evaluation`)",
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        help="the page (default: report.html in RUN; of several runs comparison.html here)",
    )
    report.add_argument("--data", metavar="OUT", help="EmoBench folder with the pictures, where it has moved")
    report.add_argument(
        "--lm-eval",
        metavar="DIR",
        help="also write the results as lm-evaluation-harness and lmms-eval do, into DIR",
    )
    report.add_argument(
        "--judge-endpoint", metavar="URL", help="first ask an OpenAI-compatible endpoint about the open answers; "
        "its verdict stands beside the score, and the key is taken from EMOLLM_JUDGE_API_KEY",
    )  # fmt: skip
    report.add_argument("--judge-model", metavar="NAME", help="the judge's name at that endpoint")
    report.set_defaults(run=run_report)

    compare = subparsers.add_parser(
        "compare",
        help="how much better one evaluation is than another, with intervals and tests",
        description="Compare two evaluations of the same samples: difference of accuracies, its paired 95 % interval, and "
        "McNemar's exact test, per sub-task and overall. Refuses runs on other data or other samples.",
    )
    compare.add_argument("first", metavar="RUN_A", help="evaluation folder")
    compare.add_argument("second", metavar="RUN_B", help="evaluation folder; differences are B − A")
    compare.add_argument(
        "--sub-task", action="append", metavar="NAME", help="only this sub-task; can be repeated"
    )
    compare.add_argument("--json", metavar="FILE", help="also write the comparison as JSON")
    compare.set_defaults(run=run_compare)

    tasks = subparsers.add_parser(
        "lmms-tasks",
        help="write the tasks that let lmms-eval run an EmoBench",
        description="Write a folder of lmms-eval tasks that read the test split of an EmoBench: "
        "`lmms_eval --include_path DIR --tasks emobench`, with this project on PYTHONPATH.",
    )
    tasks.add_argument("data", metavar="OUT", help="EmoBench folder")
    tasks.add_argument("out", metavar="DIR", help="where the tasks go")
    tasks.set_defaults(run=run_tasks)


def run_report(arguments: argparse.Namespace) -> int:
    """Run `emollm report`; returns the exit code."""
    from emollm.evaluate import report

    if bool(arguments.judge_endpoint) != bool(arguments.judge_model):
        return _fail("--judge-endpoint and --judge-model belong together; name both or none", USAGE)
    if arguments.lm_eval and len(arguments.folders) > 1:
        return _fail("--lm-eval takes one run; write the others one by one", USAGE)
    try:
        if arguments.judge_model:
            _judge(arguments)
        if len(arguments.folders) > 1:
            page = report.write_side_by_side(
                arguments.folders, arguments.out or "comparison.html", arguments.data
            )
        else:
            page = report.write_report(arguments.folders[0], data=arguments.data, path=arguments.out)
        print(f"report: {page}")
        if arguments.lm_eval:
            from emollm.evaluate import interop

            for path in interop.export(arguments.folders[0], arguments.lm_eval):
                print(f"lm-eval layout: {path}")
    except (ValueError, OSError) as error:
        return _fail(error, DATA_PROBLEM)
    return DONE


def _judge(arguments: argparse.Namespace) -> None:
    from emollm.evaluate import judge

    for folder in arguments.folders:
        results = judge.judge_run(folder, arguments.judge_endpoint, arguments.judge_model)
        entry = results["sub_tasks"]["emo_o"]["judge"]
        print(
            f"judge {entry['model']}: {100 * entry['accuracy']:.1f} % of {entry['n']} open answers of {folder} "
            f"(the table, which is the score: {100 * results['sub_tasks']['emo_o']['accuracy']:.1f} %)"
        )


def run_compare(arguments: argparse.Namespace) -> int:
    """Run `emollm compare`; returns the exit code."""
    from dataset_build import storage
    from dataset_build.schema import SUB_TASKS
    from emollm.evaluate import compare
    from emollm.evaluate.run_folder import read_run

    unknown = [name for name in arguments.sub_task or () if name not in SUB_TASKS]
    if unknown:
        return _fail(f"--sub-task {unknown[0]}: not one of {', '.join(SUB_TASKS)}", USAGE)
    try:
        first, second = read_run(arguments.first), read_run(arguments.second)
        comparison = compare.compare_runs(first, second, arguments.sub_task)
        compare.print_comparison(first, second, comparison)
        if arguments.json:
            storage.write_json(arguments.json, compare.as_json(first, second, comparison))
            print(f"comparison: {arguments.json}")
    except (ValueError, OSError) as error:
        return _fail(error, DATA_PROBLEM)
    return DONE


def run_tasks(arguments: argparse.Namespace) -> int:
    """Run `emollm lmms-tasks`; returns the exit code."""
    from emollm.evaluate import interop

    try:
        present = interop.write_tasks(arguments.data, arguments.out)
    except (ValueError, OSError) as error:
        return _fail(error, DATA_PROBLEM)
    print(f"tasks: {arguments.out} ({', '.join(f'emobench_{name}' for name in present)})")
    return DONE


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
