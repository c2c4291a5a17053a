"""OUT/README.md and OUT/stats/*.png: what is in a build, what was left out and why, and what it cannot show.

The card is written for a person who decides whether to use the data: totals and warnings first, then one table a
question; what is long (labels of each source, splits of the ledger, examples) is folded away in `<details>`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_build import card_losses, card_plots, ledger, markdown, schema
from dataset_build.card_counts import Stats, collect
from dataset_build.labels import SUB_TASK_NAMES
from dataset_build.progress import data_size

__all__ = ["collect", "make", "render", "text_summary"]

DEMONSTRATION = "demonstration, separable by style"
NO_SAMPLE = "no openly licensed sample"
# Longer tables show so many rows; the rest is folded.
_LABELS_SHOWN = 12
_KINDS = {"image": "pictures", "video": "clips", "audio": "sound tracks"}
Manifest = Mapping[str, Any]


def make(out: str, manifest: Manifest) -> dict[str, bytes]:
    """The card and its plots: path in OUT → bytes. Reads the tables in OUT and writes nothing."""
    stats = collect(out, manifest)
    plots = {f"stats/{name}": picture for name, picture in card_plots.draw(stats).items()}
    return {**plots, "README.md": render(manifest, stats).encode()}


def render(manifest: Manifest, stats: Stats) -> str:
    """The card as Markdown."""
    parts = [
        _head(manifest, stats),
        _warnings(manifest),
        _sub_tasks(stats),
        _sources(manifest, stats),
        _labels(stats),
        _ledger(manifest),
        _splits(manifest, stats),
        card_losses.left_out(stats),
        card_losses.twins(stats),
        card_losses.notes(stats),
        _asking(manifest, stats),
        _licences(manifest),
        _reading(manifest),
    ]
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def text_summary(manifest: Manifest, stats: Stats) -> str:
    """Ledger, labels, rejects and leakage for a terminal."""
    rows = [["sub-task", "source", "label", *schema.SPLITS]]
    for sub_task, source, label in sorted({key[:3] for key in stats.labels}):
        rows.append(
            [sub_task, source, label, *(str(stats.labels[sub_task, source, label, s]) for s in schema.SPLITS)]
        )
    rejects = [["source", "reason", "rows", "for example"]]
    for (source, reason), n in sorted(stats.faults.items()):
        rejects.append([source, reason, f"{n:,}", markdown.cut(stats.examples[source, reason][0])])
    for (source, rule), n in sorted(stats.rules.items(), key=lambda item: (item[0][0], -item[1])):
        rejects.append([source, "source_rule", f"{n:,}", rule])
    if stats.unclear:
        rejects.append(
            ["", "source_rule", f"{stats.unclear.total():,}", "emoji without one of the eight feelings"]
        )
    twins = [["source", "removed by", "rows", ""]]
    for (source, rule, across), n in sorted(stats.duplicates.items()):
        twins.append([source, rule, f"{n:,}", "for the sake of another split" if across else "same split"])
    tables = [
        ledger.table(manifest["sources"]),
        ledger.aligned(rows, right_from=3),
        ledger.aligned(rejects, right_from=99) if len(rejects) > 1 else "nothing was rejected",
        ledger.aligned(twins, right_from=99) if len(twins) > 1 else "no twin was removed",
        *(f"WARNING: {warning}" for warning in manifest.get("warnings", ())),
    ]
    return "\n\n".join(tables)


# --- what there is ---------------------------------------------------------------------------------------------------


def _head(manifest: Manifest, stats: Stats) -> str:
    out_of = sum(row["records"] for splits in manifest["sources"].values() for row in splits.values())
    n_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    code = manifest["code"]
    commit = "" if code["commit"] == "unknown" else f", commit {code['commit'][:12]}"
    dirty = " with uncommitted changes" if code["dirty"] else ""
    split = ", ".join(f"{stats.rows(split=name):,} {name}" for name in schema.SPLITS)
    return f"""# EmoBench: {manifest["recipe"]["name"]}

