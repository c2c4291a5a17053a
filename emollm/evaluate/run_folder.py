"""Reading a finished evaluation: its results, checked against the schema, and its samples."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import storage
from emollm.evaluate.protocol import EvaluationError

if TYPE_CHECKING:
    import pyarrow

SCHEMA_PATH = Path(__file__).resolve().parent / "results.schema.json"
RESULTS, SAMPLES = "results.json", "samples.parquet"


class Run(NamedTuple):
    """A finished evaluation: `folder` holds its files, `samples` is samples.parquet."""

    folder: str
    results: dict[str, Any]
    samples: pyarrow.Table


def find(folder: str) -> str:
    """`folder`, or the `evaluation` folder inside of it: whichever holds results.json. Raises EvaluationError."""
    for candidate in (folder, storage.join(folder, "evaluation")):
        if storage.exists(storage.join(candidate, RESULTS)):
            return candidate
    raise EvaluationError(
        f"{storage.join(folder, RESULTS)} is not there; run `emollm evaluate` first, or name another folder"
    )


def read_run(folder: str) -> Run:
    """The evaluation in `folder` or in its `evaluation` folder. Raises EvaluationError naming the file and what is wrong."""
    folder = find(folder)
    results = read_results(folder)
    return Run(folder, results, read_samples(folder, results))


def read_results(folder: str) -> dict[str, Any]:
    path = storage.join(folder, RESULTS)
    results: dict[str, Any] = storage.read_json(path)
    validate(results, path)
    return results


def read_samples(folder: str, results: dict[str, Any]) -> pyarrow.Table:
    """samples.parquet, which must have the number of rows that `results` says."""
    import pyarrow
    import pyarrow.parquet as pq

    path = storage.join(folder, SAMPLES)
    if not storage.exists(path):
        raise EvaluationError(f"{path} is not there; run `emollm evaluate` again")
    try:
        # In this thread: the threads that Arrow starts can abort a process that ends right after, as one does on an error.
        with storage.open_read(path) as stream:
            table = pq.read_table(stream, use_threads=False, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise EvaluationError(f"{path}: no Parquet ({error}); run `emollm evaluate` again") from error
    if table.num_rows != results["n"]:
        raise EvaluationError(
            f"{path}: {table.num_rows} rows, {RESULTS} beside it says {results['n']}; run `emollm evaluate` again"
        )
    return table


def by_uid(table: pyarrow.Table) -> pyarrow.Table:
    """The rows of a samples table, sorted by uid (without Arrow's threads, see `read_samples`)."""
    import pyarrow.compute as pc

    return table.take(pc.sort_indices(table, sort_keys=[("uid", "ascending")]))


def validate(results: Any, path: str) -> None:
    """Raise EvaluationError naming the first place where `results` breaks results.schema.json."""
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version is not None and str(version).partition(".")[0] != "1":
        raise EvaluationError(
            f"{path}: format {version!r}, this version reads 1.x; use the version that wrote it, or evaluate again"
        )
    error = min(_validator().iter_errors(results), key=lambda found: len(found.absolute_path), default=None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        message = error.message if len(error.message) < 300 else error.message[:300] + " …"
        raise EvaluationError(f"{path}: {place}: {message}; run `emollm evaluate` again")


@functools.cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))
