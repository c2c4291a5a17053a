"""OUT/README.md and OUT/stats/*.png: what is in a build, what was left out and why, and what it cannot show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_build import ledger, plots, schema, storage
from dataset_build.labels import SUB_TASK_NAMES

DEMONSTRATION = "demonstration, separable by style"
NO_SAMPLE = "no openly licensed sample"
_COLUMNS = ("source", "sub_task", "split", "fold", "answer", "demonstration")
_MEDIA_COLUMNS = tuple(f"media.list.element.{name}" for name in ("kind", "width", "height"))


@dataclass
class Stats:
    """Counts over all kept rows."""

    labels: Counter[tuple[str, str, str, str]] = field(
        default_factory=Counter
    )  # sub_task, source, label, split
    folds: Counter[tuple[str, int]] = field(default_factory=Counter)  # source, fold
    sides: dict[str, Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )  # source → longer side, px
    demonstrations: set[str] = field(default_factory=set)  # sub-tasks with demonstration rows only
    rejects: list[dict[str, Any]] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)


def collect(out: str, manifest: Mapping[str, Any]) -> Stats:
    """Read the columns that are counted; pictures stay on disk."""
    import pyarrow.parquet as pq

    stats = Stats()
    real: set[str] = set()
    for path in manifest["files"]:
        if "/" not in path:
            continue
        with storage.open_read(storage.join(out, path)) as stream:
            for row in pq.ParquetFile(stream).read(columns=[*_COLUMNS, *_MEDIA_COLUMNS]).to_pylist():
                stats.labels[row["sub_task"], row["source"], row["answer"], row["split"]] += 1
                (stats.demonstrations if row["demonstration"] else real).add(row["sub_task"])
                if row["fold"] is not None:
                    stats.folds[row["source"], row["fold"]] += 1
                for medium in row["media"]:
                    if medium["kind"] != "audio":
                        stats.sides[row["source"]][max(medium["width"], medium["height"])] += 1
    stats.demonstrations -= real
    for name, target in (("rejects.parquet", stats.rejects), ("duplicates.parquet", stats.duplicates)):
        with storage.open_read(storage.join(out, name)) as stream:
            target += pq.read_table(stream).to_pylist()
    return stats


def write(out: str, manifest: Mapping[str, Any]) -> None:
    """Write the card and its plots."""
    stats = collect(out, manifest)
    for name, picture in _plots(stats).items():
        storage.write_bytes(storage.join(out, "stats", name), picture)
    storage.write_bytes(storage.join(out, "README.md"), render(manifest, stats).encode())


def render(manifest: Mapping[str, Any], stats: Stats) -> str:
    """The card as Markdown."""
    parts = [
        _head(manifest, stats),
        _sub_tasks(stats),
        _labels(stats),
        _ledger(manifest),
        _splits(manifest, stats),
        _left_out(stats),
        _twins(stats),
        _sources(manifest),
        _reading(manifest),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def text_summary(manifest: Mapping[str, Any], stats: Stats) -> str:
    """Ledger, labels and rejects for a terminal."""
    rows = [["sub-task", "source", "label", *schema.SPLITS]]
    for sub_task, source, label in sorted({key[:3] for key in stats.labels}):
        rows.append(
            [sub_task, source, label, *(str(stats.labels[sub_task, source, label, s]) for s in schema.SPLITS)]
        )
    tables = [
        ledger.table(manifest["sources"]),
        ledger.aligned(rows, right_from=3),
        ledger.reject_table(stats.rejects),
    ]
    return "\n\n".join(tables)


def _head(manifest: Mapping[str, Any], stats: Stats) -> str:
    kept, out_of = stats.labels.total(), sum(_totals(manifest).values())
    code = manifest["code"]
    commit = "" if code["commit"] == "unknown" else f", commit {code['commit'][:12]}"
    dirty = " with uncommitted changes" if code["dirty"] else ""
    return f"""# EmoBench: {manifest["recipe"]["name"]}

