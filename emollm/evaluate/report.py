"""report.html: one page that needs nothing else, made from results.json, samples.parquet and (for pictures) the data.

Of one run, or of several runs on the same samples side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_build import storage
from dataset_build.labels import SUB_TASK_NAMES
from dataset_build.provenance import sha256_of_bytes
from emollm.evaluate import charts, compare, embedded
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.records import BASELINES, DEMONSTRATION
from emollm.evaluate.run_folder import Run, find, read_results, read_run, read_samples
from emollm.evaluate.thumbnails import make_thumbnails

TEMPLATE = "report.html.j2"
PICTURE_BUDGET_BYTES = 4_000_000
# Up to so many samples all pictures are on the page, within the budget; above it those of remarkable samples alone.
ALL_PICTURES_UP_TO = 1500
MAX_RUNS = 6
FEW_CLUSTERS = 10

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


def write_report(
    out: str, results: dict[str, Any] | None = None, data: str | None = None, path: str | None = None
) -> str:
    """Write the page of the evaluation in OUT (or OUT/evaluation) to `path` (report.html beside its results), and return that.

    `results` is read from OUT/results.json where it is not given; `data` overrides the EmoBench folder named in it. Where
    that folder is gone, the page is made without pictures and says so.
    """
    if results is None:
        out = find(out)
        results = read_results(out)
    path = path or storage.join(out, "report.html")
    storage.write_bytes(path, render([Run(out, results, read_samples(out, results))], data).encode())
    return path


def write_side_by_side(folders: Sequence[str], path: str, data: str | None = None) -> str:
    """Write one page of several evaluations of the same samples to `path`, and return it.

    Raises EvaluationError where they are too many or not of the same data, split and samples.
    """
    if len(folders) > MAX_RUNS:
        raise EvaluationError(f"{len(folders)} runs; a page holds {MAX_RUNS} side by side, leave some out")
    runs = [read_run(folder) for folder in folders]
    storage.write_bytes(path, render(runs, data).encode())
    return path


def render(runs: Sequence[Run], data: str | None = None) -> str:
    """The page as text. Raises EvaluationError where the runs cannot be compared."""
    import jinja2

    for other in runs[1:]:
        compare.check_comparable(runs[0], other, list(SUB_TASK_NAMES))
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
        "p_value": compare.p_value,
    }
    environment.globals |= {
        "range_svg": charts.range_svg,
        "calibration_svg": charts.calibration_svg,
        "shade": charts.shade,
        "statements": statements,
        "invalid": invalid,
        "groups_of": _tasks,
    }
    names = compare.run_names(runs)
    rows_of = [embedded.rows_by_uid(run) for run in runs]
    remarkable = [embedded.highlights(rows) for rows in rows_of]
    pictures, media, notice = _pictures(rows_of[0], remarkable, data or runs[0].results["data"])
    page = {
        **embedded.embed(rows_of, names, pictures),
        "media": media,
        "highlights": [{task: found._asdict() for task, found in one.items()} for one in remarkable],
        "tasks": SHORT_TASKS,
        "baselines": SHORT_NAMES,
        "demonstration": DEMONSTRATION,
    }
    return environment.get_template(TEMPLATE).render(
        runs=[
            {
                "results": run.results,
                "name": name,
                "letter": compare.letter_of(place),
                "summary": summary(run.results),
                "baselines": _baselines(run.results),
            }
            for place, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        comparisons=[compare.compare_runs(runs[0], other) for other in runs[1:]],
        title=f"EmoBench: {' and '.join(names)}",
        split=runs[0].results["split"],
        names=SUB_TASK_NAMES,
        short_tasks=SHORT_TASKS,
        short_names=SHORT_NAMES,
        demonstration=DEMONSTRATION,
        few_clusters=FEW_CLUSTERS,
        n_samples=len(rows_of[0]),
        picture_notice=notice,
        choices=_choices(rows_of),
        data_json=json_for_script(page),
    )


def _tasks(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scored sub-tasks: those that count, demonstrations, and those without a sample."""
    tasks = results["sub_tasks"]
    return {
        "real": {name: entry for name, entry in tasks.items() if entry["n"] and not entry["demonstration"]},
        "shown_only": {name: entry for name, entry in tasks.items() if entry["n"] and entry["demonstration"]},
        "absent": {name: entry for name, entry in tasks.items() if not entry["n"]},
    }


