"""Writing rationales for an EmoBench: which samples, in which shards, by whom, and what is left when it is done.

A shard is up to `SHARD_ROWS` chosen rows of one data file; its name is a digest of all that its rationales depend on. A shard
whose file is there is not asked again, so a killed run goes on where it was. asked = accepted + rejected is checked by
`store.write_manifest` before the manifest, which makes the rationales finished.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dataset_build import ray_local, storage
from dataset_build.provenance import code_version, sha256_of_bytes, sha256_of_json
from dataset_build.schema import SPLITS
from emollm.rationales import prompts, store, verify
from emollm.rationales.store import RationalesError
from emollm.rationales.teacher import Said, Teacher

SHARD_ROWS = 64
RESPONSES = ".responses"


@dataclass(frozen=True)
class Selection:
    """Which samples are asked: of these splits' folders and sub-tasks, at most `limit` a sub-task (0: all)."""

    splits: tuple[str, ...] = ("train",)
    sub_tasks: tuple[str, ...] = ()
    limit: int = 0


@dataclass(frozen=True)
class Shard:
    """Rows `indices` of the data file `path`, in order."""

    name: str
    path: str
    indices: tuple[int, ...]
    uids: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All shards; `counts` says how many samples of each (source, sub-task) they hold."""

    data_digest: str
    shards: tuple[Shard, ...]
    counts: dict[tuple[str, str], int]

    @property
    def n_samples(self) -> int:
        return sum(self.counts.values())


def make_plan(data: str, selection: Selection, teacher_digest: str) -> Plan:
    """The shards of a run. Raises RationalesError where there is no finished EmoBench, or nothing to ask."""
    import pyarrow.parquet as pq

    manifest = storage.join(data, "manifest.json")
    if not storage.exists(manifest):
        raise RationalesError(f"{manifest}: not there, so {data} is no finished EmoBench; build it first")
    content = storage.read_json(manifest)
    rows: list[tuple[str, int, str, str, str]] = []
    for path in sorted(content["files"]):
        if path.split("/")[0] not in selection.splits or not path.endswith(".parquet"):
            continue
        with storage.open_read(storage.join(data, path)) as stream:
            table = pq.ParquetFile(stream).read(columns=["uid", "source", "sub_task"])
        columns = (table.column(name).to_pylist() for name in ("uid", "source", "sub_task"))
        rows += [(path, index, *row) for index, row in enumerate(zip(*columns, strict=True))]
    chosen = _chosen(rows, selection)
    if not chosen:
        tasks = ", ".join(selection.sub_tasks) or "any sub-task"
        raise RationalesError(f"{data}: no samples of {tasks} in {', '.join(selection.splits)}")
    shards = []
    by_file: dict[str, list[tuple[str, int, str, str, str]]] = {}
    for row in chosen:
        by_file.setdefault(row[0], []).append(row)
    for path, of_file in by_file.items():
        for start in range(0, len(of_file), SHARD_ROWS):
            part = of_file[start : start + SHARD_ROWS]
            uids = tuple(row[2] for row in part)
            name = sha256_of_json([content["digest"], teacher_digest, prompts.VERSION, uids])
            shards.append(Shard(f"{name[:32]}.parquet", path, tuple(row[1] for row in part), uids))
    return Plan(content["digest"], tuple(shards), dict(Counter((row[3], row[4]) for row in chosen)))


def _chosen(rows: Sequence[tuple[str, int, str, str, str]], selection: Selection) -> list[Any]:
    """The rows to ask in the order of the files; with a limit those with the smallest digest of their uid, as
    `evaluate --limit` takes them."""
    wanted = [row for row in rows if not selection.sub_tasks or row[4] in selection.sub_tasks]
    if not selection.limit:
        return wanted
    taken: set[str] = set()
    for task in {row[4] for row in wanted}:
        uids = sorted(
            (row[2] for row in wanted if row[4] == task), key=lambda uid: sha256_of_bytes(uid.encode())
        )
        taken.update(uids[: selection.limit])
    return [row for row in wanted if row[2] in taken]


def read_samples(data: str, shard: Shard) -> list[dict[str, Any]]:
    """The samples of a shard with their media; row groups that hold none of them are not read."""
    import pyarrow.parquet as pq

    found: dict[int, dict[str, Any]] = {}
    with storage.open_read(storage.join(data, shard.path)) as stream:
        file = pq.ParquetFile(stream)
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = [index - start for index in shard.indices if start <= index < end]
            if inside:
                taken = file.read_row_group(group).take(inside).to_pylist()
                found.update(zip((start + i for i in inside), taken, strict=True))
            start = end
    samples = [found[index] for index in shard.indices]
    if tuple(sample["uid"] for sample in samples) != shard.uids:
        raise RationalesError(f"{data}/{shard.path} changed during the run; start again")
    return samples


def ask(samples: Sequence[dict[str, Any]], teacher: Teacher, teacher_name: str) -> list[dict[str, str]]:
    """Both passes over some samples: one row (`store.schema`) for each, accepted or rejected, in order."""
    first = [
        verify.Judged(reply.text[: verify.MAX_CHARS], reply.reason, reply.detail)
        if reply.reason
        else verify.judged(sample, reply.text, reply.cut_off)
        for sample, reply in zip(samples, teacher.write(samples), strict=True)
    ]
    passed = [place for place, one in enumerate(first) if not one.reason]
    checked = [samples[place] for place in passed]
    texts = [verify.masked(samples[place], first[place].rationale) for place in passed]
    second = dict(zip(passed, teacher.check(checked, texts), strict=True)) if passed else {}
    rows = []
    for place, (sample, one) in enumerate(zip(samples, first, strict=True)):
        said = second.get(place, Said(""))
        reason, detail = (one.reason, one.detail) if one.reason else (said.reason, said.detail)
        if reason and reason not in verify.REASONS:
            raise AssertionError(f"{sample['uid']}: reason {reason!r} is not in verify.REASONS")
        rows.append(
            {
                "uid": sample["uid"],
                "source": sample["source"],
                "sub_task": sample["sub_task"],
                "status": store.REJECTED if reason else store.ACCEPTED,
                "reason": reason,
                "detail": detail,
                "rationale": one.rationale,
                "second_answer": said.text,
                "teacher": teacher_name,
                "prompts": prompts.VERSION,
            }
        )
    return rows


# --- a run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where rationales go, and by whom they are; `teacher` is {kind, name, digest}."""

    data: str
    name: str
    teacher: dict[str, str]


