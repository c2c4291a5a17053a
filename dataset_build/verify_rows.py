"""The deep check of a build: every row is read back and held against the manifest and the promises of splits."""

from __future__ import annotations

import array
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from dataset_build import gather, media, schema, storage

# The columns that are read where media are not.
_WITHOUT_MEDIA = ["uid", "source", "sub_task", "split", "fold", "messages", "options", "answer", "group_keys"]
Task = dict[str, Any]
Run = Callable[[Callable[[Task], dict[str, Any]], Sequence[Task]], Iterable[dict[str, Any]]]


def problems(out: str, content: dict[str, Any], run: Run = map, unchanged: Collection[str] = ()) -> list[str]:
    """What is wrong, row by row; memory grows with uids (8 bytes each) and drawn groups only, as digests.

    Files are read independently of each other: `run` may do so in other processes, and in any order. Media of files
    that are `unchanged` since they were last read are not opened.
    """
    tasks = [
        {
            "out": out,
            "path": path,
            "rows": entry["rows"],
            "media": path not in unchanged,
            "fold_val": content["recipe"]["splits"].get("fold_val", False),
            # A source's own split or folds may tear groups apart: leakage.json says so.
            "group_keys": {
                name: facts["group_key"] if facts["groups_whole"] else None
                for name, facts in content["source_facts"].items()
            },
        }
        for path, entry in content["files"].items()
        if "/" in path
    ]
    # The largest first, so that no core waits long for the last one.
    ordered = sorted(tasks, key=lambda task: -content["files"][task["path"]]["bytes"])
    read = {result["path"]: result for result in run(read_file, ordered)}
    found: list[str] = []
    kept: Counter[tuple[str, str]] = Counter()
    seen = array.array("Q")  # digests of all uids
    place_of_group: dict[int, list[Any]] = {}
    for task in tasks:
        result = read.pop(task["path"])
        found += result["problems"]
        seen.extend(result["uids"])
        for source, split, rows in result["kept"]:
            kept[source, split] += rows
        for digest, place, uid, group in result["groups"]:
            other = place_of_group.setdefault(digest, place)
            if other != place:
                found.append(_torn(task["path"], uid, group, other, place))
    for source, splits in content["sources"].items():
        for split, counts in splits.items():
            if kept[source, split] != counts["kept"]:
                found.append(
                    f"{source}/{split}: {kept[source, split]} rows, the ledger says {counts['kept']} kept"
                )
    return found + _repeated(out, content, seen) + _table_problems(out, content)


def read_file(task: Task) -> dict[str, Any]:
    """One sample file read back: what is wrong in it, and what can only be judged beside the other files."""
    path, group_keys = task["path"], task["group_keys"]
    split = path.split("/")[0]
    found: list[str] = []
    kept: Counter[tuple[str, str]] = Counter()
    uids: list[int] = []
    groups: dict[int, list[Any]] = {}
    for row in _rows(storage.join(task["out"], path), task["media"], found):
        kept[row["source"], row["split"]] += 1
        uids.append(_digest(row["uid"]))
        found += [
            f"{path}: {row['uid']}: {problem}" for problem in _row_problems(row, split, task["fold_val"])
        ]
        if row["source"] not in group_keys:
            found.append(f"{path}: {row['uid']}: the manifest names no source {row['source']!r}")
            continue
        key = group_keys[row["source"]]
        if key is not None:
            group = dict(row["group_keys"]).get(key) or row["uid"]
            place = [row["split"], row["fold"]]
            digest = _digest(f"{key}\x1f{group}")
            other = groups.setdefault(digest, [place, row["uid"], [key, group]])[0]
            if other != place:
                found.append(_torn(path, row["uid"], [key, group], other, place))
    if len(uids) != task["rows"]:
        found.append(f"{path}: {len(uids)} rows, the manifest says {task['rows']}")
    return {
        "path": path,
        "problems": found,
        "uids": uids,
        "kept": [[*key, rows] for key, rows in kept.items()],
        "groups": [[digest, *first] for digest, first in groups.items()],
    }


def _torn(path: str, uid: str, group: list[str], other: list[Any], place: list[Any]) -> str:
    return f"{path}: {uid}: group {tuple(group)} is both in {tuple(other)} and in {tuple(place)}"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _repeated(out: str, content: dict[str, Any], seen: array.array[int]) -> list[str]:
    """The uids that appear more than once; the files are read a second time only if there are any."""
    import numpy as np
    import pyarrow.parquet as pq

    values, counts = np.unique(np.frombuffer(seen, np.uint64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    found = []
    for path in content["files"] if twice else ():
        if "/" in path:
            with storage.open_read(storage.join(out, path)) as stream:
                uids = pq.ParquetFile(stream).read(columns=["uid"])["uid"].to_pylist()
            found += [f"{path}: uid {uid} appears twice" for uid in uids if _digest(uid) in twice]
    return found


def _rows(full: str, media: bool, found: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with storage.open_read(full) as stream:
        file = pq.ParquetFile(stream)
        if not file.schema_arrow.equals(schema.sample_schema()):
            found.append(f"{full}: its columns are not those of schema version {schema.SCHEMA_VERSION}")
            return
        columns = None if media else [*_WITHOUT_MEDIA, "media.list.element.kind"]
        for batch in file.iter_batches(batch_size=32 if media else 1024, columns=columns):
            yield from batch.to_pylist()


def _row_problems(row: dict[str, Any], split: str, fold_val: bool) -> Iterator[str]:
    if row["split"] != split:
        yield f"its split is {row['split']}, its folder {split}"
    if row["fold"] is not None:
        folder = {0: "test", 1: "val" if fold_val else "train"}.get(row["fold"], "train")
        if split != folder:
            yield f"fold {row['fold']} lies in {split}; its folder in this build is {folder}"
    if row["sub_task"] in schema.CLOSED_SUB_TASKS and row["answer"] not in row["options"]:
        yield f"the answer {row['answer']!r} is not among its options"
    text = row["messages"][-1]["content"]
    for kind, placeholder in schema.PLACEHOLDERS.items():
        expected = sum(medium["kind"] == kind for medium in row["media"])
        if text.count(placeholder) != expected:
            yield f"{text.count(placeholder)} {placeholder} in the message for {expected} media"
    for medium in row["media"]:
        if medium["kind"] == "audio" or "data" not in medium:
            continue
        for data in medium["data"]:
            try:
                size = media.stored_size(data)
            except media.MediaError as error:
                yield f"a stored picture does not open: {error}"
            else:
                if size != (medium["width"], medium["height"]):
                    yield f"a stored picture is {size}, the row says {medium['width']}x{medium['height']}"


def _table_problems(out: str, content: dict[str, Any]) -> list[str]:
    """rejects.parquet and duplicates.parquet against the ledger."""
    import pyarrow.parquet as pq

    found = []
    for path, field in (("rejects.parquet", "rejected"), ("duplicates.parquet", "duplicates")):
        with storage.open_read(storage.join(out, path)) as stream:
            counts = gather.count(pq.ParquetFile(stream).read(columns=["source", "split"]), "source", "split")
        for source, splits in content["sources"].items():
            for split in schema.SPLITS:
                expected = splits.get(split, {}).get(field, 0)
                if counts[source, split] != expected:
                    found.append(
                        f"{path}: {counts[source, split]} rows of {source}/{split}, the ledger says {expected}"
                    )
    return found
