"""Which rows of an EmoBench are asked, by the model of which fold, and which rows that model was trained on.

Rows with `fold = k` are test rows of protocol k, whatever folder they lie in, and training rows of every other protocol;
rows without a fold keep the split of their folder in every protocol (see `dataset_build.schema.sample_schema`).
Only light columns are read here, never media bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_bytes, sha256_of_json
from dataset_build.schema import SPLITS
from emollm.data import folds
from emollm.data.emobench import DataError, DataFile, check_bytes

_LIGHT_COLUMNS = [
    "uid",
    "source",
    "sub_task",
    "split",
    "fold",
    "messages",
    "options",
    "answer",
    "other_answers",
    "group_keys",
    "demonstration",
    "media.list.element.kind",
    "media.list.element.sha256",
    "media.list.element.phash",
    "media.list.element.width",
    "media.list.element.height",
]


class EvaluationError(ValueError):
    """An evaluation that cannot go on; the message names the file or row, the value found and the remedy."""


@dataclass(frozen=True)
class Row:
    """One sample without its media bytes, and where it lies: row `index` of the Parquet file `path` (relative)."""

    uid: str
    source: str
    sub_task: str
    split: str
    fold: int | None
    prompt: str
    options: tuple[str, ...]
    answer: str
    other_answers: tuple[str, ...]
    group_keys: dict[str, str]
    demonstration: bool
    media_kinds: tuple[str, ...]
    media_sha256: tuple[str, ...]
    path: str
    index: int
    n_folds: int | None = (
        None  # of the source, where protocols validate on a fold of it (`emollm.data.folds`)
    )
    protocol: int | None = None  # whose model is asked, once `select_rows` has chosen the row
    media_looks: tuple[str, ...] = ()  # size and perceptual hash: faces cut from one picture share its digest

    @property
    def gold(self) -> tuple[str, ...]:
        return (self.answer, *self.other_answers)

    @property
    def media_keys(self) -> tuple[str, ...]:
        """Equal for rows with the same media. The digest is of the file that a medium was cut from, so a clip is its row's
        own, and what was cut from one picture is told apart by its looks."""
        if any(kind != "image" for kind in self.media_kinds):
            return tuple(f"{digest}/{self.uid}" for digest in self.media_sha256)
        if not self.media_looks:
            return self.media_sha256
        return tuple(f"{it}/{look}" for it, look in zip(self.media_sha256, self.media_looks, strict=True))

    def question_digest(self, withhold_media: bool) -> str:
        """Equal for rows that put exactly the same question to a model."""
        media = [] if withhold_media else list(self.media_keys)
        kinds = [] if withhold_media else list(self.media_kinds)
        return sha256_of_json([self.sub_task, self.prompt, list(self.options), kinds, media])


def read_rows(data: str, manifest: dict[str, Any]) -> list[Row]:
    """All rows of all splits, in the order of the file names.

    Raises EvaluationError where a file is missing or not the one of the manifest, or a uid is there twice.
    """
    rows: list[Row] = []
    n_folds = folds.validating_folds(manifest)
    for path in sorted(
        name for name in manifest["files"] if name.split("/")[0] in SPLITS and name.endswith(".parquet")
    ):
        entry = manifest["files"][path]
        file = DataFile(path, entry["rows"], entry["sha256"], entry.get("bytes", 0))
        found = _read_file(data, file, n_folds)
        if len(found) != file.rows:
            raise EvaluationError(
                f"{data}/{path}: {len(found)} rows, the manifest says {file.rows}; build it again"
            )
        rows += found
    uid, count = next(iter(Counter(row.uid for row in rows).most_common(1)), ("", 0))
    if count > 1:
        raise EvaluationError(f"{data}: uid {uid!r} is in the data {count} times; build it again")
    return rows


def _read_file(data: str, file: DataFile, n_folds: dict[str, int]) -> list[Row]:
    import pyarrow.parquet as pq

    full, path = storage.join(data, file.path), file.path
    try:
        check_bytes(data, file)
    except DataError as error:
        raise EvaluationError(str(error)) from None
    if not storage.exists(full):
        raise EvaluationError(f"{full} is in the manifest, but not there; build EmoBench again")
    with storage.open_read(full) as stream:
        values = pq.ParquetFile(stream).read(columns=_LIGHT_COLUMNS).to_pylist()
    return [_row(value, path, index, n_folds) for index, value in enumerate(values)]


def _row(value: dict[str, Any], path: str, index: int, n_folds: dict[str, int]) -> Row:
    media = value["media"] or []
    row = Row(
        uid=value["uid"],
        source=value["source"],
        sub_task=value["sub_task"],
        split=value["split"],
        fold=value["fold"],
        prompt="\n".join(message["content"] for message in value["messages"]),
        options=tuple(value["options"] or ()),
        answer=value["answer"],
        other_answers=tuple(value["other_answers"] or ()),
        group_keys=dict(value["group_keys"] or ()),
        demonstration=bool(value["demonstration"]),
        media_kinds=tuple(medium["kind"] for medium in media),
        media_sha256=tuple(medium["sha256"] for medium in media),
        path=path,
        index=index,
        n_folds=n_folds.get(value["source"]),
        media_looks=tuple(f"{it['width']}x{it['height']}:{it['phash']}" for it in media),
    )
    if row.options and row.answer not in row.options:
        raise EvaluationError(
            f"{row.uid}: answer {row.answer!r} is not one of its options {list(row.options)}"
        )
    return row


def protocol_of(row: Row) -> int:
    """The protocol (and so the fold's model) that is asked the row: the one that tests it, unless `select_rows` says
    another; rows without a fold belong to protocol 0."""
    return row.protocol if row.protocol is not None else row.fold or 0


def is_asked(row: Row, split: str) -> bool:
    """Whether the row is asked when `split` is evaluated.

    `test`: the test rows of every protocol. `val`: likewise, where protocols validate on a fold. `train`, and `val`
    otherwise: the rows of that folder, which is what protocol 0 says.
    """
    if row.fold is not None and (split == "test" or (split == "val" and row.n_folds)):
        return True
    return row.split == split


def is_training_row(row: Row, protocol: int) -> bool:
    """Whether the model of `protocol` was trained on the row (as far as EmoBench says; a recipe can take fewer)."""
    return folds.part(protocol, row.split, row.fold, row.n_folds) == "train"


def select_rows(
    rows: Iterable[Row], split: str, sub_tasks: Sequence[str], limit: int | None, protocols: Sequence[int]
) -> tuple[list[Row], dict[str, int]]:
    """(rows to ask, sorted by uid; number of rows left out, by reason).

    `protocols`: those there is a model for; test rows of others were training rows of these models. `limit` takes that many
    rows per sub-task, those with the smallest sha256 of their uid: always the same ones, of all sources and labels.
    """
    left_out: Counter[str] = Counter()
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        if not is_asked(row, split) or row.sub_task not in sub_tasks:
            continue
        if split == "val" and row.fold is not None and row.n_folds:
            row = replace(row, protocol=folds.validating_protocol(row.fold, row.n_folds))
        if (split == "test" or row.protocol is not None) and protocol_of(row) not in protocols:
            left_out["fold_without_model"] += 1
            continue
        by_task.setdefault(row.sub_task, []).append(row)
    chosen: list[Row] = []
    for task_rows in by_task.values():
        task_rows.sort(key=lambda row: sha256_of_bytes(row.uid.encode()))
        kept = task_rows if limit is None else task_rows[:limit]
        left_out["over_limit"] += len(task_rows) - len(kept)
        chosen += kept
    return sorted(chosen, key=lambda row: row.uid), {
        reason: count for reason, count in left_out.items() if count
    }


# Drawings of one emoji (vendors, skin tones, the clip) and of one gesture are near-duplicates of each other, also where a
# source's own split separates them.
_NEAR_DUPLICATE_KEYS = ("emoji",)


def cluster_keys(row: Row, manifest: dict[str, Any]) -> dict[str, str]:
    """The group keys of the row whose values make its samples dependent, for intervals.

    These are the key its source is split by (`source_facts` of the manifest) and keys of known near-duplicates; other keys
    (a vendor, a figure) only describe the row. Where the manifest names no key, all of the row's keys count.
    """
    split_by = manifest.get("source_facts", {}).get(row.source, {}).get("group_key")
    wanted = {split_by, *_NEAR_DUPLICATE_KEYS}
    return {key: value for key, value in row.group_keys.items() if key in wanted} or row.group_keys
