"""report.html: one page that needs nothing else, made from results.json, samples.parquet and (for pictures) the data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_build import storage
from dataset_build.labels import SUB_TASK_NAMES
from dataset_build.provenance import sha256_of_bytes
from emollm.evaluate import charts
from emollm.evaluate.protocol import EvaluationError, Row, read_rows
from emollm.evaluate.records import BASELINES, DEMONSTRATION
from emollm.evaluate.score import option_probabilities
from emollm.evaluate.thumbnails import make_thumbnails

TEMPLATE = "report.html.j2"
PICTURE_BUDGET_BYTES = 4_000_000
MAX_SHOWN_PER_SUB_TASK = 240

BASELINE_NAMES = {
    "majority": "the most frequent answer",
    "random": "a random answer",
    "text_only": "the same model without the picture",
    "untrained": "the model before training",
    "linear_probe": "a linear probe on the frozen vision tower",
    "nearest_neighbour": "the answer of the nearest training picture",
}
SHORT_TASKS = {name: title.partition(" (")[0] for name, title in SUB_TASK_NAMES.items()}
SHORT_NAMES = {
    "majority": "majority",
    "random": "random",
    "text_only": "text only",
    "untrained": "untrained",
    "linear_probe": "linear probe",
    "nearest_neighbour": "nearest neighbour",
}


def write_report(out: str, results: dict[str, Any] | None = None, data: str | None = None) -> str:
    """Write OUT/report.html and return its path.

    `results` is read from OUT/results.json where it is not given; `data` overrides the EmoBench folder named in it. Where
    that folder is gone, the page is made without pictures and says so.
    """
    results_path = storage.join(out, "results.json")
    if results is None:
        if not storage.exists(results_path):
            raise EvaluationError(
                f"{results_path} is not there; run `emollm evaluate` first, or name another folder"
            )
        results = storage.read_json(results_path)
    samples = read_samples_table(storage.join(out, "samples.parquet"))
    path = storage.join(out, "report.html")
    storage.write_bytes(path, render(results, samples, data or results["data"]).encode())
    return path


def read_samples_table(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if not storage.exists(path):
        raise EvaluationError(f"{path} is not there; run `emollm evaluate` again")
    with storage.open_read(path) as stream:
        return pq.read_table(stream).to_pylist()


def render(results: dict[str, Any], samples: Sequence[dict[str, Any]], data: str) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=jinja2.select_autoescape(["html", "j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": charts.percent,
        "points": charts.points,
        "interval": charts.interval,
        "number": charts.number,
    }
    environment.globals |= {"range_svg": charts.range_svg, "shade": charts.shade, "statements": statements}
    gallery, notice = make_gallery(samples, data)
    tasks = results["sub_tasks"]
    return environment.get_template(TEMPLATE).render(
        results=results,
        title=f"EmoLLM on EmoBench: {results['name']}",
        names=SUB_TASK_NAMES,
        short_tasks=SHORT_TASKS,
        baseline_names=BASELINE_NAMES,
        short_names=SHORT_NAMES,
        demonstration=DEMONSTRATION,
        real={name: entry for name, entry in tasks.items() if entry["n"] and not entry["demonstration"]},
        shown_only={name: entry for name, entry in tasks.items() if entry["n"] and entry["demonstration"]},
        absent={name: entry for name, entry in tasks.items() if not entry["n"]},
        summary=summary(results),
        gallery_json=json_for_script(gallery),
        gallery_notice=notice,
        n_shown=len(gallery["items"]),
        n_samples=len(samples),
        baselines=[
            name for name in BASELINES if any(name in entry.get("baselines", {}) for entry in tasks.values())
        ],
    )


def json_for_script(value: Any) -> str:
    """JSON that can stand inside a <script> element, whatever the texts in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
    )


def statements(entry: dict[str, Any]) -> list[dict[str, str]]:
    """For each baseline and reference whether the model beats it, as `{verdict: better|open|worse, text}`."""
    said = []
    for name, other in {**entry["baselines"], **entry.get("references", {})}.items():
        low, high = other["diff_ci95"]
        gain = f"{charts.points(other['diff'])} points, 95 % interval {charts.points(low)} to {charts.points(high)}"
        if low > 0:
            verdict, text = "better", f"Better than {BASELINE_NAMES[name]} ({gain})."
        elif high < 0:
            verdict, text = "worse", f"Worse than {BASELINE_NAMES[name]} ({gain})."
        else:
            verdict, text = "open", f"Not shown to differ from {BASELINE_NAMES[name]} ({gain})."
        said.append({"verdict": verdict, "text": text})
    return said


