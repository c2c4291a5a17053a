"""The build recipe: one YAML file, checked field by field, with `--set a.b=VALUE` overrides.

`load_recipe` and `inputs_digest` are light: neither torch nor Ray is imported, and no picture is opened.
"""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataset_build import leakage, provenance, recipe_file, s3, sources, storage
from dataset_build.errors import BuildError, UsageError

SHIPPED = Path(__file__).resolve().parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Section):
    """One source: `root` is its folder (relative to the recipe's `root`), `options` are the adapter's own."""

    name: str
    root: str
    options: dict[str, Any] = Field(default_factory=dict)


class MediaSettings(_Section):
    """Limits and target sizes. A picture within `max_side_px` keeps its own bytes; a larger one is scaled down.

    `max_pixels` bounds what is decoded at all, `max_file_mb` what is read, `max_seconds` the length of a clip and
    `timeout_s` the time one clip may take to decode. Without `audio` clips lose their sound.
    """

    max_side_px: int = Field(256, ge=16, le=8192)
    video_frames: int = Field(4, ge=1, le=64)
    frame_side_px: int = Field(128, ge=16, le=2048)
    jpeg_quality: int = Field(92, ge=30, le=100)
    max_pixels: int = Field(50_000_000, ge=256)
    max_file_mb: int = Field(1024, ge=1)
    max_seconds: float = Field(600, gt=0)
    timeout_s: float = Field(60, gt=0)
    audio: bool = True


class SplitSettings(_Section):
    """`folds` for sources split by k-fold; the shares for sources that have no split of their own.

    `fold_val`: protocol k of a k-fold source validates on its next fold instead of training on it.
    """

    folds: int = Field(4, ge=2, le=20)
    fold_val: bool = False
    test_share: float = Field(0.3, gt=0, lt=1)
    val_share: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> SplitSettings:
        if self.test_share + self.val_share >= 1:
            raise ValueError("test_share + val_share must be below 1, or nothing is left to train on")
        if self.fold_val and self.folds < 3:
            raise ValueError("fold_val takes a fold from training: with it, folds must be at least 3")
        return self


class DedupSettings(_Section):
    """`near_bits`: two pictures whose 64-bit perceptual hashes differ in at most so many bits are near-duplicates.

    `within_split_near`: of look-alike photographs with the same label in the same split, keep only the first. Without
    it rows leave only for the sake of a twin in another split, or as a copy of the same file.
    """

    near_bits: int = Field(4, ge=0, le=15)
    within_split_near: bool = False


class LeakageSettings(_Section):
    """`allow_pairs`: forbidden pairs of sources that this build mixes all the same (`dataset_build.leakage`)."""

    allow_pairs: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _forbidden_pairs_only(self) -> LeakageSettings:
        for pair in self.allow_pairs:
            if frozenset(pair) not in leakage.FORBIDDEN:
                known = ", ".join(" and ".join(sorted(names)) for names in leakage.FORBIDDEN)
                raise ValueError(f"{' and '.join(pair)} is no forbidden pair; those are {known}")
        return self


class InstructionSettings(_Section):
    """How rows are asked. `answer_style`: the option's word, its letter, both, or one of them by the uid's hash
    (`mixed`); `context_chars`: at most so many characters of earlier turns, the latest ones."""

    answer_style: Literal["word", "letter", "letter_word", "mixed"] = "word"
    context_chars: int = Field(600, ge=0, le=20_000)


class RewritingSettings(_Section):
    """Another wording of the instructions, by a language model behind an OpenAI-compatible endpoint.

    `base_url` is what `/chat/completions` is put behind; `api_key_env` names the environment variable that holds the
    key, if one is needed. At most `max_rows` sentences are rewritten, `concurrency` at once, each within `timeout_s`.
    Answers are kept in the folder `cache` (default: in the build's work folder) and asked for once.
    """

    base_url: str = Field(pattern=r"^https?://[^\s@?#]+$")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    max_rows: int = Field(5_000, ge=1)
    timeout_s: float = Field(30, gt=0, le=600)
    concurrency: int = Field(4, ge=1, le=64)
    cache: str | None = None


