"""The build: plan → convert shards (Ray Data) → decide duplicates and splits → write (Ray Data) → verify → manifest.

Converted shards lie in OUT/.work and are the only state: a build that was killed starts again and goes on. Only hash
columns are ever held for the whole set; pictures travel inside one shard or one output file at a time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dataset_build import (
    card,
    convert,
    dedup,
    ledger,
    manifest,
    plan,
    ray_local,
    schema,
    sources,
    splits,
    storage,
    write,
)
from dataset_build.errors import BuildError
from dataset_build.plan import Plan, Shard
from dataset_build.progress import Progress
from dataset_build.recipe import BuildRecipe, MediaSettings, inputs_digest
from dataset_build.schema import Reject
from dataset_build.write import RowRef

# Heap of one conversion or write task, which Ray cannot see: one shard's media, decoded one at a time.
_TASK_MEMORY = 512 << 20


class IndexRow(NamedTuple):
    """The hash columns of one converted row, and where the row lies."""

    hashes: dedup.Row
    split: str | None
    shard: str
    row: int
    n_bytes: int


class Decision(NamedTuple):
    """What was decided on the hash columns: where each row goes, which give way, which groups were tied."""

    places: dict[str, splits.Place]
    removed: dict[str, dedup.Removal]
    ties: list[dedup.Tie]


def build(recipe: BuildRecipe, workers: int | None = None) -> dict[str, Any]:
    """Build EmoBench into `recipe.out` and return its manifest. Raises BuildError.

    `workers` bounds how many shards are converted at once; the result does not depend on it.
    """
    out = recipe.out if storage.is_remote(recipe.out) else os.path.abspath(recipe.out)
    work = storage.join(out, ".work")
    digest = inputs_digest(recipe)
    done = manifest.unchanged(out, digest)
    if done:
        print(f"nothing changed: {recipe.out} already holds this build, digest {done['digest']}")
        print(ledger.table(done["sources"]), flush=True)
        return done
    storage.remove(storage.join(out, "manifest.json"))
    made = plan.make(recipe, work)
    pending = [shard for shard in made.shards if not plan.is_done(shard, work)]
    print(
        f"{made.records.total()} records; {len(made.shards)} shards, {len(pending)} of them to convert",
        flush=True,
    )
    with ray_local.session():
        if pending:
            _convert(recipe, made.shards, pending, work, workers)
        index, rejects = _gather(made, work)
        files = {
            "rejects.parquet": write.write_rows(f"{out}/rejects.parquet", rejects, schema.reject_schema())
        }
        ledger.check_budget(made.records, rejects, recipe.reject_budget)
        decision = decide(recipe, index)
        files |= _write_samples(recipe, index, decision, out, workers)
    files |= _write_decision(recipe, index, decision, out)
    counts = _ledger(made, index, rejects, decision)
    done = manifest.make(recipe, digest, counts, files)
    _remove_strangers(out, files)
    problems = manifest.content_problems(out, done)
    if problems:
        raise BuildError("the written files do not verify:\n  " + "\n  ".join(problems[:20]))
    card.write(out, done)
    storage.write_json(f"{out}/manifest.json", done)
    plan.prune(work, made.shards)
    print(ledger.table(counts))
    print(f"{recipe.out}: {len(files)} files, digest {done['digest']}", flush=True)
    return done


def dry_run(recipe: BuildRecipe) -> None:
    """Read the annotations only, and say what a build would do."""
    made = plan.make(recipe, None)
    rows = [["source", "records", "to convert", "left out by rule", "faulty rows", "shards"]]
    for spec in recipe.sources:
        own = [reject for reject in made.rejects if reject.source == spec.name]
        by_rule = sum(reject.reason in schema.REASONS_OUTSIDE_BUDGET for reject in own)
        shards = [shard for shard in made.shards if shard.source == spec.name]
        numbers = (
            made.records[spec.name],
            sum(shard.rows for shard in shards),
            by_rule,
            len(own) - by_rule,
            len(shards),
        )
        rows.append([spec.name, *map(str, numbers)])
    print(ledger.aligned(rows, right_from=1), flush=True)


# --- convert ---------------------------------------------------------------------------------------------------------


def _convert(
    recipe: BuildRecipe, shards: Sequence[Shard], pending: Sequence[Shard], work: str, workers: int | None
) -> None:
    roots = {spec.name: recipe.source_root(spec) for spec in recipe.sources}
    tasks = [
        {"shard": list(shard), "root": roots[shard.source], "work": work, "media": recipe.media.model_dump()}
        for shard in pending
    ]
    total, rejected = sum(shard.rows for shard in shards), 0
    already = total - sum(shard.rows for shard in pending)
    with Progress("converting", total, "rows", already=already) as progress:
        for result in _run_tasks(convert_shard, tasks, workers):
            rejected += result["rejected"]
            progress.advance(result["rows"], rejects=rejected)


def convert_shard(task: dict[str, Any]) -> dict[str, Any]:
    """Convert the records of one shard and leave its files and marker in the work folder. Runs in a Ray worker."""
    shard = Shard(*task["shard"])
    settings = MediaSettings.model_validate(task["media"])
    adapter = sources.adapter(shard.source)
    samples, index, rejects = [], [], []
    for record in plan.read_records(shard.path(task["work"], "plan.json")):
        try:
            result = convert.convert(record, task["root"], adapter, settings)
        except Exception as error:  # one row never costs its shard; a defect shows in the budget
            detail = f"{record.uid}: unexpected {type(error).__name__}: {error}"
            result = Reject(
                record.uid, record.source, record.split, record.sub_task, "undecodable", detail[:500]
            )
        if isinstance(result, Reject):
            rejects.append(dataclasses.asdict(result))
        else:
            samples.append(result.sample)
            index.append(result.hashes)
    tables = {
        "samples.parquet": (samples, convert.undivided_schema()),
        "index.parquet": (index, convert.index_schema()),
        "rejects.parquet": (rejects, schema.reject_schema()),
    }
    sizes = {
        kind: write.write_rows(shard.path(task["work"], kind), rows, arrow_schema)["bytes"]
        for kind, (rows, arrow_schema) in tables.items()
    }
    marker = {"bytes": sizes, "kept": len(samples), "rejected": len(rejects)}
    storage.write_json(shard.path(task["work"], "done.json"), marker)
    return {"rows": len(samples) + len(rejects), "rejected": len(rejects)}


def _gather(made: Plan, work: str) -> tuple[list[IndexRow], list[dict[str, Any]]]:
    """The hash columns of all converted rows in the order of the plan, and all rejects in the order of their uids."""
    import pyarrow.parquet as pq

    index: list[IndexRow] = []
    rejects = [dataclasses.asdict(reject) for reject in made.rejects]
    for shard in made.shards:
        adapter = sources.adapter(shard.source)
        samples = shard.path(work, "samples.parquet")
        with storage.open_read(shard.path(work, "index.parquet")) as stream:
            rows = pq.read_table(stream).to_pylist()
        for number, row in enumerate(rows):
            hashes = dedup.Row(
                uid=row["uid"],
                source=shard.source,
                sub_task=row["sub_task"],
                label=row["label"],
                group_key=adapter.GROUP_KEY,
                group=row["group"],
                pictures=adapter.PICTURES,
                content=row["content"],
                media=tuple(row["media"]),
                phash=row["phash"],
            )
            index.append(IndexRow(hashes, row["split"], samples, number, row["n_bytes"]))
        with storage.open_read(shard.path(work, "rejects.parquet")) as stream:
            rejects += pq.read_table(stream).to_pylist()
    for reject in rejects:
        reject["split"] = ledger.split_of_reject(reject["split"])
    return index, sorted(rejects, key=lambda reject: reject["uid"])


# --- decide ----------------------------------------------------------------------------------------------------------


def decide(recipe: BuildRecipe, index: Sequence[IndexRow]) -> Decision:
    """Ties between groups, then the place of every row, then the rows that give way to a twin."""
    hashes = [row.hashes for row in index]
    modes = {spec.name: sources.adapter(spec.name).SPLIT for spec in recipe.sources}
    ties = dedup.ties([row for row in hashes if modes[row.source] == "folds"], recipe.dedup.near_bits)
    tied = dedup.tied_groups(ties)
    rows = [
        splits.Row(
            uid=row.hashes.uid,
            source=row.hashes.source,
            mode=modes[row.hashes.source],
            split=row.split,
            group_key=row.hashes.group_key,
            group=tied.get((row.hashes.group_key, row.hashes.group), row.hashes.group),
            label=f"{row.hashes.sub_task}/{row.hashes.label}",
        )
        for row in index
    ]
    shares = splits.Shares(
        recipe.splits.folds, recipe.splits.test_share, recipe.splits.val_share, recipe.seed
    )
    places = splits.assign(rows, shares)
    removed = dedup.removals(hashes, places, recipe.dedup.near_bits)
    return Decision(places, {removal.uid: removal for removal in removed}, ties)


def _ledger(
    made: Plan, index: Sequence[IndexRow], rejects: Sequence[dict[str, Any]], decision: Decision
) -> ledger.Ledger:
    def where(row: IndexRow) -> tuple[str, str]:
        return row.hashes.source, decision.places[row.hashes.uid].split

    gone = decision.removed
    return ledger.make(
        made.records,
        kept=(where(row) for row in index if row.hashes.uid not in gone),
        rejected=((reject["source"], reject["split"]) for reject in rejects),
        duplicates=(where(row) for row in index if row.hashes.uid in gone),
    )


# --- write -----------------------------------------------------------------------------------------------------------


def _write_samples(
    recipe: BuildRecipe, index: Sequence[IndexRow], decision: Decision, out: str, workers: int | None
) -> dict[str, Any]:
    """Write every kept row, in the order of its annotation, to OUT/<split>/<source>-NNNNN.parquet."""
    chosen: dict[tuple[str, str], list[RowRef]] = {}
    for row in index:
        if row.hashes.uid not in decision.removed:
            place = decision.places[row.hashes.uid]
            ref = RowRef(row.shard, row.row, row.n_bytes, place.split, place.fold)
            chosen.setdefault((place.split, row.hashes.source), []).append(ref)
    tasks = [
        {"out": out, "path": f"{split}/{source}-{number:05d}.parquet", "refs": [list(ref) for ref in refs]}
        for (split, source), all_refs in sorted(chosen.items())
        for number, refs in enumerate(write.cut_files(all_refs, recipe.rows_per_file))
    ]
    files = {}
    with Progress("writing", len(tasks), "files") as progress:
        for result in _run_tasks(write_file, tasks, workers):
            files[result.pop("path")] = result
            progress.advance()
    return files


def write_file(task: dict[str, Any]) -> dict[str, Any]:
    """Write one sample file. Runs in a Ray worker."""
    refs = [RowRef(*ref) for ref in task["refs"]]
    return {"path": task["path"], **write.write_samples(storage.join(task["out"], task["path"]), refs)}


def _write_decision(
    recipe: BuildRecipe, index: Sequence[IndexRow], decision: Decision, out: str
) -> dict[str, Any]:
    """duplicates.parquet (every removed row) and leakage.json (those removed for the sake of another split; ties)."""
    of = {row.hashes.uid: row.hashes for row in index}
    removed = []
    for uid, removal in sorted(decision.removed.items()):
        row, split, twin_split = of[uid], decision.places[uid].split, decision.places[removal.twin_uid].split
        names = {"uid": uid, "source": row.source, "split": split, "sub_task": row.sub_task}
        removed.append(
            {**names, "twin_uid": removal.twin_uid, "twin_split": twin_split, "rule": removal.rule}
        )
    across = [entry for entry in removed if decision.removed[entry["uid"]].across_splits]
    ties = [
        {"group_key": t.group_key, "groups": t.groups, "uids": t.uids, "rule": t.rule} for t in decision.ties
    ]
    leakage = {"near_bits": recipe.dedup.near_bits, "removed": across, "tied_groups": ties}
    storage.write_json(f"{out}/leakage.json", leakage)
    written = storage.read_bytes(f"{out}/leakage.json")
    return {
        "duplicates.parquet": write.write_rows(
            f"{out}/duplicates.parquet", removed, schema.duplicate_schema()
        ),
        "leakage.json": write.entry(written, len(across)),
    }


def _remove_strangers(out: str, files: dict[str, Any]) -> None:
    """Remove sample files of an earlier build that this one did not write, and what killed writes left."""
    storage.remove_partials(out)
    for path in storage.list_files(out):
        if path.split("/")[0] in schema.SPLITS and path not in files:
            storage.remove(storage.join(out, path))


# --- Ray -------------------------------------------------------------------------------------------------------------


def _run_tasks(
    function: Callable[[dict[str, Any]], dict[str, Any]], tasks: Sequence[dict[str, Any]], workers: int | None
) -> Iterator[dict[str, Any]]:
    """Run `function` on every task through Ray Data, yielding results as they come, in any order."""
    if not tasks:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and progress lines; ours are enough
    ray.data.DataContext.get_current().enable_progress_bars = False
    texts = [{"task": json.dumps(task)} for task in tasks]
    run_batch: Callable[..., Any] = _run_batch
    dataset = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
        run_batch,
        fn_kwargs={"function": function},
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        memory=_TASK_MEMORY,
        compute=ray.data.TaskPoolStrategy(size=workers) if workers else None,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["result"])


def _run_batch(
    batch: dict[str, Any], function: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[str]]:
    return {"result": [json.dumps(function(json.loads(task))) for task in batch["task"]]}