def summary(results: dict[str, Any]) -> list[str]:
    """The first paragraph: the overall score, and where the model beats its baselines and where it does not."""
    tasks = {
        n: entry for n, entry in results["sub_tasks"].items() if entry["n"] and not entry["demonstration"]
    }
    overall = results["overall"]
    if not tasks:
        return ["No sub-task with openly licensed, non-demonstration samples was scored."]
    names = ", ".join(SHORT_TASKS[name] for name in overall["sub_tasks"])
    lines = [
        f"Mean accuracy {charts.percent(overall['accuracy'])} (95 % interval {charts.interval(overall['ci95'])}) "
        f"over {len(overall['sub_tasks'])} sub-task{'s' if len(overall['sub_tasks']) != 1 else ''}: {names}."
    ]
    for name, entry in tasks.items():
        beaten = [SHORT_NAMES[b] for b, other in entry["baselines"].items() if other["diff_ci95"][0] > 0]
        rest = [SHORT_NAMES[b] for b, other in entry["baselines"].items() if other["diff_ci95"][0] <= 0]
        parts = []
        if beaten:
            parts.append(f"beats {_listed(beaten)}")
        if rest:
            parts.append(f"is not shown to beat {_listed(rest)}")
        if parts:
            lines.append(f"{SHORT_TASKS[name]}: the model {' and '.join(parts)}.")
    return lines


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def make_gallery(samples: Sequence[dict[str, Any]], data: str) -> tuple[dict[str, Any], str]:
    """(`{items, media}` for the page's script, a sentence on what is shown).

    At most MAX_SHOWN_PER_SUB_TASK samples per sub-task, those with the smallest sha256 of their uid, so that the choice does
    not depend on how the model did.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: sha256_of_bytes(sample["uid"].encode())):
        by_task.setdefault(sample["sub_task"], []).append(sample)
    order = [name for name in SUB_TASK_NAMES if name in by_task]
    shown = [sample for name in order for sample in by_task[name][:MAX_SHOWN_PER_SUB_TASK]]
    rows = _rows_with_media(data, {sample["uid"] for sample in shown})
    turns = [
        s
        for turn in itertools.zip_longest(*(by_task[n][:MAX_SHOWN_PER_SUB_TASK] for n in order))
        for s in turn
        if s
    ]
    thumbnails = make_thumbnails(
        data, [rows[s["uid"]] for s in turns if s["uid"] in rows], PICTURE_BUDGET_BYTES
    )
    place = {sha256: number for number, sha256 in enumerate(thumbnails)}
    items = [_item(sample, place) for sample in shown]
    notice = f"{len(items)} of {len(samples)} samples, chosen by a hash of their name."
    if not rows:
        notice += " The pictures are not shown: the EmoBench folder that was scored is not there any more."
    elif any(item["media"] is None for item in items):
        notice += " Some pictures are left out to keep this page small."
    return {"items": items, "media": [[t.uri, t.frames] for t in thumbnails.values()]}, notice


def _rows_with_media(data: str, uids: set[str]) -> dict[str, Row]:
    manifest_path = storage.join(data, "manifest.json")
    if not storage.exists(manifest_path):
        return {}
    return {row.uid: row for row in read_rows(data, storage.read_json(manifest_path)) if row.uid in uids}


def _item(sample: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    """What the page's script needs of one sample."""
    options = sample["options"] or []
    probabilities = option_probabilities(sample["scores"]) if options else []
    others = [
        (name, sample[f"{name}_answer"]) for name in SHORT_NAMES if sample.get(f"{name}_answer") is not None
    ]
    return {
        "uid": sample["uid"],
        "task": sample["sub_task"],
        "source": sample["source"],
        "right": sample["correct"],
        "gold": " / ".join(sample["gold_answers"]),
        "answer": sample["answer"],
        "counts": sample["counts_as"],
        "status": sample["status"],
        "p": round(sample["probability"], 3),
        "prompt": sample["prompt"],
        "options": [[option, round(p, 3)] for option, p in zip(options, probabilities)],
        "others": [[SHORT_NAMES[name], answer, bool(sample[f"{name}_correct"])] for name, answer in others],
        "demo": sample["demonstration"],
        "media": next((place[sha] for sha in sample["media_sha256"] if sha in place), None),
    }
