"""The registry of models, in a folder or below `s3://`: which model is the champion, why, and which were before it.

REGISTRY/champion.json                        what is in use: model, scores, data, when and why
REGISTRY/history.jsonl                        one line per decision: promoted, kept, unchanged or rolled_back
REGISTRY/models/<digest16>/{model,evaluation} copies of promoted models, so that the next training cannot change them
REGISTRY/retraining.json                      who is retraining now (see flows/lease.py)

A promotion copies the model first and moves champion.json last, and only where that is still the champion which the new
model was compared with: of two promotions at the same moment one wins and the other gets `Conflict`.

    python -m flows.registry show runs/quickstart/registry
    python -m flows.registry list s3://bucket/registry
    python -m flows.registry rollback runs/quickstart/registry [--to DIGEST]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from dataset_build import storage
from flows import shared_file
from flows.shared_file import Conflict

KEEP = 3  # promoted models kept, the champion among them
_EVALUATION_FILES = ("results.json", "samples.parquet", "report.html")
_SHORT = 16  # characters of a digest in names and on screens


class NoSuchModel(ValueError):
    """The registry holds no model that could be made the champion."""


class Champion(NamedTuple):
    """champion.json and its version; both None before the first promotion."""

    entry: dict[str, Any] | None
    version: str | None

    @property
    def model_digest(self) -> str | None:
        return str(self.entry["model_digest"]) if self.entry else None


def read_champion(registry: str) -> Champion:
    return Champion(*shared_file.read_json(storage.join(registry, "champion.json")))


def read_history(registry: str) -> list[dict[str, Any]]:
    path = storage.join(registry, "history.jsonl")
    if not storage.exists(path):
        return []
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines() if line.strip()]


def write_decision(
    registry: str,
    decision: str,
    reason: str,
    entry: dict[str, Any],
    *,
    model: str,
    evaluation: str,
    champion: Champion,
) -> dict[str, Any]:
    """Append the decision to history.jsonl and, where it is a promotion, copy the model and make it the champion.

    `entry` holds at least `model_digest` and `data_digest`, what the model was scored on. `champion` is what the decision
    was taken against; raises Conflict, with nothing written down, where another one has taken its place.
    """
    _complete_history(registry)
    record = _record(decision, reason, entry)
    if decision == "promoted":
        home = storage.join(registry, "models", entry["model_digest"][:_SHORT])
        _copy(model, storage.join(home, "model"), _model_files(model))
        _copy(evaluation, storage.join(home, "evaluation"), list(_EVALUATION_FILES))
        _crown(registry, record, champion.version)
    elif read_champion(registry).model_digest != champion.model_digest:
        raise Conflict(f"{registry}: the champion was replaced meanwhile")
    shared_file.append_line(storage.join(registry, "history.jsonl"), json.dumps(record, ensure_ascii=False))
    _forget_old_models(registry)
    return record


def rollback(registry: str, to: str | None = None, reason: str = "rolled back by hand") -> dict[str, Any]:
    """Make the champion before this one the champion again, or the model whose digest starts with `to`.

    The model that is given up is never promoted again by itself (see `barred`). Raises NoSuchModel where there is none to
    go back to or its copy is gone, Conflict where the champion was replaced meanwhile.
    """
    champion, history = read_champion(registry), _complete_history(registry)
    if champion.entry is None:
        raise NoSuchModel(f"{registry}: there is no champion, so there is nothing to roll back")
    target = _previous(history) if to is None else _named(history, to)
    if target is None:
        known = ", ".join(dict.fromkeys(e["model_digest"][:_SHORT] for e in history if _crowned(e))) or "none"
        raise NoSuchModel(
            f"{registry}: no model to go back to{f' called {to}' if to else ''}; known are: {known}"
        )
    if target["model_digest"] == champion.model_digest:
        raise NoSuchModel(f"{registry}: {target['model_digest'][:_SHORT]} is the champion already")
    copy = storage.join(registry, "models", target["model_digest"][:_SHORT], "model", "training.json")
    if not storage.exists(copy):
        raise NoSuchModel(
            f"{copy} is gone (the last {KEEP} promoted models are kept); name another one with --to"
        )
    kept = {name: target.get(name) for name in ("model_digest", "data_digest", "overall")}
    record = _record("rolled_back", reason, {**kept, "rolled_back_from": champion.model_digest})
    _crown(registry, record, champion.version)
    shared_file.append_line(storage.join(registry, "history.jsonl"), json.dumps(record, ensure_ascii=False))
    return record


def barred(registry: str, model_digest: str) -> str | None:
    """Why this model may not be promoted: somebody rolled it back, and did not choose it again since."""
    reason = None
    for entry in read_history(registry):
        if entry.get("rolled_back_from") == model_digest:
            reason = f"this model was rolled back on {entry['at']} ({entry['reason']})"
        elif _crowned(entry) and entry["model_digest"] == model_digest:
            reason = None
    if reason is None:
        return None
    return f"{reason}; `python -m flows.registry rollback {registry} --to {model_digest[:_SHORT]}` takes it again"


def _record(decision: str, reason: str, entry: dict[str, Any]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"decision": decision, "reason": reason, "at": now, "id": uuid.uuid4().hex, **entry}


def _crown(registry: str, record: dict[str, Any], expected: str | None) -> None:
    home = f"models/{record['model_digest'][:_SHORT]}"
    places = {"model": f"{home}/model", "evaluation": f"{home}/evaluation"}
    shared_file.write_json(storage.join(registry, "champion.json"), {**record, **places}, expected)


def _complete_history(registry: str) -> list[dict[str, Any]]:
    """The history, with the line that a promotion was killed before it could write."""
    history, champion = read_history(registry), read_champion(registry).entry
    if champion and champion.get("id") and all(entry.get("id") != champion["id"] for entry in history):
        record = {name: value for name, value in champion.items() if name not in ("model", "evaluation")}
        shared_file.append_line(
            storage.join(registry, "history.jsonl"), json.dumps(record, ensure_ascii=False)
        )
        history.append(record)
    return history


def _crowned(entry: dict[str, Any]) -> bool:
    return entry["decision"] in ("promoted", "rolled_back")


def _previous(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The decision that made the champion before this one: promotions pile up, a rollback takes from the pile."""
    pile: list[dict[str, Any]] = []
    for entry in filter(_crowned, history):
        places = [n for n, below in enumerate(pile) if below["model_digest"] == entry["model_digest"]]
        if entry["decision"] == "rolled_back" and places:
            del pile[places[-1] + 1 :]
        else:
            pile.append(entry)
    return pile[-2] if len(pile) > 1 else None