class BuildRecipe(_Section):
    """Everything that decides what a build gives, apart from the code and the source files themselves."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: str
    root: str = "."
    seed: int = 0
    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    media: MediaSettings = Field(default_factory=lambda: MediaSettings.model_validate({}))
    splits: SplitSettings = Field(default_factory=lambda: SplitSettings.model_validate({}))
    dedup: DedupSettings = Field(default_factory=lambda: DedupSettings.model_validate({}))
    leakage: LeakageSettings = Field(default_factory=lambda: LeakageSettings.model_validate({}))
    instructions: InstructionSettings = Field(default_factory=lambda: InstructionSettings.model_validate({}))
    rewriting: RewritingSettings | None = None
    reject_budget: float = Field(0.01, ge=0, le=1)
    # How many records are converted (and after a kill redone) together; see `dataset_build.plan` for what clips count.
    shard_rows: int = Field(128, ge=1, le=10_000)
    rows_per_file: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _places_hold_no_credentials(self) -> BuildRecipe:
        # Checked here, not in SourceSpec: what is wrong with a whole recipe is reported without its value.
        storage.check_place(self.out, "out")
        storage.check_place(self.root, "root")
        for spec in self.sources:
            storage.check_place(spec.root, f"sources.{spec.name}.root")
        return self

    @model_validator(mode="after")
    def _known_sources_once(self) -> BuildRecipe:
        names = [spec.name for spec in self.sources]
        for name in names:
            if name not in sources.REGISTRY:
                raise ValueError(f"there is no source {name!r}{_nearest(name, sources.REGISTRY)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a source is named twice in {names}; give each one once")
        return self

    @model_validator(mode="after")
    def _out_is_apart(self) -> BuildRecipe:
        """A build in a source's own folder would replace files there (README.md, train/ …)."""
        for spec in self.sources:
            if self.source_root(spec) == _absolute(self.out):
                raise ValueError(
                    f"out is the folder of source {spec.name!r}, which is only read; name another"
                )
        return self

    def source_root(self, spec: SourceSpec) -> str:
        """The absolute folder of a source, so that a worker with another working directory finds it, or its `s3://`."""
        if storage.is_remote(spec.root) or os.path.isabs(spec.root):
            joined = spec.root
        else:
            joined = storage.join(self.root, spec.root)
        return _absolute(joined)

    def source_options(self, spec: SourceSpec) -> BaseModel:
        return sources.adapter(spec.name).Options.model_validate(spec.options)


def _absolute(path: str) -> str:
    """A local path from the root of the file system; an `s3://` one without `.`, `..` and doubled slashes."""
    if storage.is_remote(path):
        scheme, _, rest = path.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}"
    return os.path.abspath(path)


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> BuildRecipe:
    """The recipe in a YAML file, or the shipped one of that name, with `KEY=VALUE` overrides applied.

    A list of sources is addressed by name: `sources.jokes.options.per_label=20`. Raises UsageError naming the key,
    the value found and the nearest valid key.
    """
    path = Path(name_or_path)
    if not path.suffix and name_or_path in shipped_recipes():
        path = SHIPPED / f"{name_or_path}.yaml"
    if not os.path.exists(path):
        known = shipped_recipes()
        raise UsageError(
            f"there is no recipe {name_or_path[:200]!r}{_nearest(name_or_path[:200], known)}; shipped: {', '.join(known)}"
        )
    raw = recipe_file.read(path)
    for override in overrides:
        _apply(raw, override)
    try:
        recipe = BuildRecipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(_explain(path, error, BuildRecipe)) from error
    for spec in recipe.sources:
        try:
            recipe.source_options(spec)
        except ValidationError as error:
            where = f"sources.{spec.name}.options."
            raise UsageError(_explain(path, error, sources.adapter(spec.name).Options, where)) from error
    return recipe


