"""Reading the YAML of a recipe: plain values only, bounded, each key once; every fault is one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dataset_build.errors import UsageError

# A recipe is a page of text; whatever is larger than this is another file.
MAX_BYTES = 1 << 20


def read(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file. Raises UsageError."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name the YAML file in it")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"{path}: {size} bytes is too large for a recipe (at most {MAX_BYTES}); is it the right file?"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not a YAML file: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error
    raw = parse(text, str(path), "a YAML file of plain values")
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise UsageError(f"{path}: a recipe is a mapping of keys to values, found {found}")
    return raw


def parse(text: str, where: str, what: str = "YAML") -> Any:
    """The value of a YAML text. Raises UsageError naming `where`, what it should be, line and remedy."""
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader that takes away more
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(f"{error.problem or error.context}".split())[:200]
        raise UsageError(f"{where}{place}: not {what}: {problem}{_remedy(problem)}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not {what}: {' '.join(str(error).split())[:200]}") from error
    except (RecursionError, ValueError) as error:  # brackets without end; a date that is none
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise UsageError(f"{where}: not {what}: {problem}") from error


def _remedy(problem: str) -> str:
    if "\\t" in problem:
        return "; YAML is indented with spaces, replace the tab"
    if "could not determine a constructor for the tag" in problem:
        return "; a recipe holds plain values only, take the tag away"
    return ""


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases (a short text can stand for billions of values) and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor}: aliases are not read, write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice; keep one of them", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
