"""The card's sections about what is not in a build: faulty rows, rules of sources, twins, leakage found and known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from dataset_build import markdown, schema
from dataset_build.card_counts import Stats

# Longer tables are folded.
_RULES_SHOWN, _FAULTS_SHOWN, _SHOWS_SHOWN = 3, 25, 12


def left_out(stats: Stats) -> str:
    lines = ["## Left out", "", "![rejects](stats/rejects.png)", ""]
    if stats.faults:
        by_reason: dict[str, Counter[str]] = defaultdict(Counter)
        for (source, reason), n in stats.faults.items():
            by_reason[reason][source] += n
        sums = [
            [reason, schema.REJECT_REASONS[reason], f"{of.total():,}", len(of)]
            for reason, of in sorted(by_reason.items(), key=lambda item: -item[1].total())
        ]
        rows = [[source, reason, f"{n:,}"] for (source, reason), n in sorted(stats.faults.items())]
        by_source = markdown.table(["source", "reason", "rows"], rows)
        examples = "\n".join(
            f"* {source}, `{reason}`:\n" + "\n".join(f"  * {markdown.literal(detail)}" for detail in details)
            for (source, reason), details in sorted(stats.examples.items())
        )
        lines += ["Faulty rows:", "", markdown.table(["reason", "meaning", "rows", "sources"], sums), ""]
        lines += [by_source if len(rows) <= _FAULTS_SHOWN else markdown.details("by source", by_source), ""]
        lines += [markdown.details("examples", examples), ""]
    else:
        lines += ["No row was faulty.", ""]
    if stats.rules:
        of_source: dict[str, list[list[str]]] = defaultdict(list)
        for (source, rule), n in sorted(
            stats.rules.items(), key=lambda item: (item[0][0], -item[1], item[0][1])
        ):
            of_source[source].append([source, rule.replace("<", "&lt;"), f"{n:,}"])
        head = ["source", "rule", "rows"]
        first = [row for rows in of_source.values() for row in rows[:_RULES_SHOWN]]
        more = [row for rows in of_source.values() for row in rows[_RULES_SHOWN:]]
        lines += [
            "Rows that a source's own rule leaves out (outside the reject budget):", "", markdown.table(head, first), "",
            markdown.details(f"{markdown.count(len(more), 'further rule')}", markdown.table(head, more)) if more else "", "",
        ]  # fmt: skip
    unclear: Counter[str] = Counter()
    for (_source, key), n in stats.unclear.items():
        unclear[key] += n
    if unclear:
        lines += [
            f"### Unclear emoji\n\n{len(unclear)} emoji do not stand for one of the eight feelings; none of their pictures "
            "or clips is in the set.\n",
            markdown.table(
                ["emoji", "code", "name", "why", "rows"],
                sorted(_unclear_row(key, n) for key, n in unclear.items()),
            ),
        ]
    lines.append("\nEach row with its reason and detail is in `rejects.parquet`.")
    return "\n".join(lines)


def _unclear_row(key: str, rows: int) -> list[Any]:
    code, _, rest = key.partition(" (")
    name, _, why = rest.partition("): ")
    return ["".join(chr(int(part, 16)) for part in code.split("-")), f"`{code}`", name, why, rows]


def twins(stats: Stats) -> str:
    text = (
        "## Twins and leakage\n\nThe same file in two splits, or two look-alikes with the same answer, would give the answer "
        "away: the one nearer to training gives way. Groups of a k-fold source that hold look-alikes with the same answer share "
        "a fold instead. `duplicates.parquet` lists every removed row with its twin, `leakage.json` those removed for the sake "
        "of another split, and what is said below in full.\n\n"
    )
    if stats.duplicates:
        rows = [
            [source, rule.replace("_", " "), "another split" if across else "the same split", f"{n:,}"]
            for (source, rule, across), n in sorted(stats.duplicates.items())
        ]
        text += markdown.table(["source", "rule", "twin in", "rows removed"], rows)
    else:
        text += "No row was removed."
    lines = _findings(stats.leakage)
    parts = [text, "\n".join(f"* {line}" for line in lines)] if lines else [text]
    shows = stats.leakage.get("shared_shows", ())
    if shows:
        rows = [
            [
                entry["show"],
                f"{entry['held_out']['rows']:,} of {entry['held_out']['source']}",
                ", ".join(entry["trained_on_in"]),
            ]
            for entry in shows
        ]
        head = ["show", "held-out rows", "also trained on in"]
        parts.append(
            "Shows that are held out in one source and trained on in another (same faces, voices and rooms):\n\n"
            + markdown.folded_table(head, rows, _SHOWS_SHOWN, "shows")
        )
    return "\n\n".join(parts)


def _findings(leakage: Mapping[str, Any]) -> list[str]:
    """What leakage.json counts besides removed rows, one sentence each."""
    lines = []
    if ties := leakage.get("tied_groups"):
        lines.append(f"{markdown.count(len(ties), 'set')} of look-alike groups share a fold.")
    if conflicts := leakage.get("conflicting_labels"):
        pairs = markdown.count(len(conflicts), "pair")
        lines.append(
            f"{pairs} of rows have the same file and words, but different labels; both rows are kept."
        )
    for entry in leakage.get("straddling_groups", ()):
        lines.append(
            f"{entry['source']}: its {entry['split_by']} puts {entry['groups']:,} of {markdown.count(entry['of'], 'group')} (by "
            f"`{entry['group_key']}`) on more than one side; {entry['rows']:,} rows, all kept."
        )
    for entry in leakage.get("reported_only", ()):
        long = next(
            (
                f", {n:,} of them {name.removeprefix('of_').replace('_', ' ')} or more"
                for name, n in entry.items()
                if name.startswith("of_")
            ),
            "",
        )
        lines.append(
            f"{entry['source']}: {markdown.count(entry['rows'], 'held-out row')} ({entry['split']}) with words that it also "
            f"trains on{long}; all kept."
        )
    return lines


def notes(stats: Stats) -> str:
    known = stats.leakage.get("notes", ())
    if not known:
        return ""
    rows = [[", ".join(note["sources"]), note["evidence"], note["guard"]] for note in known]
    return "### Known risks of these sources\n\n" + markdown.table(
        ["sources", "what is known", "what this build does"], rows
    )
