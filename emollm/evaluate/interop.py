"""Results for other tools: the result files of lm-evaluation-harness and lmms-eval, and tasks that lmms-eval can run.

Both harnesses write one JSON of results and one JSON-lines file of samples per task, lmms-eval (0.7) as `<date>_results.json` and
`<date>_samples_<task>.jsonl`, lm-evaluation-harness (0.4) as `results_<date>.json` and `samples_<task>_<date>.jsonl` inside of a
folder named after the model. `export` writes the second, which tools of both read. A run has no date, so that the same run gives
the same files: where one belongs stands a date made of nothing, 1970-01-01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_build import storage
from dataset_build.labels import SUB_TASK_NAMES
from dataset_build.provenance import sha256_of_bytes
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.run_folder import by_uid, read_run
from emollm.evaluate.statistics import LEVEL

TASKS_FOLDER = Path(__file__).resolve().parent / "lmms_eval"
GROUP = "emobench"
DATE = "1970-01-01T00-00-00.000000"
METRICS = ("accuracy", "macro_f1", "uar", "auroc", "ece", "exact_accuracy", "wheel_accuracy")
# What the harnesses call them; `none` is the name of the filter that did nothing.
METRIC_NAMES = {
    "accuracy": "acc",
    "macro_f1": "f1_macro",
    "exact_accuracy": "exact",
    "wheel_accuracy": "wheel",
}
_OWN_INTERVAL = {"accuracy": "ci95", "exact_accuracy": "exact_ci95", "wheel_accuracy": "wheel_ci95"}


def export(folder: str, out: str) -> list[str]:
    """Write a finished run as lm-evaluation-harness does; returns the paths of the files, the results first."""
    run = read_run(folder)
    results = run.results
    scored = {name: entry for name, entry in results["sub_tasks"].items() if entry["n"]}
    target = storage.join(out, model_folder(results["name"]))
    rows = by_uid(run.samples).to_pylist()
    paths = [storage.join(target, f"results_{DATE}.json")]
    for name, entry in scored.items():
        mine = [
            row for row in rows if row["sub_task"] == name and row["demonstration"] == entry["demonstration"]
        ]
        lines = [json.dumps(_sample(number, row), ensure_ascii=False) for number, row in enumerate(mine)]
        paths.append(storage.join(target, f"samples_{GROUP}_{name}_{DATE}.jsonl"))
        storage.write_bytes(paths[-1], ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    storage.write_json(paths[0], _results(results, scored))
    return paths


def model_folder(name: str) -> str:
    """A model's name as the harnesses make a folder of it."""
    return re.sub(r"[\"<>:/\\|?*\[\]]+", "__", name)


def _results(results: dict[str, Any], scored: dict[str, Any]) -> dict[str, Any]:
    tasks = {f"{GROUP}_{name}": _task_scores(name, entry) for name, entry in scored.items()}
    counted = [f"{GROUP}_{name}" for name in results["overall"]["sub_tasks"]]
    groups = {}
    if counted:
        overall = results["overall"]
        groups[GROUP] = {
            "alias": GROUP, "acc,none": overall["accuracy"], "acc_stderr,none": _standard_error(overall["ci95"]),
        }  # fmt: skip
    names = [*groups, *tasks]
    better = {
        key.partition(",")[0]: not key.startswith("ece")
        for task in tasks.values()
        for key in task
        if _is_metric(key)
    }
    return {
        "results": {**groups, **tasks},
        "groups": groups,
        "group_subtasks": {GROUP: counted, **{task: [] for task in tasks}},
        "configs": {
            task: {
                "task": task,
                "dataset_path": results["data"],
                "test_split": results["split"],
                "output_type": "multiple_choice" if task != f"{GROUP}_emo_o" else "generate_until",
                "metadata": {"version": 1.0},
            }
            for task in tasks
        },
        "versions": dict.fromkeys(names, 1.0),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": dict.fromkeys(names, better),
        "n-samples": {
            f"{GROUP}_{name}": {"original": entry["n"], "effective": entry["n"]}
            for name, entry in scored.items()
        },
        "config": {
            "model": "emobench",
            "model_args": results["model"]["path"],
            "bootstrap_iters": results["recipe"]["bootstrap"]["samples"],
            "limit": results["recipe"].get("limit"),
        },
        "git_hash": results["code"]["commit"],
        "date": 0.0,
        "model_source": "emobench",
        "model_name": results["name"],
        "model_name_sanitized": model_folder(results["name"]),
        "emobench": {
            "data_digest": results["data_digest"],
            "inputs_digest": results["inputs_digest"],
            "synonyms_version": results["synonyms_version"],
            "schema_version": results["schema_version"],
        },
    }