def unfinished(plan: Plan, target: Target, retry_errors: bool = False) -> list[Shard]:
    """The shards that have to be asked; with `retry_errors` also those with samples that the endpoint failed."""
    there = store.shard_files(target.data, target.name)
    if retry_errors:
        reopen(target)
        for shard in plan.shards:
            if shard.name in there and any(
                row["reason"] == "endpoint_error"
                for row in store.read_shard(target.data, target.name, shard.name, ["reason"])
            ):
                there.discard(shard.name)
                storage.remove(storage.join(store.folder(target.data, target.name), shard.name))
    return [shard for shard in plan.shards if shard.name not in there]


def reopen(target: Target) -> None:
    """Make the rationales unfinished, before any of their shards changes."""
    storage.remove(storage.join(store.folder(target.data, target.name), store.MANIFEST))


def known(plan: Plan, target: Target, selection: Selection) -> dict[str, Any] | None:
    """The manifest where exactly this is done already. Raises RationalesError where the name is another run's, or
    where rationales would be lost that this selection leaves out."""
    found = store.read_manifest(target.data, target.name)
    if found is None:
        return None
    same = found["data_digest"] == plan.data_digest and found["teacher"] == target.teacher
    if not same or found["prompts"] != prompts.VERSION:
        raise RationalesError(
            f"{store.folder(target.data, target.name)}: holds rationales of another teacher, data or version of the "
            f"prompts ({found['teacher']['name']}); give another --name, or --force to replace them"
        )
    names = {shard.name for shard in plan.shards}
    asked = {
        row["uid"]
        for path in set(found["files"]) - names
        for row in store.read_shard(target.data, target.name, path, ["uid"])
    }
    if lost := asked - {uid for shard in plan.shards for uid in shard.uids}:
        raise RationalesError(
            f"{store.folder(target.data, target.name)}: holds rationales of {len(lost)} samples that are not chosen now "
            f"({min(lost)}, …); choose at least those, give another --name, or --force to remove them"
        )
    return found if found["selection"] == _json(selection) and set(found["files"]) == names else None


