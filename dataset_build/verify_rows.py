"""The deep check of a build: every row is read back and held against the manifest and the promises of splits."""

from __future__ import annotations

import array
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dataset_build import gather, media, schema, storage


def problems(out: str, content: dict[str, Any]) -> list[str]:
    """What is wrong, row by row; memory grows with uids (8 bytes each) and drawn groups only, as digests."""
    found: list[str] = []
    kept: Counter[tuple[str, str]] = Counter()
    seen = array.array("Q")  # digests of all uids
    place_of_group: dict[int, tuple[str, int | None]] = {}
    fold_val = content["recipe"]["splits"].get("fold_val", False)
    for path, entry in content["files"].items():
        if "/" not in path:
            continue
        split = path.split("/")[0]
        rows = 0
        for row in _rows(storage.join(out, path), found):
            rows += 1
            kept[row["source"], row["split"]] += 1
            seen.append(_digest(row["uid"]))
            problems_of_row = _row_problems(row, split, fold_val)
            found += [f"{path}: {row['uid']}: {problem}" for problem in problems_of_row]
            facts = content["source_facts"].get(row["source"])
            if facts is None:
                found.append(f"{path}: {row['uid']}: the manifest names no source {row['source']!r}")
                continue
            # A source's own split or folds may tear groups apart: leakage.json says so.
            if facts["groups_whole"]:
                key = facts["group_key"]
                group = dict(row["group_keys"]).get(key) or row["uid"]
                place = (row["split"], row["fold"])
                other = place_of_group.setdefault(_digest(f"{key}\x1f{group}"), place)
                if other != place:
                    found.append(
                        f"{path}: {row['uid']}: group {(key, group)} is both in {other} and in {place}"
                    )
        if rows != entry["rows"]:
            found.append(f"{path}: {rows} rows, the manifest says {entry['rows']}")
    for source, splits in content["sources"].items():
        for split, counts in splits.items():
            if kept[source, split] != counts["kept"]:
                found.append(
                    f"{source}/{split}: {kept[source, split]} rows, the ledger says {counts['kept']} kept"
                )
    return found + _repeated(out, content, seen) + _table_problems(out, content)


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


def _rows(full: str, found: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with storage.open_read(full) as stream:
        file = pq.ParquetFile(stream)
        if not file.schema_arrow.equals(schema.sample_schema()):
            found.append(f"{full}: its columns are not those of schema version {schema.SCHEMA_VERSION}")
            return
        for batch in file.iter_batches(batch_size=32):
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
        if medium["kind"] == "audio":
            continue
        for data in medium["data"]:
            try:
                size = media.open_picture(data).size
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