def _baselines(results: dict[str, Any]) -> list[str]:
    entries = results["sub_tasks"].values()
    return [name for name in BASELINES if any(name in entry.get("baselines", {}) for entry in entries)]


def _choices(rows_of: Sequence[list[dict[str, Any]]]) -> dict[str, list[str]]:
    """What the page can filter by: the values that occur, sub-tasks in their order."""
    first = rows_of[0]
    tasks = {row["sub_task"] for row in first}
    return {
        "task": [name for name in SUB_TASK_NAMES if name in tasks],
        "source": sorted({row["source"] for row in first}),
        "gold": sorted({" / ".join(row["gold_answers"]) for row in first}),
        "status": sorted({row["status"] for rows in rows_of for row in rows}),
    }


def _pictures(
    rows: Sequence[dict[str, Any]], remarkable: Sequence[Mapping[str, embedded.Highlight]], data: str
) -> tuple[dict[int, int], list[list[Any]], str]:
    """(number of the picture by place of the sample, [URI, frames] of each picture, a sentence on what is shown)."""
    order = [
        place for one in remarkable for found in one.values() for place in (*found.confident, *found.hardest)
    ]
    if len(rows) <= ALL_PICTURES_UP_TO:
        by_hash = {place: sha256_of_bytes(row["uid"].encode()) for place, row in enumerate(rows)}
        order += sorted(by_hash, key=lambda place: by_hash[place])
    wanted = list(dict.fromkeys(order))
    made = make_thumbnails(data, (rows[place] for place in wanted), PICTURE_BUDGET_BYTES)
    number = {uri: n for n, uri in enumerate(dict.fromkeys(thumbnail.uri for thumbnail in made.values()))}
    frames = {thumbnail.uri: thumbnail.frames for thumbnail in made.values()}
    pictures = {place: number[made[rows[place]["uid"]].uri] for place in wanted if rows[place]["uid"] in made}
    if not made:
        notice = "Without pictures: the EmoBench folder that was scored is not there any more."
        if storage.exists(storage.join(data, "manifest.json")):
            notice = "Without pictures: none of these samples has one that can be read."
    elif len(pictures) < len(rows):
        notice = f"Pictures of {len(pictures)} of {len(rows)} samples are on this page."
    else:
        notice = ""
    return pictures, [[uri, frames[uri]] for uri in number], notice


def json_for_script(value: Any) -> str:
    """JSON that can stand inside a <script> element, whatever the texts in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
    )


def invalid(entry: dict[str, Any]) -> str:
    """The invalid answers by kind, those that occur: `3 empty, 1 refused`; `none`."""
    return ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in entry["invalid"].items() if n) or "none"


def statements(entry: dict[str, Any]) -> list[dict[str, str]]:
    """For each baseline and reference whether the model beats it, as `{verdict: better|open|worse, text}`."""
    said = []
    for name, other in {**entry["baselines"], **entry.get("references", {})}.items():
        low, high = other["diff_ci95"]
        gain = f"{charts.points(other['diff'])} points, 95 % interval {charts.points(low)} to {charts.points(high)}"
        if entry.get("clusters") == 1:
            verdict, text = (
                "open",
                f"One group of samples says nothing about {BASELINE_NAMES[name]} ({gain}).",
            )
        elif low > 0:
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
        beaten = [SHORT_NAMES[b] for b, other in entry["baselines"].items() if other["beaten"]]
        rest = [SHORT_NAMES[b] for b, other in entry["baselines"].items() if not other["beaten"]]
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
