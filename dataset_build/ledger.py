"""The ledger: per source and split, records = kept + rejected + duplicates. Checked at the end of every build.

Every item that an adapter yields is a record. A reject without a split, or with an unknown one, counts under train:
it left before splits were drawn, and the training side is where an untested row belongs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataset_build.errors import BuildError
from dataset_build.schema import REASONS_OUTSIDE_BUDGET, REJECT_REASONS, SPLITS

if TYPE_CHECKING:
    import pyarrow

FIELDS = ("records", "kept", "rejected", "duplicates")
# {source: {split: {records, kept, rejected, duplicates}}}, as in manifest.json
Ledger = dict[str, dict[str, dict[str, int]]]


def split_of_reject(split: str | None) -> str:
    """Where a reject counts; an adapter's own rejects may name a split that is none of ours."""
    return split if split in SPLITS else "train"


def make(
    records: Mapping[str, int],
    kept: Iterable[tuple[str, str]],
    rejected: Iterable[tuple[str, str]],
    duplicates: Iterable[tuple[str, str]],
) -> Ledger:
    """The ledger from (source, split) pairs, or Counters of them, checked against the number of items each adapter yielded.

    Raises BuildError where a row was lost or counted twice; that is a defect of this program, not of the data.
    """
    counts = {"kept": Counter(kept), "rejected": Counter(rejected), "duplicates": Counter(duplicates)}
    ledger: Ledger = {}
    for source, expected in records.items():
        ledger[source] = {}
        for split in SPLITS:
            row = {name: counter[source, split] for name, counter in counts.items()}
            if any(row.values()):
                ledger[source][split] = {"records": sum(row.values()), **row}
        found = sum(row["records"] for row in ledger[source].values())
        if found != expected:
            raise BuildError(
                f"{source}: {expected} records went in, {found} came out; rows were lost or doubled: a defect"
            )
    return ledger


def unbalanced(ledger: Ledger) -> list[str]:
    """The places where records ≠ kept + rejected + duplicates."""
    return [
        f"{source}/{split}: {row['records']} records, but {row['kept']} + {row['rejected']} + {row['duplicates']}"
        for source, splits in ledger.items()
        for split, row in splits.items()
        if row["records"] != row["kept"] + row["rejected"] + row["duplicates"]
    ]


def table(ledger: Ledger) -> str:
    rows = [["source", "split", "records", "=", "kept", "+", "rejected", "+", "duplicates"]]
    total: Counter[str] = Counter()
    for source, splits in ledger.items():
        for split, row in splits.items():
            rows.append(_line(source, split, row))
            total.update(row)
    rows.append(_line("all", "", {name: total[name] for name in FIELDS}))
    return aligned(rows, right_from=2)


def _line(source: str, split: str, row: Mapping[str, int]) -> list[str]:
    numbers = [str(row[name]) for name in FIELDS]
    return [source, split, numbers[0], "=", numbers[1], "+", numbers[2], "+", numbers[3]]


def aligned(rows: Sequence[Sequence[str]], right_from: int) -> str:
    """Rows as a plain text table under their first row; columns from `right_from` on are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if i >= right_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def reject_table(rejects: Sequence[Mapping[str, Any]], examples: int = 2) -> str:
    """Reasons per source with counts and the first details."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for reject in rejects:
        grouped.setdefault((reject["source"], reject["reason"]), []).append(reject)
    rows = [["source", "reason", "rows", "for example"]]
    for (source, reason), members in sorted(grouped.items()):
        shown = (
            [member["detail"] for member in members[:examples]]
            if reason not in REASONS_OUTSIDE_BUDGET
            else []
        )
        rows.append([source, reason, str(len(members)), shown[0] if shown else REJECT_REASONS[reason]])
        rows += [["", "", "", detail] for detail in shown[1:]]
    return aligned(rows, right_from=99)


def check_budget(
    records: Mapping[str, int], counted: Mapping[tuple[str, str], int], budget: float, rejects: pyarrow.Table
) -> None:
    """Raises BuildError with a table of reasons where a source lost too many rows to faults.

    `counted` holds the number of rejects per (source, reason), `rejects` all of them. Rows that a source's own rule
    leaves out count neither as faults nor among the rows.
    """
    by_rule: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for (source, reason), number in counted.items():
        (by_rule if reason in REASONS_OUTSIDE_BUDGET else counts)[source] += number
    over = [name for name, count in counts.items() if count > budget * (records[name] - by_rule[name])]
    if over:
        import pyarrow.compute as pc

        faults = rejects.filter(
            pc.and_(
                pc.is_in(rejects["source"], _strings(over)),
                pc.invert(pc.is_in(rejects["reason"], _strings(REASONS_OUTSIDE_BUDGET))),
            )
        )
        shares = ", ".join(
            f"{name}: {counts[name]} of {records[name] - by_rule[name]} rows" for name in sorted(over)
        )
        raise BuildError(
            f"too many rejected rows ({shares}; the recipe's reject_budget is {budget:.2%} per source).\n"
            f"{reject_table(faults.to_pylist(), examples=5)}\n"
            "All rejects are in rejects.parquet. Mend the files, or raise reject_budget if you accept the loss."
        )


def _strings(values: Iterable[str]) -> pyarrow.Array:
    import pyarrow as pa

    return pa.array(list(values), pa.string())
