"""A finished build in other formats, and back: `export OUT FORMAT DEST`, `import llava DEST OUT`.

The formats are described in `dataset_build.exports`: llava, hub (called `datasets`), tar_shards (`webdataset`). All
are written in a stream, a few rows at a time, and end with DEST/export.json: without it an export is unfinished. It
names the digest of the build, the digest of every file but the media files (whose digests are in LLaVA's JSON), and a
digest of the whole. The same build gives the same bytes.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

from dataset_build import manifest, provenance, schema, storage
from dataset_build.errors import BuildError, UsageError
from dataset_build.exports import hub, llava, selection, tar_shards
from dataset_build.exports.files import Written
from dataset_build.progress import Progress

FORMATS: dict[str, Any] = {"llava": llava, "datasets": hub, "webdataset": tar_shards}
MARKER = "export.json"
VERSION = 1


def export(
    out: str,
    format_name: str,
    dest: str,
    splits: Sequence[str] = (),
    sources: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Export the build in `out` to `dest` and return the marker's content.

    `splits` and `sources` choose a part; empty means all. `force` writes into a folder that is not empty: the files
    that the format would write are replaced, others stay. Raises UsageError, BuildError.
    """
    if format_name not in FORMATS:
        raise UsageError(f"there is no format {format_name!r}; known: {', '.join(FORMATS)}")
    for place, what in ((out, "OUT"), (dest, "DEST")):
        storage.check_place(place, what)
    content = manifest.read_manifest(out)
    check_apart(out, dest, "DEST")
    _check_choice("split", splits, schema.SPLITS)
    _check_choice("source", sources, list(content["sources"]))
    form = FORMATS[format_name]
    part = selection.part_of(content, splits, sources)
    split_files = selection.split_files(part)
    rows = sum(part["files"][path]["rows"] for paths in split_files.values() for path in paths)
    if not rows:
        raise BuildError(
            f"{out} holds no row of {', '.join(splits) or 'any split'} of {', '.join(sources) or 'any source'}"
        )
    empty_folder(dest, (*form.OWNED, MARKER), force)
    check_files(out, content, [path for paths in split_files.values() for path in paths])
    written = Written(dest)
    with Progress(f"exporting to {format_name}", rows, "rows") as progress:
        for count in form.write(out, split_files, written):
            progress.advance(count)
    _write_beside(out, format_name, content, part, written)
    if not storage.is_remote(dest):
        os.sync()  # the media files were written without waiting for the disk; the marker says that they are there
    marker = {
        "format": format_name,
        "format_version": VERSION,
        "schema_version": schema.SCHEMA_VERSION,
        "build": {"name": content["recipe"]["name"], "digest": content["digest"]},
        "splits": list(split_files),
        "sources": sorted(part["sources"]),
        "rows": rows,
        "media_files": written.media_files,
        "media_bytes": written.media_bytes,
        "files": dict(sorted(written.files.items())),
    }
    marker["digest"] = provenance.sha256_of_json(marker)
    storage.write_json(storage.join(dest, MARKER), marker)
    print(f"{dest}: {rows} rows as {format_name}, digest {marker['digest']}", flush=True)
    return marker


def read_marker(folder: str) -> dict[str, Any]:
    """The marker of a finished export. Raises BuildError where there is none or it is not one."""
    path = storage.join(folder, MARKER)
    if not storage.exists(path):
        raise BuildError(f"{path} is not there: {folder} holds no finished export; export again")
    marker = storage.read_json(path)
    if not isinstance(marker, dict) or marker.get("format_version") != VERSION or "digest" not in marker:
        raise BuildError(f"{path}: not the marker of an export that this version reads; export again")
    rest = {name: value for name, value in marker.items() if name != "digest"}
    if provenance.sha256_of_json(rest) != marker["digest"]:
        raise BuildError(f"{path}: its digest does not follow from its content; export again")
    return marker


def check_apart(origin: str, dest: str, what: str) -> None:
    """Raises UsageError where what is read lies where it would be written: `force` would remove it first."""
    one, other = (_real(place) for place in (origin, dest))
    if one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/"):
        raise UsageError(
            f"{what} {dest} and {origin}, which is read, lie in each other; name a folder of its own"
        )


def _real(place: str) -> str:
    return storage.join(place).rstrip("/") if storage.is_remote(place) else os.path.realpath(place)


def empty_folder(dest: str, owned: Sequence[str], force: bool) -> None:
    """Make room in `dest`: refuses one with files, or with `force` removes those that will be written (`owned`)."""
    if not storage.is_remote(dest) and os.path.exists(dest) and not os.path.isdir(dest):
        raise UsageError(f"{dest} is a file; name a folder")
    found = storage.list_files(dest) if storage.is_remote(dest) or os.path.isdir(dest) else []
    if found and not force:
        raise UsageError(
            f"{dest} is not empty ({found[0]!r} and {len(found) - 1} more); name another folder, or say --force to replace "
            f"what an export writes there: {', '.join(owned)}"
        )
    # The marker goes first: a folder that is being changed is no finished one.
    doomed = [
        path
        for path in found
        if any(path.startswith(name) if name.endswith("/") else path == name for name in owned)
    ]
    doomed.sort(key=lambda path: path not in (MARKER, "manifest.json"))
    storage.remove_all([storage.join(dest, path) for path in doomed[:1]])
    storage.remove_all([storage.join(dest, path) for path in doomed[1:]])
    storage.remove_partials(dest)


def check_files(out: str, content: dict[str, Any], paths: Sequence[str]) -> None:
    """Raises BuildError where a sample file is not the one of the manifest."""
    for path in paths:
        if provenance.sha256_of_file(storage.join(out, path)) != content["files"][path]["sha256"]:
            raise BuildError(f"{out}/{path}: its sha256 is not the manifest's; it was changed. Build again")


def _check_choice(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"--{what} {name}: the build has {', '.join(known)}{hint}")


def _write_beside(
    out: str, format_name: str, content: dict[str, Any], part: dict[str, Any], written: Written
) -> None:
    """What goes with the rows: the card for `datasets`; for `llava` all that a build holds beside its rows."""
    card = [name for name in storage.list_files(out) if name == "README.md" or name.startswith("stats/")]
    if format_name == "datasets":
        head = hub.front_matter(content["recipe"]["name"], selection.split_files(part))
        text = storage.read_bytes(storage.join(out, "README.md")) if "README.md" in card else b""
        written.write("README.md", head.encode() + text)
        for name in card:
            if name.startswith("stats/"):
                written.copy(out, name, name)
    elif format_name == "llava":
        for name in card:
            written.copy(out, name, f"build/{name}")
        selection.write_tables(out, content, part, written)
