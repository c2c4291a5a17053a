"""The build: plan → convert shards (Ray Data) → decide duplicates and splits → write → verify (Ray tasks) → manifest.

Converted shards lie in OUT/.work and are the only state: a build that was killed starts again and goes on. Only hash
columns are ever held for the whole set; pictures travel inside one shard or one output file at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dataset_build import (
    card,
    convert,
    decide,
    dry,
    gather,
    hash_columns,
    instructions,
    leakage,
    ledger,
    manifest,
    media,
    plan,
    plots,
    ray_local,
    ray_tasks,
    rewriting,
    roots,
    schema,
    sources,
    splits,
    storage,
    write,
    written,
)
from dataset_build.decide import Decision
from dataset_build.errors import BuildError, StorageError
from dataset_build.gather import Gathered
from dataset_build.index import Index
from dataset_build.plan import Plan, Shard
from dataset_build.progress import Progress
from dataset_build.ray_metrics import METRICS
from dataset_build.recipe import BuildRecipe, MediaSettings, inputs_digest
from dataset_build.schema import Reject

# Written files of so many bytes together are read back in this process: it takes half a second, as handing out does.
_READ_HERE_BYTES = 32 << 20
_SAMPLE_FILE = re.compile(rf"(?:{'|'.join(schema.SPLITS)})/[a-z0-9_]+-[0-9]{{5,}}\.parquet")


def build(recipe: BuildRecipe, workers: int | None = None) -> dict[str, Any]:
    """Build EmoBench into `recipe.out` and return its manifest. Raises BuildError.

    `workers` bounds how many shards are converted at once; the result does not depend on it.
    """
    leakage.check_pairs([spec.name for spec in recipe.sources], recipe.leakage.allow_pairs)
    out = recipe.out.rstrip("/") if storage.is_remote(recipe.out) else os.path.abspath(recipe.out)
    work = storage.join(out, ".work")
    digest = inputs_digest(recipe)
    done = manifest.unchanged(out, digest)
    if done:
        print(f"nothing changed: {recipe.out} already holds this build, digest {done['digest']}")
        print(ledger.table(done["sources"]), flush=True)
        return done
    storage.remove(storage.join(out, "manifest.json"))
    rewritten = rewriting.rewrite(recipe, work)
    wordings = {
        spec.name: instructions.wording(
            recipe.instructions, sources.adapter(spec.name), rewritten.sentences.get(spec.name)
        )
        for spec in recipe.sources
    }
    made = plan.make(recipe, work, wordings)
    known = plan.finished(work)
    pending = [shard for shard in made.shards if not plan.is_done(shard, work, known)]
    print(
        f"{made.records.total()} records; {len(made.shards)} shards, {len(pending)} of them to convert",
        flush=True,
    )
    # A thread that draws the card while the workers read, and imports what it needs for that while they convert.
    with ray_local.session(), ThreadPoolExecutor(1) as beside:
        beside.submit(plots.load)
        if pending:
            _convert(recipe, made.shards, pending, work, workers, wordings)
        found = gather.gather(made, work, decide.facts(recipe))
        files = {
            "rejects.parquet": write.write_table(
                storage.join(out, "rejects.parquet"), found.rejects, schema.reject_schema()
            )
        }
        ledger.check_budget(
            made.records, gather.count(found.rejects, "source", "reason"), recipe.reject_budget, found.rejects
        )
        decision = decide.decide(recipe, found.index)
        tasks = _write_tasks(recipe, found, decision, out)
        earlier = written.Written(out, work)
        there = earlier.still_there(tasks)
        files |= there | _write_samples([task for task in tasks if task["path"] not in there], workers)
        files |= _write_decision(recipe, found.index, decision, out)
        files |= rewriting.write_table(out, rewritten)
        counts = _ledger(made, found, decision)
        done = manifest.make(recipe, digest, counts, files, decision.places)
        _remove_strangers(out, files)
        drawn = beside.submit(card.make, out, done)
        problems = _read_back(out, done, workers, there)
    if problems:
        raise BuildError("the written files do not verify:\n  " + "\n  ".join(problems[:20]))
    earlier.remember(tasks, files)
    for path, data in drawn.result().items():
        storage.write_bytes(storage.join(out, path), data)
    storage.write_json(f"{out}/manifest.json", done)
    plan.prune(work, made.shards)
    print(ledger.table(counts))
    print(f"{recipe.out}: {len(files)} files, digest {done['digest']}", flush=True)
    return done


def dry_run(recipe: BuildRecipe) -> dict[str, dict[str, dry.Tally]]:
    """Read the annotations, stat the media, and say what a build would do. Nothing is decoded or written."""
    return dry.run(recipe)


# --- convert ---------------------------------------------------------------------------------------------------------


def _convert(
    recipe: BuildRecipe,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    work: str,
    workers: int | None,
    wordings: Mapping[str, instructions.Wording],
) -> None:
    roots = {spec.name: recipe.source_root(spec) for spec in recipe.sources}
    tasks = [
        {
            "shard": list(shard),
            "root": roots[shard.source],
            "work": work,
            "media": recipe.media.model_dump(),
            "wording": dataclasses.asdict(wordings[shard.source]),
        }
        for shard in pending
    ]
    total, rejected = sum(shard.rows for shard in shards), 0
    already = total - sum(shard.rows for shard in pending)
    metrics = ray_local.Metrics(METRICS, run=recipe.name)
    with Progress("converting", total, "rows", already=already) as progress:
        for done, result in enumerate(
            ray_tasks.run(convert_shard, tasks, workers), start=len(shards) - len(pending) + 1
        ):
            rejected += sum(result["rejected"].values())
            progress.advance(result["rows"], rejects=rejected)
            # Every gauge anew each time: Ray stops exporting one that has not been set for 20 s.
            metrics.record("emobench_build_shards_total", len(shards))
            metrics.record("emobench_build_shards_done", done)
            metrics.record("emobench_build_rows_total", result["rows"])
            metrics.record("emobench_build_rows_per_s", progress.rate)
            for reason, count in result["rejected"].items():
                metrics.record("emobench_build_rejects_total", count, reason=reason)


def convert_shard(task: dict[str, Any]) -> dict[str, Any]:
    """Convert the records of one shard and leave its files and marker in the work folder. Runs in a Ray worker."""
    shard = Shard(*task["shard"])
    settings = MediaSettings.model_validate(task["media"])
    adapter, wording = sources.adapter(shard.source), instructions.Wording(**task["wording"])
    samples, index, rejects = [], [], []
    records = plan.read_records(shard.path(task["work"], "plan.json"))
    with roots.opened(task["root"], records, settings) as root:
        for record in records:
            try:
                result = convert.convert(record, root, adapter, settings, wording)
            except StorageError:  # no fault of the row: the shard is not done
                raise
            except Exception as error:  # one row never costs its shard; a defect shows in the budget
                said = media.without_addresses(f"{type(error).__name__}: {error}")
                detail = f"{record.uid}: unexpected {said}"
                result = Reject(
                    record.uid, record.source, record.split, record.sub_task, "undecodable", detail[:500]
                )
            roots.release(root, record)
            if isinstance(result, Reject):
                rejects.append(dataclasses.asdict(result))
            else:
                samples.append(result.sample)
                index.append(result.hashes)
    tables = {
        "samples.parquet": (samples, convert.undivided_schema()),
        "index.parquet": (index, hash_columns.arrow_schema()),
        "rejects.parquet": (rejects, schema.reject_schema()),
    }
    sizes = {}
    for kind, (rows, arrow_schema) in tables.items():
        data = write.bytes_of_rows(rows, arrow_schema)
        storage.write_bytes(shard.path(task["work"], kind), data)
        sizes[kind] = len(data)
    marker = {"bytes": sizes, "kept": len(samples), "rejected": len(rejects)}
    storage.write_json(shard.path(task["work"], "done.json"), marker)
    return {
        "rows": len(samples) + len(rejects),
        "rejected": Counter(reject["reason"] for reject in rejects),
    }


# --- write -----------------------------------------------------------------------------------------------------------


def _write_tasks(recipe: BuildRecipe, found: Gathered, decision: Decision, out: str) -> list[dict[str, Any]]:
    """One task a sample file: every kept row, in the order of its annotation, in OUT/<split>/<source>-NNNNN.parquet."""
    import numpy as np

    index, places = found.index, decision.places
    stays = decide.kept(index, decision)
    where = places.split[stays].astype(np.int64) * len(index.source_names) + index.source[stays]
    tasks = []
    for code in np.unique(where).tolist():
        split, source = divmod(code, len(index.source_names))
        name = index.source_names[source]
        rows = stays[where == code]
        for number, part in enumerate(write.cut_files(index.n_bytes[rows].tolist(), recipe.rows_per_file)):
            path = f"{schema.SPLITS[split]}/{name}-{number:05d}.parquet"
            tasks.append({"out": out, "path": path, "parts": _parts(found, places, rows[part])})
    return sorted(tasks, key=lambda task: task["path"])


def _write_samples(tasks: Sequence[dict[str, Any]], workers: int | None) -> dict[str, Any]:
    """Write the files of these tasks; returns the manifest's entry of each."""
    files = {}
    # The largest first, so that no core waits long for the last one.
    ordered = sorted(tasks, key=lambda task: -sum(len(rows) for _, rows, _ in task["parts"]))
    with Progress("writing", len(tasks), "files") as progress:
        for result in ray_tasks.run_short(write_file, ordered, workers):
            files[result.pop("path")] = result
            progress.advance()
    return files