def _json(selection: Selection) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(selection))))


def run_with(
    teacher: Teacher, shards: Sequence[Shard], target: Target, advance: Callable[[int], None] | None = None
) -> None:
    """Ask the shards one after the other in this process."""
    for shard in shards:
        rows = ask(read_samples(target.data, shard), teacher, target.teacher["name"])
        store.write_shard(target.data, target.name, shard.name, rows)
        if advance is not None:
            advance(len(rows))


def finish(plan: Plan, target: Target, selection: Selection) -> dict[str, Any]:
    """Write the manifest, once all shards are there, and remove those of earlier selections."""
    names = {shard.name for shard in plan.shards}
    there = store.shard_files(target.data, target.name)
    if missing := names - there:
        raise RationalesError(
            f"{len(missing)} of {len(names)} shards are not written; start the command again"
        )
    facts = {
        "name": target.name,
        "data_digest": plan.data_digest,
        "teacher": target.teacher,
        "prompts": prompts.VERSION,
        "selection": _json(selection),
        "code": code_version(),
        "planned": plan.n_samples,
    }
    manifest = store.write_manifest(target.data, target.name, facts, names)
    storage.remove_all(
        [storage.join(store.folder(target.data, target.name), name) for name in sorted(there - names)]
    )
    return manifest


def forget(target: Target) -> None:
    """Remove rationales of this name, manifest first; an endpoint's kept responses stay."""
    reopen(target)
    root = store.folder(target.data, target.name)
    names = sorted(store.shard_files(target.data, target.name))
    storage.remove_all([storage.join(root, name) for name in names])


# --- a local teacher on Ray ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalJob:
    """What an actor needs to ask shards."""

    target: Target
    path: str
    batch_size: int = 8
    max_side_px: int | None = None
    threads: int = 1
    folder: str = ""  # working directory that relative paths refer to


class ShardAsker:
    """Asks shards with one model in memory; a Ray Data actor class, and usable without Ray."""

    def __init__(self, job: LocalJob) -> None:
        import torch

        from emollm.rationales.teacher import LocalTeacher

        if job.folder and os.path.isdir(job.folder):
            os.chdir(job.folder)
        torch.set_num_threads(job.threads)
        self.job = job
        self.teacher = LocalTeacher(job.path, job.batch_size, job.max_side_px)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        counts = []
        for text in batch["shard"]:
            values = json.loads(text)
            shard = Shard(values["name"], values["path"], tuple(values["indices"]), tuple(values["uids"]))
            if shard.name not in store.shard_files(self.job.target.data, self.job.target.name):
                run_with(self.teacher, [shard], self.job.target)
            counts.append(len(shard.uids))
        return {"samples": counts}


def run_on_ray(job: LocalJob, shards: Sequence[Shard], workers: int, advance: Callable[[int], None]) -> None:
    """Ask the shards on `workers` Ray Data actors: in the Ray that RAY_ADDRESS names, else a local one."""
    for count in _on_ray(job, shards, workers):
        advance(count)


def _on_ray(job: LocalJob, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    with ray_local.session():
        import ray
        import ray.data

        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        count = max(1, min(workers, len(shards), int(gpus) or int(cpus)))  # where there are GPUs, one each
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False
        texts = [{"shard": json.dumps(asdict(shard))} for shard in shards]
        asked = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
            ShardAsker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
            num_gpus=1 if gpus >= 1 else 0,
        )
        for row in asked.iter_rows():
            yield int(row["samples"])


def splits_of(word: str) -> tuple[str, ...]:
    """The folders that --split means."""
    return SPLITS if word == "all" else (word,)
