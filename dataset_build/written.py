"""Sample files of an earlier build that can stay: what they were made from, kept in OUT/.work/written.json.

A sample file follows from the rows of the shards that it gathers, which of them it takes, and the code. Where all of
that is as it was when the file was last written and read back, and its bytes still have that digest, writing it again
would give the same bytes. Only for builds into a folder: in a store, finding that out means fetching the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dataset_build import provenance, schema, storage

_NAME = "written.json"
Entry = dict[str, Any]  # of the manifest: sha256, rows, bytes


class Written:
    """The files that the last finished build in this folder wrote, by the key of what they were made from."""

    def __init__(self, out: str, work: str) -> None:
        self._out, self._path = out, storage.join(work, _NAME)
        self._common = [
            schema.SCHEMA_VERSION,
            provenance.code_digest(["dataset_build"]),
            provenance.library_versions(["pyarrow"]),
        ]
        self._known: dict[str, dict[str, Any]] = {}
        if not storage.is_remote(out) and storage.exists(self._path):
            try:
                self._known = dict(storage.read_json(self._path))
            except (ValueError, TypeError):  # a damaged list: everything is written again
                self._known = {}

    def key(self, task: Mapping[str, Any]) -> str:
        """What the file of a write task is made from, wherever the work folder lies: shards are named by their key."""
        parts = [[os.path.basename(shard), rows, folds] for shard, rows, folds in task["parts"]]
        return provenance.sha256_of_json([*self._common, task["path"], parts])

    def still_there(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Entry]:
        """The manifest's entries, by path, of those tasks whose file need not be written again."""
        with ThreadPoolExecutor() as several:  # sha256 lets other threads run
            entries = list(several.map(self._entry, tasks))
        return {task["path"]: entry for task, entry in zip(tasks, entries, strict=True) if entry}

    def _entry(self, task: Mapping[str, Any]) -> Entry | None:
        known = self._known.get(task["path"], {})
        full = storage.join(self._out, task["path"])
        if known.get("key") != self.key(task) or not os.path.isfile(full):
            return None
        entry = {name: known[name] for name in ("sha256", "rows", "bytes")}
        if os.path.getsize(full) != entry["bytes"] or provenance.sha256_of_file(full) != entry["sha256"]:
            return None
        return entry

    def remember(self, tasks: Iterable[Mapping[str, Any]], files: Mapping[str, Entry]) -> None:
        """To be called once the files were read back and found right."""
        if not storage.is_remote(self._out):
            known = {task["path"]: {"key": self.key(task), **files[task["path"]]} for task in tasks}
            storage.write_json(self._path, known)