def adapter_options(name: str, overrides: Sequence[str]) -> BaseModel:
    """The options of one source from `KEY=VALUE` overrides alone. Raises UsageError."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _apply(raw, override)
    model = sources.adapter(name).Options
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UsageError(_explain(Path(f"options of {name}"), error, model)) from error


def inputs_digest(recipe: BuildRecipe) -> str:
    """The digest of everything a build's result depends on: recipe, source files (path, size, time or etag), code.

    Folders are left out: the same files elsewhere are the same inputs.
    """
    content = recipe.model_dump(
        mode="json", exclude={"out": True, "root": True, "sources": {"__all__": {"root"}}}
    )
    roots: dict[str, str] = {}
    for spec in recipe.sources:
        root = recipe.source_root(spec)
        if root not in roots:
            roots[root] = provenance.sha256_of_json(list(_fingerprint(spec.name, root)))
    inputs = {spec.name: roots[recipe.source_root(spec)] for spec in recipe.sources}
    code = provenance.code_digest(["dataset_build"])
    return provenance.sha256_of_json({"recipe": content, "inputs": inputs, "code": code})


def _fingerprint(name: str, root: str) -> Iterator[list[Any]]:
    if not storage.exists(root) or not storage.is_remote(root) and not os.path.isdir(root):
        raise BuildError(
            f"source {name}: its folder {root} is not there; set sources.{name}.root, or fetch the files"
        )
    if storage.is_remote(root):
        for path, found in s3.files(root):
            yield [path, found.size, found.etag]
        return
    for path in storage.list_files(root):
        name_utf8 = path.encode("utf-8", "backslashreplace").decode()  # a name on disk is any bytes
        try:
            stat = os.stat(os.path.join(root, path))
        except OSError:  # a dangling link: the file counts as named but missing
            yield [name_utf8, None, None]
        else:
            yield [name_utf8, stat.st_size, stat.st_mtime_ns]


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override!r}: expected KEY=VALUE, for example --set seed=1")
    value = recipe_file.parse(text, f"--set {override!r}")
    node: Any = raw
    parts = key.strip().split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            index = _list_index(node, part, override)
            if last:
                node[index] = value
            node = node[index]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                node = node.setdefault(part, {})
        else:
            raise UsageError(
                f"--set {override!r}: {'.'.join(parts[:depth])} is a value, it holds no key {part!r}"
            )


def _list_index(entries: list[Any], part: str, override: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    known = [name for name in names if name]
    raise UsageError(f"--set {override!r}: no entry {part!r}{_nearest(part, known)}")


# pydantic's words where they speak of Python.
_EXPECTED = {
    "tuple_type": "expected a list",
    "too_short": "expected a list with at least one entry",
    "dict_type": "expected keys with values",
    "model_type": "expected keys with values",
    "string_type": "expected text",
    "missing": "is missing",
}


def _explain(path: Path, error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    lines = []
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "too_short" and any(len(other["loc"]) > 1 for other in problems):
            continue  # a list is called empty because its entries are wrong, and those are named
        key = prefix + ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(model, problem["loc"])
            lines.append(f"unknown key {key!r}{_nearest(str(problem['loc'][-1]), known)}")
        else:
            secret = any(word in key for word in ("api_key", "base_url"))  # a pasted key must not reach a log
            shown = "" if secret or problem["type"] == "missing" else f", found {problem['input']!r:.80}"
            said = _EXPECTED.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            lines.append(f"{key or 'recipe'}: {said}{shown if key else ''}")
    return f"{path}: " + "; ".join(lines)


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys at the place of an unknown one."""
    for part in location[:-1]:
        if isinstance(part, int):
            model = SourceSpec
        elif part in model.model_fields:
            kind = model.model_fields[part].annotation
            kinds = [one for one in (kind, *get_args(kind)) if isinstance(one, type)]
            model = next((one for one in kinds if issubclass(one, BaseModel)), model)
    return list(model.model_fields)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
