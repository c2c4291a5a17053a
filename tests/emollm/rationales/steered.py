"""An EmoBench of rows whose question tells the teacher server of the tests what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_build.provenance import sha256_of_file, sha256_of_json
from dataset_build.schema import SCHEMA_VERSION, sample_schema
from tests.emollm.train.small_emobench import LABELS, in_words, sample


def row(number: int, case: str = "good", *, seen: bool = True, **changes: Any) -> dict[str, Any]:
    """A row of EmoBench; every third one is a clip. Without `seen` it is words alone."""
    made = sample(
        number, fold=None, split="train", label=LABELS[number % 4], frames=2 if number % 3 == 2 else 0, **changes
    )  # fmt: skip
    made = made if seen else in_words(made)
    content = made["messages"][0]["content"]
    return {**made, "messages": [{"role": "user", "content": f"(case={case})\n{content}"}]}


def yes_no(number: int, case: str = "good") -> dict[str, Any]:
    """A question of humor."""
    made = row(number, case)
    options = ["Yes", "No"] if number % 2 else ["No", "Yes"]
    lettered = " ".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options))
    content = (
        f"(case={case})\nIs this funny?\nOptions: {lettered}\n{'<video>' if number % 3 == 2 else '<image>'}"
    )
    return {
        **made, "sub_task": "humor", "source": "jests", "options": options, "answer": options[number % 2],
        "uid": f"jests/all/{number:04d}", "messages": [{"role": "user", "content": content}],
    }  # fmt: skip


def write(folder: Path, rows: Sequence[dict[str, Any]], splits: Sequence[str] = ("train",)) -> Path:
    """A finished EmoBench with these rows, one file a split and source."""
    files = {}
    for split in splits:
        for source in sorted({one["source"] for one in rows}):
            chosen = [
                {**one, "group_keys": list(one["group_keys"].items())}
                for one in rows
                if one["source"] == source and one["split"] == split
            ]
            path = folder / split / f"{source}-00000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(chosen, schema=sample_schema()), path, row_group_size=16)
            files[f"{split}/{path.name}"] = {"sha256": sha256_of_file(str(path)), "rows": len(chosen)}
    manifest = {"schema_version": SCHEMA_VERSION, "digest": sha256_of_json(files), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