def _parts(found: Gathered, places: splits.Places, rows: Any) -> list[list[Any]]:
    """The rows of one file as `write.Part`s: by shard, with the numbers of the rows inside it, and their folds."""
    import numpy as np

    shards = np.searchsorted(found.shard_from, rows, side="right") - 1
    parts = []
    for shard in np.unique(shards).tolist():
        own = rows[shards == shard]
        inside = (own - found.shard_from[shard]).tolist()
        parts.append(list(write.Part(found.shard_paths[shard], inside, places.fold[own].tolist())))
    return parts


def write_file(task: dict[str, Any]) -> dict[str, Any]:
    """Write one sample file. Runs in a Ray worker."""
    split = task["path"].split("/")[0]
    parts = [write.Part(*part) for part in task["parts"]]
    path = storage.join(task["out"], task["path"])
    return {"path": task["path"], **write.write_samples(path, split, parts)}


def _read_back(out: str, done: dict[str, Any], workers: int | None, there: Mapping[str, Any]) -> list[str]:
    """What is wrong with the written files, of which those of `there` are as they were: `manifest.content_problems`."""
    in_parallel = functools.partial(ray_tasks.run_short, workers=workers)
    size = sum(entry["bytes"] for path, entry in done["files"].items() if path not in there)
    return manifest.content_problems(out, done, map if size < _READ_HERE_BYTES else in_parallel, set(there))


