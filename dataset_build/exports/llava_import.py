"""The way back from `exports.llava`: the samples of an exported folder, field by field and byte by byte.

The folder may have passed through other hands: no path in it leads out of it, and what was changed since the export
is an error that names it.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from dataset_build import export, manifest, provenance, schema, storage, write
from dataset_build.errors import BuildError
from dataset_build.exports import llava, selection
from dataset_build.exports.files import BATCH_ROWS
from dataset_build.progress import Progress
from dataset_build.schema import Sample
from dataset_build.sources import readers

_ROLES = {told: role for role, told in llava.ROLES.items()}
_CHUNK_BYTES = 1 << 20
# A longer entry is none of ours: texts of samples are bounded, and media are outside.
_MAX_ENTRY_CHARS = 16 << 20
_MAX_FILE_BYTES = 1 << 30


def import_llava(folder: str) -> Iterator[Sample]:
    """The samples of a finished LLaVA export, equal to the exported ones, split by split in the order of the export.

    One entry and its media are in memory at a time. Raises BuildError where the folder is no finished LLaVA export,
    or where a file of it is missing, was changed, or is named outside it.
    """
    marker = export.read_marker(folder)
    if marker["format"] != "llava":
        raise BuildError(f"{folder}: exported as {marker['format']}; only llava can be imported")
    for split in marker["splits"]:
        yield from samples(folder, marker, split)


def samples(folder: str, marker: dict[str, Any], split: str) -> Iterator[Sample]:
    """The samples of one split."""
    name = f"{split}.json"
    if split not in schema.SPLITS or name not in marker["files"]:
        raise BuildError(f"{folder}: its marker names no {name}; export again")
    _check(folder, name, marker)
    for number, entry in enumerate(_entries(folder, name), 1):
        try:
            yield _sample(folder, entry)
        except BuildError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            shown = f"{type(error).__name__}: {error}"[:200]
            raise BuildError(
                f"{folder}/{name}: entry {number} is none that `export llava` writes ({shown}); export again"
            ) from error


def import_build(folder: str, out: str, force: bool = False) -> dict[str, Any]:
    """Make a finished build in `out` from a LLaVA export; returns its manifest, which is the exported one.

    The files are those of the exported build, byte by byte; written by another version of Arrow they may differ, and
    then the manifest has their digests. Raises UsageError, BuildError.
    """
    for place, what in ((folder, "FOLDER"), (out, "OUT")):
        storage.check_place(place, what)
    export.check_apart(folder, out, "OUT")
    marker = export.read_marker(folder)
    beside = sorted(path for path in marker["files"] if path.startswith("build/"))
    if marker["format"] != "llava" or "build/manifest.json" not in beside:
        raise BuildError(f"{folder}: exported as {marker['format']}; only llava can be imported")
    for path in beside:
        _check(folder, path, marker)
    content = manifest.read_manifest(storage.join(folder, "build"))
    owned = (*(f"{split}/" for split in schema.SPLITS), *(path.removeprefix("build/") for path in beside))
    export.empty_folder(out, owned, force)
    files = dict(content["files"])
    with Progress("importing", marker["rows"], "rows") as progress:
        for split, paths in selection.split_files(content).items():
            rows = samples(folder, marker, split)
            for path in paths:
                chosen = islice(rows, files[path]["rows"])
                files[path] = _write(out, path, chosen, files[path]["rows"], progress)
            if next(rows, None) is not None:
                raise BuildError(f"{folder}/{split}.json: more entries than build/manifest.json has rows")
    for path in beside:
        if path != "build/manifest.json":
            storage.write_bytes(
                storage.join(out, path.removeprefix("build/")), storage.read_bytes(storage.join(folder, path))
            )
    done = {**content, "files": files, "digest": manifest.data_digest(files)}
    problems = manifest.content_problems(out, done)
    if problems:
        raise BuildError("the imported files do not verify:\n  " + "\n  ".join(problems[:20]))
    storage.write_json(storage.join(out, "manifest.json"), done)
    print(f"{out}: {len(files)} files, digest {done['digest']}", flush=True)
    return done


def _write(out: str, path: str, rows: Iterator[Sample], count: int, progress: Progress) -> dict[str, Any]:
    """Write one sample file; returns its entry in the manifest."""
    import pyarrow as pa

    written = 0

    def batches() -> Iterator[pa.Table]:
        nonlocal written
        while batch := list(islice(rows, BATCH_ROWS)):
            written += len(batch)
            yield pa.Table.from_pylist(batch, schema=schema.sample_schema())
            progress.advance(len(batch))

    data = write.parquet_bytes(batches(), schema.sample_schema())
    if written != count:
        raise BuildError(
            f"{path}: the manifest says {count} rows, the export has {written} left; export again"
        )
    storage.write_bytes(storage.join(out, path), data)
    return write.entry(data, written)


def _check(folder: str, path: str, marker: dict[str, Any]) -> None:
    """Raises BuildError where a file outside `media/` is missing, leads out of the folder or was changed."""
    full = storage.join(folder, path)
    why = readers.outside(folder, path)
    if why or not storage.exists(full):
        raise BuildError(f"{full}: {why or 'not there'}; export again")
    if provenance.sha256_of_file(full) != marker["files"][path]["sha256"]:
        raise BuildError(f"{full}: changed since it was exported; export again")


def _sample(folder: str, entry: dict[str, Any]) -> Sample:
    import pyarrow as pa

    rest = dict(entry["emobench"])
    *turns, answer = entry["conversations"]
    row = {
        **rest,
        "uid": entry["id"],
        "messages": [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in turns],
        "answer": schema.answer_word(rest, answer["value"]),
        "media": [_medium(folder, entry["id"], medium) for medium in rest["media"]],
        "group_keys": [(key, value) for key, value in rest["group_keys"]],
    }
    # Through the schema, so that what comes out has its types whatever the JSON held.
    checked = pa.Table.from_pylist([row], schema=schema.sample_schema()).to_pylist()[0]
    return {name: checked[name] for name in schema.sample_schema().names}


def _medium(folder: str, uid: str, medium: dict[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in medium.items() if name != "files"}
    data = [_part(folder, uid, part["path"], part["sha256"]) for part in medium["files"]]
    return {"kind": facts.pop("kind"), "data": data, **facts}


def _part(folder: str, uid: str, path: str, sha256: str) -> bytes:
    full = storage.join(folder, path)
    shown = f"{full[:300]} ({str(uid)[:100]})"  # both come from outside
    why = readers.outside(folder, path)
    if not why and not storage.is_remote(full) and not os.path.isfile(full):
        why = "not there"
    try:
        if why or storage.size(full) > _MAX_FILE_BYTES:
            raise BuildError(f"{shown}: {why or 'too large for a part of a sample'}; export again")
        data = storage.read_bytes(full)
    except FileNotFoundError as error:
        raise BuildError(f"{shown}: not there; export again") from error
    if provenance.sha256_of_bytes(data) != sha256:
        raise BuildError(f"{shown}: changed since it was exported; export again")
    return data


def _entries(folder: str, name: str) -> Iterator[Any]:
    """The entries of a JSON list, one at a time, however it is laid out."""
    decoder, text, opened = json.JSONDecoder(), "", False
    to_text = codecs.getincrementaldecoder("utf-8")()
    full = storage.join(folder, name)
    with storage.open_read(full) as stream:
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            try:
                text += to_text.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise BuildError(f"{full}: not UTF-8 ({error.reason}); export again") from error
            while text := text.lstrip(" \t\r\n,"):
                if text[0] != ("{" if opened else "["):
                    if opened and text[0] == "]":
                        return
                    raise BuildError(f"{full}: not a list of entries, found {text[:20]!r}; export again")
                if not opened:
                    opened, text = True, text[1:]
                    continue
                try:
                    entry, end = decoder.raw_decode(text)
                except (ValueError, RecursionError) as error:
                    if not chunk or len(text) > _MAX_ENTRY_CHARS or isinstance(error, RecursionError):
                        raise BuildError(f"{full}: not JSON ({error}); export again") from error
                    break  # it goes on in the next chunk
                yield entry
                text = text[end:]
            if not chunk:
                raise BuildError(f"{full}: the list has no end; export again")