def _named(history: list[dict[str, Any]], to: str) -> dict[str, Any] | None:
    found = {e["model_digest"]: e for e in history if _crowned(e) and e["model_digest"].startswith(to)}
    return next(iter(found.values())) if len(found) == 1 else None


def _model_files(model: str) -> list[str]:
    """training.json and the folds that it names; checkpoints of the training stay behind."""
    folds = [fold["path"] for fold in storage.read_json(storage.join(model, "training.json"))["folds"]]
    files = storage.list_files(model)
    return [
        name
        for name in files
        if name == "training.json" or any(name.startswith(f"{fold}/") for fold in folds)
    ]


def _copy(source: str, target: str, names: list[str]) -> None:
    """Copy files of `source`, never whole in memory; on a local disk the folder appears at once, whole."""
    if storage.is_remote(source) or storage.is_remote(target):
        for name in names:
            _copy_remote(storage.join(source, name), storage.join(target, name))
        return
    partial = f"{target}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in names:
        os.makedirs(os.path.dirname(os.path.join(partial, name)), exist_ok=True)
        shutil.copyfile(os.path.join(source, name), os.path.join(partial, name))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _copy_remote(source: str, target: str) -> None:
    from dataset_build import s3

    if not storage.is_remote(source):
        s3.upload(target, source)
    elif storage.is_remote(target):  # the store copies it by itself
        s3.filesystem().copy("/".join(s3.split(source)), "/".join(s3.split(target)))
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        s3.download(target=target, path=source, expected=storage.size(source))


def _forget_old_models(registry: str) -> None:
    """Remove copies of models that were promoted longer ago than the last KEEP promotions.

    A folder that no decision names stays: somebody may be copying a model into it.
    """
    promoted = [entry["model_digest"][:_SHORT] for entry in read_history(registry) if _crowned(entry)]
    keep = set(list(dict.fromkeys(reversed(promoted)))[:KEEP])
    keep.add((read_champion(registry).model_digest or "")[:_SHORT])
    folder = storage.join(registry, "models")
    there = {path.split("/")[0] for path in storage.list_files(folder)}
    for name in there & set(promoted) - keep:
        old = storage.join(folder, name)
        if storage.is_remote(folder):
            storage.remove_all([storage.join(old, path) for path in storage.list_files(old)])
        else:
            shutil.rmtree(old, ignore_errors=True)


# --- command line --------------------------------------------------------------------------------------------------


def _show(registry: str) -> int:
    entry = read_champion(registry).entry
    if entry is None:
        print(f"{registry}: no model has been promoted yet", file=sys.stderr)
        return 1
    print(json.dumps(entry, indent=2, ensure_ascii=False))
    return 0


def _list(registry: str) -> int:
    history, champion = read_history(registry), read_champion(registry).model_digest
    if not history:
        print(f"{registry}: nothing has been decided yet", file=sys.stderr)
        return 1
    for entry in history:
        mark = "*" if entry["model_digest"] == champion and _crowned(entry) else " "
        overall = entry.get("overall")
        score = f"{overall:.4f}" if isinstance(overall, float) else "-"
        print(
            f"{mark} {entry['at']}  {entry['decision']:11s}  {entry['model_digest'][:_SHORT]}  {score:>6s}  {entry['reason']}"
        )
    return 0


def _roll_back(registry: str, to: str | None) -> int:
    record = rollback(registry, to)
    before, now = record["rolled_back_from"][:_SHORT], record["model_digest"][:_SHORT]
    print(f"{registry}: the champion is {now} again; {before} will not be promoted by itself")
    from flows.notify import send

    send("rolled_back", message=f"champion {now} instead of {before}", registry=registry)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.registry",
        description="Which model is in use, which were before it, and the way back.",
        epilog="exit codes: 0 done, 1 the registry does not hold what was asked for, 2 the command is wrong",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    helps = {
        "show": "the champion: model, scores, data, when and why, as JSON",
        "list": "every decision, oldest first; * marks what made the champion what it is",
        "rollback": "make the champion before this one the champion again",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("registry", help="a folder or s3://BUCKET/PREFIX, e.g. runs/quickstart/registry")
        if name == "rollback":
            command.add_argument(
                "--to", metavar="DIGEST", help="this model instead: the digest or its beginning"
            )
    chosen = parser.parse_args(arguments)
    try:
        storage.check_place(chosen.registry, "registry")
        if chosen.command == "rollback":
            return _roll_back(chosen.registry, chosen.to)
        return _show(chosen.registry) if chosen.command == "show" else _list(chosen.registry)
    except (ValueError, OSError, Conflict) as error:
        from dataset_build.errors import UsageError

        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