def _write_decision(recipe: BuildRecipe, index: Index, decision: Decision, out: str) -> dict[str, Any]:
    """duplicates.parquet (every removed row) and leakage.json (what `decide.leakage_report` says)."""
    report = decide.leakage_report(recipe, index, decision)
    path = storage.join(out, "leakage.json")
    storage.write_json(path, report)
    removed = decide.duplicate_rows(index, decision)
    return {
        "duplicates.parquet": write.write_rows(
            storage.join(out, "duplicates.parquet"), removed, schema.duplicate_schema()
        ),
        "leakage.json": write.entry(storage.read_bytes(path), len(report["removed"])),
    }


def _ledger(made: Plan, found: Gathered, decision: Decision) -> ledger.Ledger:
    import numpy as np

    index, places = found.index, decision.places
    return ledger.make(
        made.records,
        kept=places.count(index, decide.kept(index, decision)),
        rejected=gather.count(found.rejects, "source", "split"),
        duplicates=places.count(index, np.array(list(decision.removed), np.int64)),
    )


def _remove_strangers(out: str, files: dict[str, Any]) -> None:
    """Remove sample files of an earlier build that this one did not write, and what killed writes left.

    Only files with the names of sample files: whatever else lies in a folder called train is somebody's.
    """
    storage.remove_partials(out)
    for path in storage.list_files(out):
        if _SAMPLE_FILE.fullmatch(path) and path not in files:
            storage.remove(storage.join(out, path))
