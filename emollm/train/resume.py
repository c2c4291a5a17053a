"""What an unfinished training in OUT may be gone on from.

`OUT/checkpoints/inputs.json` says what the unfinished training was started with. One that is started again must have the
same inputs (`emollm.config.train_inputs`): where recipe or data differ, going on would train a mixture, and starting anew
would throw away what was trained, so the run stops and says what differs. Where only the code differs, it stops too,
because the rest of the training may not be what the first part was; `--allow-code-change` goes on, and `fold.json` says
so. A *finished* training with other inputs is replaced, as a build is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dataset_build import storage
from dataset_build.provenance import code_version, sha256_of_json

CHECKPOINTS = "checkpoints"
INPUTS_FILE = "inputs.json"
METADATA = "checkpoint.json"  # written last into a checkpoint's folder
_SHOWN = 8  # differing keys of a recipe that a message names


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message says why and what to do."""


class Resume(NamedTuple):
    """What may be gone on from beside checkpoints of the same inputs and world size."""

    other_world_size: bool = False
    earlier_inputs: tuple[str, ...] = ()  # digests of inputs whose code alone was another


ONLY_THE_SAME = Resume()


def fold_checkpoints(out: str, fold: int) -> Path:
    return Path(out) / CHECKPOINTS / f"fold-{fold}"


def what_to_resume(
    out: str,
    inputs: dict[str, Any],
    *,
    world_size: int,
    allow_world_size_change: bool = False,
    allow_code_change: bool = False,
) -> Resume:
    """What a training with these inputs may go on from; records the inputs.

    Raises CheckpointError where OUT holds an unfinished training of other inputs, or of another world size.
    """
    path = Path(out) / CHECKPOINTS / INPUTS_FILE
    recorded = storage.read_json(str(path)) if path.exists() else None
    earlier: list[str] = []
    if recorded is not None and (found := _unfinished(out)):
        differs = differences(recorded["inputs"], inputs)
        if not differs:
            earlier = recorded["earlier"]
        elif differs.keys() == {"code"} and allow_code_change:
            earlier = [*recorded["earlier"], sha256_of_json(recorded["inputs"])]
            print(f"{out}: goes on from what other code has trained ({differs['code']})", flush=True)
        else:
            raise CheckpointError(_refusal(out, found, differs))
    if not allow_world_size_change:
        _check_world_size(out, world_size)
    version = code_version()
    storage.write_json(str(path), {"inputs": inputs, "earlier": earlier, "commit": version["commit"]})
    return Resume(allow_world_size_change, tuple(earlier))


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two inputs, in words, by `recipe`, `data` and `code`; empty where nothing does."""
    found = {}
    one, other = _dotted(before["recipe"]), _dotted(now["recipe"])
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if keys:
        shown = [f"{key} was {one.get(key)!r}, is {other.get(key)!r}" for key in keys[:_SHOWN]]
        more = [f"and {len(keys) - _SHOWN} keys more"] if len(keys) > _SHOWN else []
        found["recipe"] = "; ".join([*shown, *more])
    if before["data"] != now["data"]:
        found["data"] = f"digest was {before['data'][:16]}, is {now['data'][:16]}"
    if before["code"] != now["code"]:
        parts = [name for name in now["code"] if before["code"].get(name) != now["code"][name]]
        found["code"] = f"source files of {' and '.join(parts)} were changed"
    return found


def _refusal(out: str, found: str, differs: dict[str, str]) -> str:
    what = "; ".join(f"{part}: {text}" for part, text in differs.items())
    if differs.keys() == {"code"}:
        remedy = "--allow-code-change goes on from there with the new code"
    else:
        remedy = f"give the run the same {' and '.join(differs)} to go on, or another out"
    return (
        f"{out} holds an unfinished training of other inputs ({found}); {what}. "
        f"{remedy[0].upper()}{remedy[1:]}; --force removes it and trains anew"
    )


def _unfinished(out: str) -> str:
    """What an unfinished training has left in OUT, in words; empty where there is nothing to lose."""
    newest = [path.parent for path in sorted(Path(out).glob(f"{CHECKPOINTS}/fold-*/step-*/{METADATA}"))]
    folds = [path.parent.name for path in sorted(Path(out).glob("fold-*/fold.json"))]
    if not newest and not folds:
        return ""
    names = [f"{path.parent.name}/{path.name}" for path in newest[-1:]]
    return ", ".join([*(f"finished {name}" for name in folds), *(f"checkpoint {name}" for name in names)])


def _check_world_size(out: str, world_size: int) -> None:
    """Refuse before any worker is started. What a worker finds in a whole checkpoint is checked again there."""
    for folder in sorted((Path(out) / CHECKPOINTS).glob("fold-*")):
        for path in sorted(folder.glob(f"step-*/{METADATA}"), reverse=True):
            try:
                before = storage.read_json(str(path))["world_size"]
            except ValueError:  # damaged: the workers fall back to the one before
                continue
            if before != world_size:
                raise CheckpointError(other_world_size(str(path.parent), before, world_size))
            break


def other_world_size(path: str, before: int, now: int) -> str:
    return (
        f"{path} was written by {before} workers, this run has {now}; give it workers.count={before}, "
        f"or let it go on with {now} by --allow-world-size-change"
    )


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
