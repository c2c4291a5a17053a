"""Which model is the champion: decided by a paired bootstrap on the same test rows, and written down either way.

Data may grow between two trainings, so the same rows are asked for, not the same data digest: with equal digests all
rows are the same, with different ones a row counts as the same where uid, prompt, options, right answers and media are.
Every sub-task of either overall mean must have at least half of its rows in common (of the larger of the two
evaluations), otherwise the champion stays. What was compared and left out is in the reason, both data digests in the
history.

REGISTRY/champion.json                        what is in use: model, scores, data, when and why (replaced atomically)
REGISTRY/history.jsonl                        one line per decision, promoted or not
REGISTRY/models/<digest16>/{model,evaluation} copies of promoted models, so that the next training cannot change them
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections import Counter
from typing import Any, NamedTuple

from dataset_build import storage

KEEP = 3  # promoted models kept, the champion among them
LEAST_COMMON_SHARE = 0.5
_EVALUATION_FILES = ("results.json", "samples.parquet", "report.html")
_QUESTION = ("uid", "prompt", "options", "gold_answers", "media_sha256")


class Shared(NamedTuple):
    """Rows of one sub-task: put to both models, to the challenger, to the champion."""

    both: int
    challenger: int
    champion: int

    @property
    def enough(self) -> bool:
        return self.both > 0 and self.both >= LEAST_COMMON_SHARE * max(self.challenger, self.champion)


class Comparison(NamedTuple):
    """Challenger minus champion: the mean over sub-tasks of accuracy differences on the `n` rows both were asked.

    `sub_tasks` holds the difference of each compared sub-task, `rows` how many rows each sub-task of either evaluation
    has. `left_out` counts the challenger's rows that the champion was not asked in the same words, with the same picture.
    """

    diff: float
    ci95: tuple[float, float]
    n: int
    left_out: int
    sub_tasks: dict[str, float]
    rows: dict[str, Shared]

    @property
    def too_little(self) -> list[str]:
        """The sub-tasks of which too few rows were put to both models."""
        return [task for task, shared in self.rows.items() if not shared.enough]

    def describe_rows(self) -> str:
        """For example `on 30 rows (emo_c 30 of 40; 10 rows were put to one model only)`."""
        tasks = [
            f"{task} {shared.both} of {max(shared.challenger, shared.champion)}"
            for task, shared in self.rows.items()
        ]
        alone = sum(shared.challenger + shared.champion - 2 * shared.both for shared in self.rows.values())
        notes = [", ".join(tasks)] if tasks else []
        if alone:
            notes.append(f"{alone} row{'s were' if alone > 1 else ' was'} put to one model only and left out")
        return f"on {self.n} rows" + (f" ({'; '.join(notes)})" if notes else "")


def read_champion(registry: str) -> dict[str, Any] | None:
    path = storage.join(registry, "champion.json")
    return storage.read_json(path) if storage.exists(path) else None


def compare(challenger: str, champion: str, draws: int, seed: int) -> Comparison:
    """Paired, clustered bootstrap over two evaluation folders, on the rows that put the same question to both.

    Each model answered its rows when they were held out from it; a champion is never asked rows of newer data, which it
    may have been trained on. Demonstration rows stay out, as they do of the overall mean.
    """
    from emollm.evaluate.metrics import TaskScores, mean_over_tasks

    ours, theirs = _correctness(challenger), _correctness(champion)
    common = sorted(ours.keys() & theirs.keys())
    counts = [Counter(rows[question][0] for question in rows) for rows in (ours, theirs)]
    both = Counter(ours[question][0] for question in common)
    shared = {
        task: Shared(both[task], counts[0][task], counts[1][task])
        for task in sorted(counts[0].keys() | counts[1].keys())
    }
    if not common:
        return Comparison(0.0, (0.0, 0.0), 0, len(ours), {}, shared)
    gains: dict[str, tuple[list[float], list[str]]] = {}
    for question in common:
        task, group, correct = ours[question]
        values, groups = gains.setdefault(task, ([], []))
        values.append(float(correct) - float(theirs[question][2]))
        groups.append(group)
    tasks = {task: TaskScores(values, groups) for task, (values, groups) in gains.items()}
    diff, interval = mean_over_tasks(tasks, draws, seed)
    per_task = {task: sum(values) / len(values) for task, (values, _) in gains.items()}
    left_out = len(ours) - len(common)
    return Comparison(diff, (interval.low, interval.high), len(common), left_out, per_task, shared)


def _correctness(evaluation: str) -> dict[str, tuple[str, str, bool]]:
    """Question → (sub-task, cluster, correct) of the rows that count."""
    import pyarrow.parquet as pq

    columns = [*_QUESTION, "sub_task", "group", "correct", "demonstration"]
    with storage.open_read(storage.join(evaluation, "samples.parquet")) as stream:
        rows = pq.read_table(stream, columns=columns).to_pylist()
    return {
        json.dumps([row[name] for name in _QUESTION]): (row["sub_task"], row["group"], row["correct"])
        for row in rows
        if not row["demonstration"]
    }


def decide(
    champion: dict[str, Any] | None, model_digest: str, comparison: Comparison | None
) -> tuple[str, str]:
    """("promoted", "kept" or "unchanged", the reason with its numbers)."""
    if champion is None:
        return "promoted", "there was no champion yet"
    if champion["model_digest"] == model_digest:
        return "unchanged", "this very model is the champion already"
    assert comparison is not None, "a comparison is needed where the champion is another model"
    low, high = comparison.ci95
    numbers = f"difference {comparison.diff:+.4f} [{low:+.4f}, {high:+.4f}] {comparison.describe_rows()}"
    if not comparison.n or comparison.too_little:
        return "kept", (
            f"the data changed too much to compare {', '.join(comparison.too_little) or 'anything'}: at least "
            f"{LEAST_COMMON_SHARE:.0%} of a sub-task's rows must have been put to both models; {numbers}; "
            "delete champion.json to start anew"
        )
    if low > 0:
        return "promoted", f"better than the champion: {numbers}"
    return "kept", f"not shown to be better than the champion: {numbers}"


def write_decision(
    registry: str,
    decision: str,
    reason: str,
    entry: dict[str, Any],
    *,
    model: str,
    evaluation: str,
) -> dict[str, Any]:
    """Append the decision to history.jsonl and, where it is a promotion, copy the model and make it the champion.

    `entry` holds at least `model_digest` and `data_digest`, what the model was scored on. The champion's pointer moves only after its copy is whole.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"decision": decision, "reason": reason, "at": now, **entry}
    if decision == "promoted":
        home = storage.join(registry, "models", entry["model_digest"][:16])
        _copy(model, storage.join(home, "model"), _model_files(model))
        _copy(evaluation, storage.join(home, "evaluation"), list(_EVALUATION_FILES))
        champion = {**record, "model": f"models/{entry['model_digest'][:16]}/model"}
        champion["evaluation"] = f"models/{entry['model_digest'][:16]}/evaluation"
        storage.write_json(storage.join(registry, "champion.json"), champion)
    history = storage.join(registry, "history.jsonl")
    before = storage.read_bytes(history) if storage.exists(history) else b""
    storage.write_bytes(history, before + (json.dumps(record, ensure_ascii=False) + "\n").encode())
    _forget_old_models(registry)
    return record