**{stats.kept:,} samples** ({split}) out of {out_of:,} records from {markdown.count(len(manifest["sources"]), "source")}: pictures and
clips with an instruction and an answer, in six sub-tasks of emotional understanding; {data_size(n_bytes)}. Built by version
{code["version"]}{commit}{dirty}; digest `{manifest["digest"][:16]}`, schema {manifest["schema_version"]}."""


def _warnings(manifest: Manifest) -> str:
    warnings = manifest.get("warnings", ())
    return "\n>\n".join(f"> **Warning: leaking sources.** {warning}" for warning in warnings)


def _sub_tasks(stats: Stats) -> str:
    rows = []
    for sub_task, title in SUB_TASK_NAMES.items():
        labels = {key[2] for key in stats.labels if key[0] == sub_task}
        sources = sorted({key[1] for key in stats.labels if key[0] == sub_task})
        absent = NO_SAMPLE if sub_task == "hate" else "no sample in this build"
        note = "" if labels else absent
        note = DEMONSTRATION if sub_task in stats.demonstrations else note
        counts = (f"{stats.rows(sub_task=sub_task, split=split):,}" for split in schema.SPLITS)
        named = ", ".join(sources) if len(sources) <= 6 else f"{len(sources)} sources"
        rows.append([title, *counts, len(labels) or "–", named or "–", note])
    text = "## Sub-tasks\n\n" + markdown.table(
        ["sub-task", *schema.SPLITS, "labels", "sources", "note"], rows
    )
    if stats.demonstrations:
        text += (
            f'\n\n"{DEMONSTRATION[0].upper()}{DEMONSTRATION[1:]}": these rows only exercise the path from a source to a '
            "score. Their classes differ in style, so a score on them says nothing about the sub-task, and they stay out "
            "of the overall mean."
        )
    return text


def _sources(manifest: Manifest, stats: Stats) -> str:
    n_bytes: Counter[str] = Counter()
    for path, entry in manifest["files"].items():
        if path.split("/")[0] in schema.SPLITS:
            n_bytes[path.partition("/")[2].rpartition("-")[0]] += entry["bytes"]
    rows = []
    for name, fact in manifest["source_facts"].items():
        kinds = [
            f"{n:,} {_KINDS[kind]}{markdown.length(stats.seconds[name, kind])}"
            for kind in schema.PLACEHOLDERS
            if (n := stats.media[name, kind])
        ]
        counts = (f"{stats.rows(source=name, split=split):,}" for split in schema.SPLITS)
        what = f"{fact['title']}{' (demonstration)' if fact['demonstration'] else ''}"
        rows.append([f"`{name}`", what, *counts, ", ".join(kinds) or "–", data_size(n_bytes[name])])
    return (
        "## Sources\n\n![rows by source](stats/sources.png)\n\n"
        + markdown.table(["source", "what", *schema.SPLITS, "media", "size"], rows)
        + "\n\n![sizes](stats/sizes.png)"
    )


def _labels(stats: Stats) -> str:
    parts = ["## Labels", "![label counts](stats/labels.png)"]
    for sub_task, title in SUB_TASK_NAMES.items():
        found = {key[2] for key in stats.labels if key[0] == sub_task}
        if not found:
            continue
        ordered = sorted(found, key=lambda label: (-stats.rows(sub_task=sub_task, label=label), label))
        rows = []
        for label in ordered:
            sources = {key[1] for key in stats.labels if key[0] == sub_task and key[2] == label}
            counts = (f"{stats.rows(sub_task=sub_task, label=label, split=s):,}" for s in schema.SPLITS)
            rows.append([label, *counts, len(sources)])
        head = ["label", *schema.SPLITS, "sources"]
        parts.append(f"### {title}\n\n" + markdown.folded_table(head, rows, _LABELS_SHOWN, "labels"))
        by_source = [
            [source, label, *(f"{stats.labels[sub_task, source, label, s]:,}" for s in schema.SPLITS)]
            for source, label in sorted({key[1:3] for key in stats.labels if key[0] == sub_task})
        ]
        if len({row[0] for row in by_source}) > 1:
            parts.append(
                markdown.details("by source", markdown.table(["source", "label", *schema.SPLITS], by_source))
            )
    return "\n\n".join(parts)


# --- what happened to the rest ---------------------------------------------------------------------------------------


def _ledger(manifest: Manifest) -> str:
    sums, rows = [], []
    for source, splits in manifest["sources"].items():
        total = Counter[str]()
        for split, counts in splits.items():
            total.update({name: counts[name] for name in ledger.FIELDS})
            rows.append([source, split, *(f"{counts[name]:,}" for name in ledger.FIELDS)])
        sums.append([source, *(f"{total[name]:,}" for name in ledger.FIELDS)])
    text = (
        "## Ledger\n\nEvery row of an annotation is a record, one per sub-task it serves, and none is lost: records = kept + "
        "rejected + duplicates. A record that was rejected before splits were drawn counts under train.\n\n"
    )
    by_split = markdown.table(["source", "split", *ledger.FIELDS], rows)
    if len(sums) <= 8:
        return text + by_split
    return (
        text
        + markdown.table(["source", *ledger.FIELDS], sums)
        + "\n\n"
        + markdown.details("by split", by_split)
    )


def _splits(manifest: Manifest, stats: Stats) -> str:
    recipe, facts = manifest["recipe"], manifest["source_facts"]
    by_mode: dict[str, list[str]] = defaultdict(list)
    for name, fact in facts.items():
        by_mode[fact["split"]].append(f"{name} (by `{fact['group_key']}`)")
    parts = ["## Splits"]
    if by_mode["official"]:
        shown = ", ".join(name.partition(" ")[0] for name in by_mode["official"])
        parts.append(
            f"**The source's own split**: {shown}. Where a source publishes no val rows, val is made of whole groups of its "
            "training rows, never of test rows."
        )
        if stats.leakage.get("straddling_groups"):
            parts.append(
                "Published splits are kept even where they tear groups apart; the section on leakage counts them."
            )
    if by_mode["shares"]:
        shares = recipe["splits"]
        share = f"{shares['test_share']:.0%} test, {shares['val_share']:.0%} val"
        parts.append(f"**Shares by group** ({share}, seed {recipe['seed']}): {', '.join(by_mode['shares'])}.")
    if by_mode["folds"]:
        parts.append(_folds(manifest, stats, by_mode["folds"]))
    return "\n\n".join(parts)


def _folds(manifest: Manifest, stats: Stats, names: Sequence[str]) -> str:
    facts, settings = manifest["source_facts"], manifest["recipe"]["splits"]
    held = (
        "Protocol k takes its val rows from the next fold."
        if settings.get("fold_val")
        else "There are no val rows: nothing may be selected on them."
    )
    text = (
        f"**K-fold**: {', '.join(names)}. All rows of a group share a `fold`. Protocol k tests fold k and trains on the "
        f"others, so that every row is tested once, by a model that has not seen its group: the score of such a source is "
        f"taken over all protocols. The folders show protocol 0 alone: fold 0 in test, the rest in train. {held}\n\n"
    )
    found = sorted({source for source, _ in stats.folds})
    width = max((fold for _, fold in stats.folds), default=-1) + 1
    rows = [
        [
            name,
            *(
                f"{stats.folds[name, k]:,}" if k < (facts[name].get("folds") or width) else ""
                for k in range(width)
            ),
        ]
        for name in found
    ]
    return text + markdown.table(["rows in fold", *map(str, range(width))], rows)


# --- how to use it ---------------------------------------------------------------------------------------------------


def _asking(manifest: Manifest, stats: Stats) -> str:
    style = manifest["recipe"].get("instructions", {}).get("answer_style", "word")
    forms = {
        "word": "the option's word",
        "letter": "the option's letter; `answer` still holds the word",
        "letter_word": "letter and word, as in `(C) joy`; `answer` still holds the word",
        "mixed": "the option's word, its letter, or both, as the end of `provenance.template_id` says; `answer` holds the word",
    }
    text = (
        "## Questions\n\nEach sub-task has a bank of at least 20 wordings; the uid's hash draws one, and the order of the options. "
        f"Asked for: {forms[style]}."
    )
    if stats.rewriting:
        done = sum(map(len, stats.rewriting["sentences"].values()))
        kept = Counter(
            reason for of_source in stats.rewriting["kept"].values() for reason in of_source.values()
        )
        why = "".join(
            f"; {n:,} kept as they were: {stats.rewriting['meaning'][name]}"
            for name, n in sorted(kept.items())
        )
        text += (
            f" {done:,} wordings were made by the language model `{stats.rewriting['model']}` from those of the bank, source by "
            f"source (`rewriting.json`){why}."
        )
    return text


def _licences(manifest: Manifest) -> str:
    rows, limits = [], []
    for name, fact in manifest["source_facts"].items():
        label = f" ({DEMONSTRATION})" if fact["demonstration"] else ""
        rows.append([f"`{name}`", fact["licence"], fact["citation"]])
        limits.append(f"* **{name}**{label}: {fact['limits']}")
    return (
        "## Licences and citations\n\nThis build holds the media and annotations of its sources: whoever passes it on needs their "
        "permission. Cite every source whose rows you use.\n\n"
        + markdown.table(["source", "licence", "cite"], rows)
        + "\n\n## Limits\n\n"
        + "\n".join(limits)
    )


def _reading(manifest: Manifest) -> str:
    media = manifest["recipe"]["media"]
    return f"""## Reading it

`train/`, `val/` and `test/` hold Parquet files, one sample a row, in the order of each source's annotation. `media[].data` is
a list of encoded pictures: one for an image, {media["video_frames"]} frames in time order for a clip; a clip's sound is a medium of
its own (16 kHz mono WAV). A picture of at most {media["max_side_px"]} px keeps the bytes of its file, transparency included: composite
it on white.

```python
import pyarrow.parquet as pq

for row in pq.read_table("test").to_pylist():
    print(row["uid"], row["messages"][0]["content"], row["answer"])
```"""
