"""Rationales on disk, beside the samples they explain: `OUT/rationales/<name>/`.

    <shard>.parquet    one row for each sample asked, accepted or rejected (`schema()`); written whole or not at all
    rationales.json    the manifest, written last: counts, digests, teacher; absent = unfinished

The manifest's `digest` is of what a training takes from here, the accepted (uid, rationale) pairs, whatever the shards.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_bytes, sha256_of_json

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = "1.0"
MANIFEST = "rationales.json"
ACCEPTED, REJECTED = "accepted", "rejected"


class RationalesError(ValueError):
    """Rationales that are not there, not finished, damaged or of other data; the message names file and remedy."""


def folder(data: str, name: str) -> str:
    return storage.join(data, "rationales", name)


def read_manifest(data: str, name: str) -> dict[str, Any] | None:
    """The manifest of finished rationales; None where there is none."""
    path = storage.join(folder(data, name), MANIFEST)
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    if not isinstance(found, dict) or not {"digest", "data_digest", "files"} <= found.keys():
        raise RationalesError(f"{path}: has no digest, data_digest and files; write the rationales again")
    return found


def finished(data: str, name: str, data_digest: str) -> dict[str, Any]:
    """The manifest of the rationales that a recipe names. Raises RationalesError where they cannot be used."""
    found = read_manifest(data, name)
    path = storage.join(folder(data, name), MANIFEST)
    if found is None:
        raise RationalesError(
            f"{path}: not there, so there are no finished rationales {name!r}; write them with "
            f"`python -m emollm rationales {data} --name {name} ...`"
        )
    if found["data_digest"] != data_digest:
        raise RationalesError(
            f"{path}: written for data with digest {found['data_digest'][:12]}, but those in {data} have "
            f"{data_digest[:12]}; write the rationales again"
        )
    return found


def accepted(data: str, name: str, data_digest: str) -> dict[str, str]:
    """The accepted rationales by uid. Raises RationalesError where they are not those that the manifest tells of."""
    manifest = finished(data, name, data_digest)
    found = {
        row["uid"]: row["rationale"]
        for path in sorted(manifest["files"])
        for row in read_shard(data, name, path, ["uid", "status", "rationale"])
        if row["status"] == ACCEPTED
    }
    if accepted_digest(found) != manifest["digest"]:
        raise RationalesError(
            f"{folder(data, name)}: its files are not those that {MANIFEST} was written for; write the rationales again"
        )
    return found


def accepted_digest(rationales: Mapping[str, str]) -> str:
    return sha256_of_json(sorted(rationales.items()))


def schema() -> pyarrow.Schema:
    """One row a sample asked. `reason` and `detail` are empty where it was accepted; `rationale` is also kept where it
    was not. `second_answer` is what the second pass said, `detail` tells more of a reason."""
    import pyarrow as pa

    names = (
        "uid", "source", "sub_task", "status", "reason", "detail", "rationale", "second_answer", "teacher", "prompts",
    )  # fmt: skip
    return pa.schema([(name, pa.string()) for name in names])


def write_shard(data: str, name: str, path: str, rows: Sequence[Mapping[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema()), buffer)
    storage.write_bytes(storage.join(folder(data, name), path), buffer.getvalue())


def read_shard(data: str, name: str, path: str, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    import pyarrow.lib
    import pyarrow.parquet as pq

    full = storage.join(folder(data, name), path)
    try:
        with storage.open_read(full) as stream:
            rows: list[dict[str, str]] = pq.read_table(
                stream, columns=list(columns) if columns else None
            ).to_pylist()
    except (FileNotFoundError, pyarrow.lib.ArrowInvalid) as error:
        raise RationalesError(
            f"{full}: missing or damaged ({error}); remove it and write the rationales again"
        ) from error
    return rows


def shard_files(data: str, name: str) -> set[str]:
    """The names of the shards that are there."""
    return {path for path in storage.list_files(folder(data, name)) if path.endswith(".parquet")}


def write_manifest(data: str, name: str, facts: Mapping[str, Any], shards: Iterable[str]) -> dict[str, Any]:
    """Count what the shards hold, check that nothing is missing, and write `rationales.json`. `facts`: further keys.

    Raises RationalesError where a uid is there twice, or asked differs from accepted + rejected.
    """
    counts: dict[str, dict[str, dict[str, Any]]] = {}
    files: dict[str, Any] = {}
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(shards):
        rows = read_shard(data, name, path)
        content = storage.read_bytes(storage.join(folder(data, name), path))
        files[path] = {"sha256": sha256_of_bytes(content), "rows": len(rows)}
        for row in rows:
            if row["uid"] in seen:
                raise RationalesError(
                    f"{folder(data, name)}: {row['uid']} was asked twice; remove the folder"
                )
            seen.add(row["uid"])
            entry = counts.setdefault(row["source"], {}).setdefault(
                row["sub_task"], {"asked": 0, "accepted": 0, "rejected": {}}
            )
            entry["asked"] += 1
            if row["status"] == ACCEPTED:
                entry["accepted"] += 1
                texts[row["uid"]] = row["rationale"]
            else:
                entry["rejected"][row["reason"]] = entry["rejected"].get(row["reason"], 0) + 1
    entries = [entry for of_source in counts.values() for entry in of_source.values()]
    asked, kept, rejected = (
        len(seen),
        sum(entry["accepted"] for entry in entries),
        sum(sum(entry["rejected"].values()) for entry in entries),
    )
    if asked != facts["planned"] or asked != kept + rejected:
        raise RationalesError(
            f"{folder(data, name)}: {facts['planned']} samples were to be asked, {asked} were, {kept} accepted and "
            f"{rejected} rejected; remove the folder and start again"
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "digest": accepted_digest(texts),
        **{key: value for key, value in facts.items() if key != "planned"},
        "asked": asked,
        "accepted": kept,
        "rejected": rejected,
        "counts": counts,
        "files": files,
    }
    storage.write_json(storage.join(folder(data, name), MANIFEST), manifest)
    return manifest
