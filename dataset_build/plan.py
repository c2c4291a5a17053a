"""The plan of a build: the adapters' record stream cut into shards, each with a key that says what it depends on.

A converted shard is three Parquet files and a marker, written last. Its name is its key: the records in it, their
files (path, size, modification time or etag), the adapter's version, the media settings and the code that converts. So a
second build, or one that was killed, redoes exactly the shards whose inputs changed or that were not finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from dataset_build import (
    convert,
    decoder,
    instructions,
    media,
    provenance,
    quality,
    roots,
    schema,
    sources,
    storage,
)
from dataset_build.errors import BuildError
from dataset_build.instructions import Wording
from dataset_build.recipe import BuildRecipe, SourceSpec
from dataset_build.reject_log import RejectLog
from dataset_build.schema import Crop, MediaRef, Record, Reject, Turn

# Modules that do not change what a converted shard holds.
_NOT_CONVERSION = tuple(
    f"dataset_build/{name}"
    for name in (
        "__main__.py", "card.py", "card_counts.py", "card_losses.py", "card_plots.py", "markdown.py", "plots.py", "dedup.py", "ledger.py", "manifest.py", "pipeline.py", "plan.py", "progress.py",
        "provenance.py", "catalogue.py", "recipe.py", "recipe_file.py", "recipes/", "rewriting.py", "check.py", "sources/", "splits.py", "storage.py", "write.py", "errors.py",
        "decide.py", "dry.py", "gather.py", "index.py", "leakage.py", "near.py", "ray_tasks.py", "reject_log.py", "verify_rows.py",
        "written.py",
        "s3.py", "roots.py", "export.py", "exports/",
    )
)  # fmt: skip


# A uid stands in every table, log and message; no source has ids this long unless a row is torn.
MAX_UID_CHARS = 300


class Shard(NamedTuple):
    """One unit of conversion. The files live in the work folder under `key`."""

    source: str
    number: int
    key: str
    rows: int

    def path(self, work: str, kind: str) -> str:
        """`kind`: plan.json (the records), samples.parquet, index.parquet, rejects.parquet, done.json (the marker)."""
        return storage.join(work, "shards", f"{self.source}-{self.number:05d}-{self.key}.{kind}")


class Plan(NamedTuple):
    """What there is to do. `rejects` are those of the adapters themselves; `records` counts all items per source."""

    shards: list[Shard]
    rejects: RejectLog
    records: Counter[str]


# Size and modification time of a file (or what a store says instead), or why it cannot be used.
Fingerprint = list[Any] | str
Watch = Callable[[Record, list[Fingerprint]], None]


def make(
    recipe: BuildRecipe,
    work: str | None,
    wordings: Mapping[str, Wording] | None = None,
    watch: Watch | None = None,
) -> Plan:
    """Read the adapters and cut their records into shards; unfinished shards get their plan file in `work`.

    Only shard keys and the adapters' own rejects are held; with `work` None nothing is written (a dry run).
    `wordings`: how each source is asked, where not as the recipe's `instructions` say. `watch` sees every record with
    the fingerprints of its media. Raises BuildError for a source without rows: a build must not pass without it.
    """
    plan = Plan([], RejectLog(), Counter())
    code = provenance.code_digest(["dataset_build"], leave_out=_NOT_CONVERSION)
    settings = convert.media_digest(recipe.media)
    tools = _tools()
    known = finished(work) if work is not None else None
    for spec in recipe.sources:
        adapter = sources.adapter(spec.name)
        how = (wordings or {}).get(spec.name) or instructions.wording(recipe.instructions, adapter)
        asked = provenance.sha256_of_json(dataclasses.asdict(how))
        prefix = [
            schema.SCHEMA_VERSION,
            adapter.NAME,
            adapter.VERSION,
            adapter.GROUP_KEY,
            settings,
            asked,
            code,
            *tools,
        ]
        root = recipe.source_root(spec)
        records = _unique(_items(recipe, spec, plan), plan)
        with storage.snapshot(root) as taken:
            place = taken or media.Folder(root)
            for number, batch in enumerate(_batches(records, recipe)):
                files = [[roots.fingerprint(place, ref) for ref in record.media] for record in batch]
                if watch:
                    for record, fingerprints in zip(batch, files):
                        watch(record, fingerprints)
                _add_shard(plan, spec.name, number, prefix, batch, files, work, known)
        if not plan.records[spec.name]:
            raise BuildError(
                f"source {spec.name}: its annotation in {root} holds no row; fetch the files again (`python -m "
                f"dataset_build check {spec.name} {root}` says what is missing), or take the source out of the recipe"
            )
    return plan


def _tools() -> list[str]:
    """The versions of what turns media into the bytes that are stored, so that an upgrade converts everything again."""
    names = ("pillow", "ImageHash", "numpy", "scipy", "pyarrow")
    return [*(f"{name} {importlib.metadata.version(name)}" for name in names), decoder.ffmpeg_version()]


def finished(work: str) -> set[str] | None:
    """The keys of the shards that are done in a remote work folder, from one listing; None for a local one.

    S3 shows no file before it is whole, so the marker and the files it stands for need not be opened.
    """
    if not storage.is_remote(work):
        return None
    kinds: dict[str, set[str]] = {}
    for name in storage.list_files(storage.join(work, "shards")):
        stem, _, kind = name.partition(".")
        kinds.setdefault(stem.rpartition("-")[2], set()).add(kind)
    whole = {"done.json", "samples.parquet", "index.parquet", "rejects.parquet"}
    return {key for key, found in kinds.items() if whole <= found}


def is_done(shard: Shard, work: str, known: set[str] | None = None) -> bool:
    """Whether the shard's marker is there and its files have the sizes the marker says; `known` is from `finished`."""
    if known is not None:
        return shard.key in known
    marker = shard.path(work, "done.json")
    if not storage.exists(marker):
        return False
    sizes = storage.read_json(marker)["bytes"]
    return all(
        storage.exists(path := shard.path(work, kind)) and storage.size(path) == size
        for kind, size in sizes.items()
    )


