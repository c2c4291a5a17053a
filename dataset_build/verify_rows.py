"""The deep check of a build: every row is read back and held against the manifest and the promises of splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dataset_build import media, schema, storage


def problems(out: str, content: dict[str, Any]) -> list[str]:
    """What is wrong, row by row; memory grows with uids and groups only, as digests."""
    found: list[str] = []
    kept: Counter[tuple[str, str]] = Counter()
    seen: set[bytes] = set()
    place_of_group: dict[tuple[str, str], tuple[str, int | None]] = {}
    for path, entry in content["files"].items():
        if "/" not in path:
            continue
        split = path.split("/")[0]
        rows = 0
        for row in _rows(storage.join(out, path), found):
            rows += 1
            kept[row["source"], row["split"]] += 1
            digest = hashlib.blake2b(row["uid"].encode(), digest_size=12).digest()
            if digest in seen:
                found.append(f"{path}: uid {row['uid']} appears twice")
            seen.add(digest)
            found += [f"{path}: {row['uid']}: {problem}" for problem in _row_problems(row, split)]
            facts = content["source_facts"][row["source"]]
            group = (facts["group_key"], dict(row["group_keys"]).get(facts["group_key"], row["uid"]))
            place = (row["split"], row["fold"])
            if facts["split"] != "official" and place_of_group.setdefault(group, place) != place:
                found.append(
                    f"{path}: {row['uid']}: group {group} is both in {place_of_group[group]} and in {place}"
                )
        if rows != entry["rows"]:
            found.append(f"{path}: {rows} rows, the manifest says {entry['rows']}")
    for source, splits in content["sources"].items():
        for split, counts in splits.items():
            if kept[source, split] != counts["kept"]:
                found.append(
                    f"{source}/{split}: {kept[source, split]} rows, the ledger says {counts['kept']} kept"
                )
    return found + _table_problems(out, content)


def _rows(full: str, found: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with storage.open_read(full) as stream:
        file = pq.ParquetFile(stream)
        if not file.schema_arrow.equals(schema.sample_schema()):
            found.append(f"{full}: its columns are not those of schema version {schema.SCHEMA_VERSION}")
            return
        for batch in file.iter_batches(batch_size=32):
            yield from batch.to_pylist()


def _row_problems(row: dict[str, Any], split: str) -> Iterator[str]:
    if row["split"] != split:
        yield f"its split is {row['split']}, its folder {split}"
    if row["fold"] is not None and (row["fold"] == 0) != (split == "test"):
        yield f"fold {row['fold']} lies in {split}; fold 0, and only fold 0, is the test folder"
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
            rows = pq.read_table(stream, columns=["source", "split"]).to_pylist()
        counts = Counter((row["source"], row["split"]) for row in rows)
        for source, splits in content["sources"].items():
            for split in schema.SPLITS:
                expected = splits.get(split, {}).get(field, 0)
                if counts[source, split] != expected:
                    found.append(
                        f"{path}: {counts[source, split]} rows of {source}/{split}, the ledger says {expected}"
                    )
    return found