def _is_metric(key: str) -> bool:
    return "," in key and "_stderr" not in key


def _task_scores(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = {"alias": f" - {SUB_TASK_NAMES[name]}"}
    for metric in METRICS:
        value = entry.get(metric)
        if value is None:
            continue
        key = METRIC_NAMES.get(metric, metric)
        bounds = entry.get(_OWN_INTERVAL.get(metric, "")) or entry.get("intervals", {}).get(metric)
        scores[f"{key},none"] = value
        scores[f"{key}_stderr,none"] = _standard_error(bounds)
    return scores


def _standard_error(bounds: Sequence[float] | None) -> float | str:
    """The standard error that a normal distribution with this 95 % interval would have; `N/A` without one."""
    from statistics import NormalDist

    if bounds is None:
        return "N/A"
    return round((bounds[1] - bounds[0]) / (2 * NormalDist().inv_cdf((1 + LEVEL) / 2)), 6)


def _sample(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a samples file."""
    scored = bool(row["options"]) and len(row["scores"] or []) == len(row["options"])
    doc = {
        name: row[name]
        for name in ("uid", "source", "sub_task", "prompt", "options", "gold_answers", "media_sha256")
    }
    asked = {"arg_0": row["prompt"]}
    if scored:
        arguments = {
            f"gen_args_{n}": {**asked, "arg_1": f" {option}"} for n, option in enumerate(row["options"])
        }
        said: list[Any] = [
            [[str(score), str(option == row["answer"])]]
            for option, score in zip(row["options"], row["scores"])
        ]
    else:
        arguments = {"gen_args_0": asked}
        said = [[row.get("generated") or row["answer"]]]
    return {
        "doc_id": number,
        "doc": doc,
        "target": row["gold"],
        "arguments": arguments,
        "resps": said,
        "filtered_resps": [one[0] for one in said],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": _hash(doc),
        "prompt_hash": _hash(row["prompt"]),
        "target_hash": _hash(row["gold"]),
        "acc": float(row["correct"]),
        "status": row["status"],
        "group": row["group"],
    }


def _hash(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return sha256_of_bytes(text.encode("utf-8", "replace"))


def write_tasks(data: str, out: str) -> list[str]:
    """Write the tasks of an EmoBench folder for lmms-eval's `--include_path`; returns the sub-tasks that have test rows.

    Raises EvaluationError where `data` is no finished EmoBench, or one without a test split.
    """
    manifest = storage.join(data, "manifest.json")
    if not storage.exists(manifest):
        raise EvaluationError(f"{manifest} is not there; build EmoBench first, or name its folder")
    if not any(name.startswith("test/") for name in storage.read_json(manifest)["files"]):
        raise EvaluationError(
            f"{data}: no file in test/, which is the split that the tasks read; build it with one"
        )
    place = data if "://" in data else str(Path(data).resolve())
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    present, counted = _sub_tasks_of(place)
    for source in sorted(TASKS_FOLDER.iterdir()):
        if source.is_file() and source.name.startswith(("emobench", "_emobench")):
            text = source.read_text(encoding="utf-8").replace("EMOBENCH/", f"{place}/")
            if source.name == f"{GROUP}.yaml":
                text = "\n".join(line for line in text.splitlines() if _kept(line, counted)) + "\n"
            (folder / source.name).write_text(text, encoding="utf-8")
    return present


def _kept(line: str, counted: Sequence[str]) -> bool:
    """Lines of the group's YAML, but for sub-tasks that do not count for the mean."""
    name = line.strip().removeprefix(f"- {GROUP}_")
    return name not in SUB_TASK_NAMES or name in counted


def _sub_tasks_of(data: str) -> tuple[list[str], list[str]]:
    """(sub-tasks with test rows, those of them that have more than demonstrations)."""
    import pyarrow.parquet as pq

    present: set[str] = set()
    counted: set[str] = set()
    for name in storage.list_files(storage.join(data, "test")):
        if name.endswith(".parquet"):
            with storage.open_read(storage.join(data, "test", name)) as stream:
                rows = pq.read_table(stream, columns=["sub_task", "demonstration"]).to_pylist()
            present |= {row["sub_task"] for row in rows}
            counted |= {row["sub_task"] for row in rows if not row["demonstration"]}
    return [name for name in SUB_TASK_NAMES if name in present], [
        name for name in SUB_TASK_NAMES if name in counted
    ]
