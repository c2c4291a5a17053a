"""OUT/manifest.json: counts, digests, provenance. Written last: without it a build is unfinished.

Reading and shallow checking are light (no Arrow, no Ray): flows and the command line use them to see that nothing
changed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dataset_build import leakage, ledger, provenance, schema, sources, storage
from dataset_build.errors import BuildError, StorageError
from dataset_build.recipe import BuildRecipe, SourceSpec
from dataset_build.sources import base

if TYPE_CHECKING:
    from dataset_build.splits import Places
    from dataset_build.verify_rows import Run

_REQUIRED = ("schema_version", "digest", "inputs_digest", "recipe", "code", "sources", "files")


def data_digest(files: dict[str, Any]) -> str:
    """The digest of the whole: schema version and every data file's digest, nothing that depends on time or place."""
    digests = {path: entry["sha256"] for path, entry in sorted(files.items())}
    return provenance.sha256_of_json({"schema_version": schema.SCHEMA_VERSION, "files": digests})


def make(
    recipe: BuildRecipe, inputs_digest: str, counts: ledger.Ledger, files: dict[str, Any], places: Places
) -> dict[str, Any]:
    """The manifest of a build.

    `source_facts` says how each source is split in this build: `split` the mode in force, `folds` the number of folds of
    a k-fold source (else None), `groups_whole` whether no group of it lies in two places. `warnings` holds what a reader
    of scores must know: forbidden pairs that the recipe allows.
    """
    allowed = leakage.check_pairs([spec.name for spec in recipe.sources], recipe.leakage.allow_pairs)
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "digest": data_digest(files),
        "inputs_digest": inputs_digest,
        "recipe": recipe.model_dump(mode="json"),
        "code": provenance.code_version(),
        "sources": counts,
        "source_facts": {spec.name: _facts(recipe, spec, places) for spec in recipe.sources},
        "warnings": leakage.warnings(allowed),
        "files": dict(sorted(files.items())),
    }


def _facts(recipe: BuildRecipe, spec: SourceSpec, places: Places) -> dict[str, Any]:
    adapter = sources.adapter(spec.name)
    mode = base.split_mode(adapter, recipe.source_options(spec))
    return {
        "title": adapter.TITLE,
        "version": adapter.VERSION,
        "sub_tasks": list(adapter.SUB_TASKS),
        "split": mode,
        "folds": places.n_folds.get(spec.name),
        "groups_whole": mode == "shares" or places.drawn.get(spec.name, False),
        "group_key": adapter.GROUP_KEY,
        "pictures": adapter.PICTURES,
        "demonstration": adapter.DEMONSTRATION,
        "licence": adapter.LICENCE,
        "citation": adapter.CITATION,
        "limits": adapter.LIMITS,
    }


def read_manifest(out: str) -> dict[str, Any]:
    """The manifest of a finished build. Raises BuildError where there is none or it is not one."""
    path = storage.join(out, "manifest.json")
    if not storage.exists(path):
        raise BuildError(
            f"{path} is not there: {out} holds no finished build; run `python -m dataset_build build`"
        )
    content = storage.read_json(path)
    missing = [key for key in _REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise BuildError(f"{path}: {', '.join(missing)} missing; build again")
    if content["schema_version"] != schema.SCHEMA_VERSION:
        found = content["schema_version"]
        raise BuildError(
            f"{path}: schema version {found}, this code reads {schema.SCHEMA_VERSION}; build again"
        )
    return content


def verify(out: str, deep: bool) -> list[str]:
    """Problems of a finished build; empty if there are none.

    Shallow: the ledger balances, every file has the size and digest that the manifest says, and the digest of the whole
    follows from them. Deep: also what `content_problems` reads from the rows.
    """
    content = read_manifest(out)
    problems = ledger.unbalanced(content["sources"])
    if data_digest(content["files"]) != content["digest"]:
        problems.append("manifest.json: its digest does not follow from the digests of its files")
    for path, entry in content["files"].items():
        full = storage.join(out, path)
        if not storage.exists(full):
            problems.append(f"{path}: missing")
        elif (size := storage.size(full)) != entry["bytes"]:
            problems.append(f"{path}: {size} bytes, the manifest says {entry['bytes']}")
        elif provenance.sha256_of_file(full) != entry["sha256"]:
            problems.append(f"{path}: its sha256 is not the manifest's; it was changed")
    if deep and not problems:
        problems += content_problems(out, content)
    return problems


def unchanged(out: str, inputs_digest: str) -> dict[str, Any] | None:
    """The manifest in `out` if it is whole and was made from the same inputs; else None."""
    if not storage.exists(storage.join(out, "manifest.json")):
        return None
    try:
        content = read_manifest(out)
        return content if content["inputs_digest"] == inputs_digest and not verify(out, deep=False) else None
    except StorageError:
        raise
    except ValueError:  # an unreadable manifest is no manifest: build again
        return None


def content_problems(
    out: str, content: dict[str, Any], run: Run = map, unchanged: Collection[str] = ()
) -> list[str]:
    """Read every row back: schema, counts, unique uids, whole groups, and that every stored picture opens.

    `run` reads the files, as `map` would; a build reads them in parallel. The pictures of `unchanged` files are not
    opened: they were when the files were written.
    """
    from dataset_build import verify_rows

    return verify_rows.problems(out, content, run, unchanged)
