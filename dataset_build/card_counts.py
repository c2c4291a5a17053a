"""What the card counts: read back from the written files, a batch at a time, so memory does not grow with the rows."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataset_build import labels, schema, storage

if TYPE_CHECKING:
    import pyarrow

_COLUMNS = ["sub_task", "source", "split", "fold", "answer", "demonstration"]
_MEDIA = ("kind", "width", "height", "duration_s")
_MEDIA_COLUMNS = [f"media.list.element.{name}" for name in _MEDIA]
_BATCH_ROWS = 4096
_EXAMPLES = 3
# Different rules of one source that are told apart; what comes after them counts as OTHER_RULES.
_MAX_RULES = 200
OTHER_RULES = "other rules"
_UNCLEAR = "unclear emoji "
_EMOTION = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(labels.EMOTIONS, key=len, reverse=True))})(?!\w)")


@dataclass
class Stats:
    """Counts over all kept rows, rejects and duplicates."""

    labels: Counter[tuple[str, str, str, str]] = field(
        default_factory=Counter
    )  # sub_task, source, label, split
    folds: Counter[tuple[str, int]] = field(default_factory=Counter)  # source, fold
    media: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, kind
    seconds: dict[tuple[str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )  # source, kind → whole length
    sides: dict[str, Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )  # source → longer side, px
    demonstrations: set[str] = field(default_factory=set)  # sub-tasks with demonstration rows only
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, reason
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # source, reason → first details
    rules: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, rule of the source itself
    unclear: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # source, "code (name): why" of emoji without a feeling
    duplicates: Counter[tuple[str, str, bool]] = field(default_factory=Counter)  # source, rule, across splits
    leakage: dict[str, Any] = field(default_factory=dict)  # leakage.json
    rewriting: dict[str, Any] = field(default_factory=dict)  # rewriting.json
    _sums: dict[tuple[str, ...], Counter[tuple[str, ...]]] = field(default_factory=dict)  # see `rows`
    _n_rules: Counter[str] = field(default_factory=Counter)  # different rules of each source

    @property
    def kept(self) -> int:
        return self.labels.total()

    def rows(self, **wanted: str) -> int:
        """Kept rows with these values of sub_task, source, label, split; asked when all rows are counted."""
        names = tuple(wanted)
        if names not in self._sums:
            places = [("sub_task", "source", "label", "split").index(name) for name in names]
            self._sums[names] = Counter()
            for key, n in self.labels.items():
                self._sums[names][tuple(key[place] for place in places)] += n
        return self._sums[names][tuple(wanted.values())]


def collect(out: str, manifest: Mapping[str, Any]) -> Stats:
    """Count everything that the card shows. The pictures stay on disk."""
    stats = Stats()
    real: set[str] = set()
    for path in manifest["files"]:
        if path.split("/")[0] not in schema.SPLITS:
            continue
        for table in _batches(storage.join(out, path), [*_COLUMNS, *_MEDIA_COLUMNS]):
            _count_rows(stats, table, real)
            _count_media(stats, table)
    stats.demonstrations -= real
    for table in _batches(storage.join(out, "rejects.parquet"), ["source", "reason", "detail"]):
        for source, reason, detail in zip(
            *(table[name].to_pylist() for name in ("source", "reason", "detail"))
        ):
            _count_reject(stats, source, reason, detail)
    for table in _batches(storage.join(out, "duplicates.parquet"), ["source", "split", "twin_split", "rule"]):
        for (source, split, twin_split, rule), n in _groups(table, ["source", "split", "twin_split", "rule"]):
            stats.duplicates[source, rule, split != twin_split] += n
    for name, target in (("leakage.json", stats.leakage), ("rewriting.json", stats.rewriting)):
        if name in manifest["files"]:
            target.update(storage.read_json(storage.join(out, name)))
    return stats


def _batches(path: str, columns: list[str]) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False)  # else all chunks that will be read are held
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _groups(table: pyarrow.Table, columns: list[str]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The different combinations of values in `columns`, and how many rows have each."""
    found = table.select(columns).group_by(columns).aggregate([([], "count_all")]).to_pylist()
    for row in found:
        yield tuple(row[name] for name in columns), row["count_all"]


def _count_rows(stats: Stats, table: pyarrow.Table, real: set[str]) -> None:
    for (sub_task, source, split, fold, answer, demonstration), n in _groups(table, _COLUMNS):
        stats.labels[sub_task, source, answer, split] += n
        (stats.demonstrations if demonstration else real).add(sub_task)
        if fold is not None:
            stats.folds[source, fold] += n


def _count_media(stats: Stats, table: pyarrow.Table) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    media = table["media"].combine_chunks()
    if not len(media):
        return
    flat = pc.list_flatten(media)
    columns = {name: pc.struct_field(flat, name) for name in _MEDIA}
    columns["source"] = table["source"].combine_chunks().take(pc.list_parent_indices(media))
    columns["side"] = pc.max_element_wise(columns.pop("width"), columns.pop("height"))
    found = pa.table(columns)
    for (source, kind), n in _groups(found, ["source", "kind"]):
        stats.media[source, kind] += n
    for row in found.group_by(["source", "kind"]).aggregate([("duration_s", "sum")]).to_pylist():
        stats.seconds[row["source"], row["kind"]] += row["duration_s_sum"] or 0.0
    seen = found.filter(pc.not_equal(found["kind"], "audio"))
    for (source, side), n in _groups(seen, ["source", "side"]):
        stats.sides[source][side] += n


def _count_reject(stats: Stats, source: str, reason: str, detail: str) -> None:
    if reason not in schema.REASONS_OUTSIDE_BUDGET:
        stats.faults[source, reason] += 1
        shown = stats.examples.setdefault((source, reason), [])
        if len(shown) < _EXAMPLES:
            shown.append(detail)
    elif detail.startswith(_UNCLEAR):
        stats.unclear[source, detail.removeprefix(_UNCLEAR)] += 1
    else:
        rule = _rule_name(detail)
        if (source, rule) not in stats.rules:
            stats._n_rules[source] += 1
        stats.rules[source, rule if stats._n_rules[source] <= _MAX_RULES else OTHER_RULES] += 1


def _rule_name(detail: str) -> str:
    """A rule without the particulars of the row (numbers, quoted words, names, emotions), so that rows count by rule."""
    if detail.startswith("tagged "):
        return "tagged as insulting a group of people or as sexual"
    if " characters; cards hold " in detail:
        return "too short or too long for a card"
    if detail.startswith("skin tone "):
        return "a skin tone outside the recipe's `tones`"
    rule = detail.partition(": ")[2] or detail
    rule = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*[/#]\S*", "…", rule)
    rule = _EMOTION.sub("…", rule)
    return re.sub(r"\d+(?:[.,]\d+)*", "N", rule)[:120]
