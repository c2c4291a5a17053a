"""The sources as text: a table of all, or everything about one (what to download, how to cite, what its options mean)."""

from __future__ import annotations

import difflib
import inspect
import textwrap

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dataset_build import ledger, schema, sources
from dataset_build.errors import UsageError
from dataset_build.sources.base import Adapter

_WIDTH = 110
_SPLITS = {
    "official": "the source's own; val is carved from train by group where it has none",
    "folds": "k-fold, whole groups in a fold",
    "shares": "seeded shares for test and val, whole groups on one side",
}


def check_name(name: str) -> None:
    """Raises UsageError, with the nearest name, where there is no such source."""
    if name not in sources.REGISTRY:
        close = difflib.get_close_matches(name, sources.REGISTRY, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "`python -m dataset_build sources` lists them"
        raise UsageError(f"there is no source {name!r}; {hint}")


def table() -> str:
    """One line a source."""
    rows = [["source", "sub-tasks", "split", "size", "licence"]]
    for name in sources.REGISTRY:
        adapter = sources.adapter(name)
        licence = textwrap.shorten(adapter.LICENCE, 35, placeholder=" …")
        size = textwrap.shorten(adapter.SIZE, 29, placeholder=" …")
        rows.append([name, ", ".join(adapter.SUB_TASKS), adapter.SPLIT, size, licence])
    return (
        ledger.aligned(rows, right_from=99) + "\n\n`python -m dataset_build sources NAME` says all about one."
    )


def facts(name: str) -> str:
    """Everything about one source. Raises UsageError for an unknown name."""
    check_name(name)
    adapter = sources.adapter(name)
    known = {split: adapter.EXPECTED[split] for split in (*schema.SPLITS, "all") if split in adapter.EXPECTED}
    rows = ", ".join(f"{split} {count:,}" for split, count in known.items())
    lines = [
        ("sub-tasks", ", ".join(adapter.SUB_TASKS)),
        ("size", adapter.SIZE),
        ("published rows", rows or "not known for certain, so not checked"),
        ("download", adapter.DOWNLOAD),
        ("licence", adapter.LICENCE),
        ("citation", adapter.CITATION),
        ("limits", adapter.LIMITS),
        ("split", f"{adapter.SPLIT}: {_SPLITS[adapter.SPLIT]}{_other_splits(adapter)}"),
        ("groups", f"rows with the same `{adapter.GROUP_KEY}` stay together where splits are drawn"),
    ]
    if adapter.DEMONSTRATION:
        lines.append(("note", "demonstration: separable by style, stays out of the overall mean"))
    shown = [
        f"{name}: {adapter.TITLE}",
        "",
        *(_wrapped(key, value) for key, value in lines),
        "",
        _options(adapter),
    ]
    shown += ["", f"check a folder: python -m dataset_build check {name} ROOT"]
    return "\n".join(shown)


def _other_splits(adapter: Adapter) -> str:
    modes = getattr(adapter, "SPLIT_MODES", {})
    other = [f"{name}: {_SPLITS[mode]}" for name, mode in modes.items() if mode != adapter.SPLIT]
    return f" (with the option `split` = {'; '.join(other)})" if other else ""


def _wrapped(key: str, value: str) -> str:
    head = f"{key:<16}"
    return textwrap.fill(
        value, _WIDTH, break_on_hyphens=False, initial_indent=head, subsequent_indent=" " * len(head)
    )


def _options(adapter: Adapter) -> str:
    """The options with type, default and meaning, which is the docstring of the class that declares them."""
    model = adapter.Options
    if not model.model_fields:
        return "options: none"
    lines = ["options (a recipe's `options`, or --set NAME=VALUE):"]
    for name, info in model.model_fields.items():
        kind = inspect.formatannotation(info.annotation).replace("typing.", "")
        default = "required" if info.default is PydanticUndefined else f"default {_plain(info.default)}"
        lines.append(
            textwrap.fill(
                f"{name}: {kind}, {default}", _WIDTH, initial_indent="  ", subsequent_indent="      "
            )
        )
    for owner in reversed(model.__mro__):
        own = (
            isinstance(owner, type) and issubclass(owner, BaseModel) and owner.__dict__.get("__annotations__")
        )
        if own and owner.__doc__ and owner.__module__.startswith("dataset_build"):
            lines += ["", *_paragraphs(owner.__doc__)]
    return "\n".join(lines)


def _plain(default: object) -> str:
    if isinstance(default, (tuple, list)):
        return f"[{', '.join(map(str, default))}]"
    return '""' if default == "" else str(default)


def _paragraphs(docstring: str) -> list[str]:
    blocks = inspect.cleandoc(docstring).split("\n\n")
    return [
        textwrap.fill(
            " ".join(block.split()),
            _WIDTH,
            break_on_hyphens=False,
            initial_indent="  ",
            subsequent_indent="  ",
        )
        for block in blocks
    ]