def read_records(path: str) -> list[Record]:
    """The records of a plan file."""
    return [_record(row) for row in storage.read_json(path)]


def prune(work: str, shards: list[Shard]) -> int:
    """Remove the files of shards that are not in the plan (of changed inputs), and plan files. Returns how many."""
    wanted = {f"{shard.source}-{shard.number:05d}-{shard.key}" for shard in shards}
    folder = storage.join(work, "shards")
    stale = [
        name
        for name in storage.list_files(folder)
        if name.split(".")[0] not in wanted or name.endswith("plan.json")
    ]
    storage.remove_all([storage.join(folder, name) for name in stale])
    return len(stale)


def _items(recipe: BuildRecipe, spec: SourceSpec, plan: Plan) -> Iterator[Record | Reject]:
    for item in sources.adapter(spec.name).read(recipe.source_root(spec), recipe.source_options(spec)):
        plan.records[spec.name] += 1
        yield _with_short_uid(_storable(item))


def _storable(item: Record | Reject) -> Record | Reject:
    """The item; a bad_row reject where any text of it is not Unicode (JSON's escapes can spell half a character)."""
    plain = _plain(item) if isinstance(item, Record) else vars(item)
    try:
        json.dumps(plain, ensure_ascii=False).encode()
        return item
    except UnicodeEncodeError:  # some text is not; which, takes longer to find
        values = {name: value for name, value in plain.items() if not _is_unicode(value)}
    shown = "; ".join(f"{name} = {quality.escaped(repr(value))[:100]}" for name, value in values.items())
    detail = f"half of a surrogate pair, which UTF-8 cannot hold, in {shown}"
    if isinstance(item, Reject):
        detail += f"; it would have left as {item.reason}"
    split = item.split if item.split in schema.SPLITS else None
    return Reject(
        quality.escaped(item.uid),
        quality.escaped(item.source),
        split,
        quality.escaped(item.sub_task),
        "bad_row",
        detail,
    )


