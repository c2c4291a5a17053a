"""A part of a build that is a build: the files, ledger and tables of some splits of some sources.

Whole sources and whole splits are chosen, so the ledger of the part balances as that of the whole does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dataset_build import manifest, schema, storage, write
from dataset_build.exports.files import Written

TABLES = {"rejects.parquet": schema.reject_schema, "duplicates.parquet": schema.duplicate_schema}


def part_of(content: dict[str, Any], splits: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """The manifest of the chosen part; the manifest itself where everything is chosen.

    The digests of `TABLES` are still those of the whole: `write_tables` cuts them and completes the manifest.
    """
    splits, sources = splits or schema.SPLITS, sources or list(content["sources"])
    if set(splits) >= set(schema.SPLITS) and set(sources) >= set(content["sources"]):
        return content
    ledger = {
        source: {split: counts for split, counts in found.items() if split in splits}
        for source, found in content["sources"].items()
        if source in sources
    }
    files = {
        path: entry
        for path, entry in content["files"].items()
        if "/" not in path or (path.split("/")[0] in splits and source_of(path) in sources)
    }
    facts = {name: fact for name, fact in content["source_facts"].items() if name in sources}
    # Not the inputs' own digest: a build of the same recipe must not take the part for the whole.
    chosen = f"{content['inputs_digest']}: {', '.join(sorted(splits))} of {', '.join(sorted(sources))}"
    return {**content, "inputs_digest": chosen, "sources": ledger, "source_facts": facts, "files": files}


def source_of(path: str) -> str:
    """The source of a sample file: SPLIT/SOURCE-NNNNN.parquet."""
    return path.split("/")[1].rsplit("-", 1)[0]


def split_files(content: dict[str, Any]) -> dict[str, list[str]]:
    """The sample files of each split that has any, in the order in which they are exported."""
    found: dict[str, list[str]] = {}
    for split in schema.SPLITS:
        paths = sorted(path for path in content["files"] if path.startswith(f"{split}/"))
        if paths:
            found[split] = paths
    return found


def write_tables(out: str, content: dict[str, Any], part: dict[str, Any], written: Written) -> None:
    """Write to build/ what a build holds beside its rows: the tables cut to the part, and its manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = dict(part["files"])
    for path in (path for path in content["files"] if "/" not in path):
        if part is content or path not in TABLES:
            written.copy(out, path, f"build/{path}")
            continue
        with storage.open_read(storage.join(out, path)) as stream:
            table = pq.read_table(stream)
        keep = [
            row["split"] in part["sources"].get(row["source"], {})
            for row in table.select(["source", "split"]).to_pylist()
        ]
        cut = table.filter(pa.array(keep, pa.bool_()))
        data = write.parquet_bytes([cut], TABLES[path]())
        written.write(f"build/{path}", data)
        files[path] = write.entry(data, len(cut))
    whole = {**part, "files": files, "digest": manifest.data_digest(files)}
    written.write("build/manifest.json", (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