{kept:,} samples out of {out_of:,} records from {len(manifest["sources"])} sources: pictures and clips with an instruction
and an answer, in six sub-tasks of emotional understanding. Built by version {code["version"]}{commit}{dirty}; digest
`{manifest["digest"][:16]}`, schema {manifest["schema_version"]}."""


def _totals(manifest: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: sum(row["records"] for row in splits.values()) for name, splits in manifest["sources"].items()
    }


def _sub_tasks(stats: Stats) -> str:
    rows = []
    for sub_task, title in SUB_TASK_NAMES.items():
        split = Counter(
            {
                s: sum(n for key, n in stats.labels.items() if key[0] == sub_task and key[3] == s)
                for s in schema.SPLITS
            }
        )
        labels = {key[2] for key in stats.labels if key[0] == sub_task}
        note = (
            NO_SAMPLE
            if not labels and sub_task == "hate"
            else "no sample in this build"
            if not labels
            else ""
        )
        note = DEMONSTRATION if sub_task in stats.demonstrations else note
        rows.append([title, *(f"{split[s]:,}" for s in schema.SPLITS), len(labels) or "–", note])
    text = "## Sub-tasks\n\n" + _table(["sub-task", *schema.SPLITS, "labels", "note"], rows)
    if stats.demonstrations:
        text += (
            f'\n\n"{DEMONSTRATION[0].upper()}{DEMONSTRATION[1:]}": these rows only exercise the path from a source to a '
            "score. Their classes differ in style, so a score on them says nothing about the sub-task, and they stay out "
            "of the overall mean."
        )
    return text


def _labels(stats: Stats) -> str:
    rows = []
    for sub_task, source, label in sorted(
        {key[:3] for key in stats.labels}, key=lambda key: (_order(key[0]), key)
    ):
        rows.append(
            [sub_task, source, label, *(stats.labels[sub_task, source, label, s] for s in schema.SPLITS)]
        )
    return "## Labels\n\n![label counts](stats/labels.png)\n\n" + _table(
        ["sub-task", "source", "label", *schema.SPLITS], rows
    )


def _order(sub_task: str) -> int:
    return schema.SUB_TASKS.index(sub_task)


def _ledger(manifest: Mapping[str, Any]) -> str:
    rows = [
        [source, split, *(f"{counts[name]:,}" for name in ledger.FIELDS)]
        for source, splits in manifest["sources"].items()
        for split, counts in splits.items()
    ]
    return (
        "## Ledger\n\nEvery row of an annotation is a record, one per sub-task it serves, and none is lost: records = kept + "
        "rejected + duplicates. A record that was rejected before splits were drawn counts under train.\n\n"
        + _table(["source", "split", *ledger.FIELDS], rows)
    )


def _splits(manifest: Mapping[str, Any], stats: Stats) -> str:
    recipe, facts = manifest["recipe"], manifest["source_facts"]
    lines = ["## Splits", ""]
    by_mode = defaultdict(list)
    for name, fact in facts.items():
        by_mode[fact["split"]].append(f"{name} (by `{fact['group_key']}`)")
    if by_mode["folds"]:
        folds = recipe["splits"]["folds"]
        lines.append(
            f"* **{folds} folds**: {', '.join(by_mode['folds'])}. All rows of a group share a `fold`; the protocol of fold k tests "
            "fold k and trains on the others. The folders show protocol 0: fold 0 in test, the rest in train. There are no "
            "val rows: nothing is selected on them."
        )
        names = sorted({source for source, _ in stats.folds})
        rows = [[name, *(stats.folds[name, fold] for fold in range(folds))] for name in names]
        lines += ["", _table(["rows by fold", *map(str, range(folds))], rows), ""]
    if by_mode["shares"]:
        shares = recipe["splits"]
        share = f"{shares['test_share']:.0%} test, {shares['val_share']:.0%} val"
        lines.append(f"* **Shares by group** ({share}): {', '.join(by_mode['shares'])}.")
    if by_mode["official"]:
        lines.append(
            f"* **The source's own split**, val carved from train by group: {', '.join(by_mode['official'])}."
        )
    return "\n".join(lines)


def _left_out(stats: Stats) -> str:
    rules, faults = _partition(stats.rejects)
    lines = ["## Left out", "", "![rejects](stats/rejects.png)", ""]
    if faults:
        counts = Counter((reject["source"], reject["reason"]) for reject in faults)
        rows = [
            [source, reason, n, schema.REJECT_REASONS[reason]]
            for (source, reason), n in sorted(counts.items())
        ]
        lines += ["Faulty rows:", "", _table(["source", "reason", "rows", "meaning"], rows), ""]
    else:
        lines += ["No row was faulty.", ""]
    unclear: dict[str, list[str]] = defaultdict(list)
    others: Counter[tuple[str, str]] = Counter()
    for reject in rules:
        if reject["detail"].startswith("unclear emoji "):
            unclear[reject["detail"].removeprefix("unclear emoji ")].append(reject["source"])
        else:
            others[reject["source"], _rule_name(reject["detail"])] += 1
    if others:
        rows = [
            [source, rule, f"{n:,}"]
            for (source, rule), n in sorted(others.items(), key=lambda item: (item[0][0], -item[1]))
        ]
        lines += [
            "Rows that a source's own rule leaves out (outside the reject budget):",
            "",
            _table(["source", "rule", "rows"], rows),
            "",
        ]
    if unclear:
        lines += [
            f"### Unclear emoji\n\n{len(unclear)} emoji do not stand for one of the eight feelings; none of their pictures or "
            "clips is in the set.\n",
            _table(
                ["emoji", "code", "name", "why", "rows"],
                sorted(_unclear_row(key, len(rows)) for key, rows in unclear.items()),
            ),
        ]
    lines.append("\nEach row with its reason and detail is in `rejects.parquet`.")
    return "\n".join(lines)


def _rule_name(detail: str) -> str:
    """A rule without the particulars of the row, so that rows can be counted by rule."""
    if detail.startswith("tagged "):
        return "tagged as insulting a group of people or as sexual"
    if " characters; cards hold " in detail:
        return "too short or too long for a card"
    if detail.startswith("skin tone "):
        return "a skin tone outside the recipe's `tones`"
    return detail.partition(": ")[2] or detail


def _unclear_row(key: str, rows: int) -> list[Any]:
    code, _, rest = key.partition(" (")
    name, _, why = rest.partition("): ")
    return ["".join(chr(int(part, 16)) for part in code.split("-")), f"`{code}`", name, why, rows]


def _partition(rejects: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rules = [reject for reject in rejects if reject["reason"] in schema.REASONS_OUTSIDE_BUDGET]
    return rules, [reject for reject in rejects if reject["reason"] not in schema.REASONS_OUTSIDE_BUDGET]


def _twins(stats: Stats) -> str:
    counts = Counter((entry["source"], entry["rule"]) for entry in stats.duplicates)
    text = (
        "## Twins\n\nThe same file in two splits, or two look-alikes with the same answer, would give the answer away: the one "
        "nearer to training gives way. Groups of a k-fold source that hold look-alikes with the same answer share a fold "
        "instead. `duplicates.parquet` lists every removed row with its twin, `leakage.json` those removed for the sake of "
        "another split and the tied groups.\n\n"
    )
    if not counts:
        return text + "No row was removed."
    return text + _table(
        ["source", "rule", "rows"], [[source, rule, n] for (source, rule), n in sorted(counts.items())]
    )


def _sources(manifest: Mapping[str, Any]) -> str:
    lines = ["## Sources, licences, limits"]
    for name, fact in manifest["source_facts"].items():
        label = f" ({DEMONSTRATION})" if fact["demonstration"] else ""
        lines.append(
            f"### {name}\n\n{fact['title']}{label}. Sub-tasks: {', '.join(fact['sub_tasks'])}.\n\n"
            f"* Licence: {fact['licence']}\n* Source: {fact['citation']}\n* Limits: {fact['limits']}"
        )
    return "\n\n".join(lines)


def _reading(manifest: Mapping[str, Any]) -> str:
    media = manifest["recipe"]["media"]
    return f"""## Reading it