def read_history(registry: str) -> list[dict[str, Any]]:
    path = storage.join(registry, "history.jsonl")
    if not storage.exists(path):
        return []
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines() if line.strip()]


def _model_files(model: str) -> list[str]:
    """training.json and the folds that it names; checkpoints of the training stay behind."""
    folds = [fold["path"] for fold in storage.read_json(storage.join(model, "training.json"))["folds"]]
    files = storage.list_files(model)
    return [
        name
        for name in files
        if name == "training.json" or any(name.startswith(f"{fold}/") for fold in folds)
    ]


def _copy(source: str, target: str, names: list[str]) -> None:
    """Copy files of `source`; on a local disk the folder appears at once, whole."""
    if storage.is_remote(source) or storage.is_remote(target):
        for name in names:
            storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))
        return
    partial = f"{target}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in names:
        os.makedirs(os.path.dirname(os.path.join(partial, name)), exist_ok=True)
        shutil.copyfile(os.path.join(source, name), os.path.join(partial, name))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _forget_old_models(registry: str) -> None:
    """Remove copies of models that were promoted longer ago than the last KEEP promotions."""
    promoted = [
        entry["model_digest"][:16] for entry in read_history(registry) if entry["decision"] == "promoted"
    ]
    keep = set(list(dict.fromkeys(reversed(promoted)))[:KEEP])
    champion = read_champion(registry)
    if champion:
        keep.add(champion["model_digest"][:16])
    folder = storage.join(registry, "models")
    for name in {path.split("/")[0] for path in storage.list_files(folder)} - keep:
        if storage.is_remote(folder):
            filesystem, inner = storage.filesystem(storage.join(folder, name))
            filesystem.rm(inner, recursive=True)
        else:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