def _with_short_uid(item: Record | Reject) -> Record | Reject:
    """The item; a reject under a uid cut to `MAX_UID_CHARS`, its digest at the end, where a source's id is longer."""
    if len(item.uid) <= MAX_UID_CHARS:
        return item
    digest = hashlib.sha256(item.uid.encode()).hexdigest()[:16]
    uid = f"{item.uid[: MAX_UID_CHARS - len(digest) - 1]}~{digest}"
    if isinstance(item, Reject):
        return dataclasses.replace(item, uid=uid)
    detail = f"an id of {len(item.uid)} characters, the limit is {MAX_UID_CHARS}; is the row torn?"
    return quality.reject(dataclasses.replace(item, uid=uid), "bad_row", detail)


def _is_unicode(value: object) -> bool:
    """Whether all text in a field's value, however deep, can be encoded."""
    if isinstance(value, str):
        return value == value.encode("utf-8", "ignore").decode()
    if isinstance(value, dict):
        return all(_is_unicode(part) for pair in value.items() for part in pair)
    return not isinstance(value, (tuple, list)) or all(map(_is_unicode, value))


def _unique(items: Iterator[Record | Reject], plan: Plan) -> Iterator[Record]:
    """The records; rejects go to the plan, and so does every item whose uid the source has used before."""
    seen: set[bytes] = set()
    for item in items:
        digest = hashlib.blake2b(item.uid.encode(), digest_size=12).digest()
        if digest in seen:
            detail = f"{item.uid}: an earlier row of the source has this id; give the rows different ones"
            again = f"{item.uid}~{plan.records[item.source]}"  # a uid of its own, so that every reject can be told apart
            plan.rejects.append(Reject(again, item.source, item.split, item.sub_task, "duplicate_id", detail))
            continue
        seen.add(digest)
        if isinstance(item, Reject):
            plan.rejects.append(item)
        else:
            yield item


def _batches(records: Iterator[Record], recipe: BuildRecipe) -> Iterator[list[Record]]:
    """The records of each shard: at most `shard_rows`, of which one counts as many as it has pictures, frames and sounds;
    one that counts more is a shard by itself."""
    batch: list[Record] = []
    size = 0
    for record in records:
        weight = sum(recipe.media.video_frames if ref.kind == "video" else 1 for ref in record.media) or 1
        if batch and size + weight > recipe.shard_rows:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += weight
    if batch:
        yield batch


def _add_shard(
    plan: Plan,
    name: str,
    number: int,
    prefix: list[str],
    records: list[Record],
    files: list[list[Fingerprint]],
    work: str | None,
    known: set[str] | None,
) -> None:
    rows = [_plain(record) for record in records]
    named = [
        [ref.path, found]
        for record, fingerprints in zip(records, files)
        for ref, found in zip(record.media, fingerprints)
    ]
    key = provenance.sha256_of_json([*prefix, rows, named])[:24]
    shard = Shard(name, number, key, len(records))
    plan.shards.append(shard)
    if work is not None and not is_done(shard, work, known):
        data = json.dumps(rows, ensure_ascii=False).encode()
        storage.write_bytes(shard.path(work, "plan.json"), data, durable=False)


def _plain(record: Record) -> dict[str, Any]:
    """The record as `dataclasses.asdict` gives it, without its deep copies, which take longer than all the rest."""
    refs = [{**vars(ref), "crop": vars(ref.crop) if ref.crop else None} for ref in record.media]
    return {**vars(record), "media": refs, "context": [vars(turn) for turn in record.context]}


def _record(row: dict[str, Any]) -> Record:
    tuples = {name: tuple(row[name]) for name in ("options", "other_labels")}
    refs = tuple(_media_ref(ref) for ref in row["media"])
    turns = tuple(Turn(**turn) for turn in row["context"])
    return Record(**{**row, **tuples, "media": refs, "context": turns})


def _media_ref(row: dict[str, Any]) -> MediaRef:
    return MediaRef(**{**row, "crop": Crop(**row["crop"]) if row["crop"] else None})