`train/`, `val/` and `test/` hold Parquet files, one sample a row, in the order of each source's annotation. `media[].data` is
a list of encoded pictures: one for an image, {media["video_frames"]} frames in time order for a clip. A picture of at most
{media["max_side_px"]} px keeps the bytes of its file, transparency included: composite it on white.

![sizes](stats/sizes.png)

```python
import pyarrow.parquet as pq

for row in pq.read_table("test").to_pylist():
    print(row["uid"], row["messages"][0]["content"], row["answer"])
```"""


def _plots(stats: Stats) -> dict[str, bytes]:
    by_label: dict[str, Counter[str]] = defaultdict(Counter)
    for (sub_task, _source, label, split), count in sorted(
        stats.labels.items(), key=lambda item: (_order(item[0][0]), item[0])
    ):
        by_label[f"{sub_task}: {label}"][split] += count
    ordered = {name: {split: counts[split] for split in schema.SPLITS} for name, counts in by_label.items()}
    reasons = Counter(f"{reject['source']}: {reject['reason']}" for reject in stats.rejects)
    left_out = {name: {"records": count} for name, count in sorted(reasons.items())}
    return {
        "labels.png": plots.stacked_bars("Samples by sub-task and label", ordered, "samples"),
        "sizes.png": plots.histogram("Longer side of the stored pictures and frames", stats.sides, "pixels"),
        "rejects.png": plots.stacked_bars(
            "Records left out, by source and reason", left_out, "records (log scale)", log=True
        ),
    }


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *(line(row) for row in rows)])
