"""Digests and code versions: what makes two runs 'the same run'.

A digest is always sha256 over bytes that do not depend on time, machine, folder or order of work.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_build import __version__, storage

_PROJECT_ROOT = Path(__file__).resolve().parent.parent
_CODE_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".j2", ".css", ".js", ".html", ".csv")


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: str) -> str:
    digest = hashlib.sha256()
    with storage.open_read(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """The digest of a JSON value, whatever the order of its keys."""
    return sha256_of_bytes(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def code_digest(packages: Sequence[str], leave_out: Sequence[str] = ()) -> str:
    """The digest of the source files of `packages` (folders of this project), git or not.

    `leave_out` holds path prefixes, for example `emollm/evaluate`, whose files do not influence the result.
    """
    entries = []
    for package in packages:
        for path in sorted((_PROJECT_ROOT / package).rglob("*")):
            name = path.relative_to(_PROJECT_ROOT).as_posix()
            if path.suffix in _CODE_SUFFIXES and not any(name.startswith(prefix) for prefix in leave_out):
                entries.append((name, sha256_of_bytes(path.read_bytes())))
    return sha256_of_json(entries)


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of each of these distributions, "" where it is not installed."""
    return {name: _installed(name) for name in names}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def code_version() -> dict[str, Any]:
    """`{version, commit, dirty}` of this code; commit is "unknown" and dirty None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != _PROJECT_ROOT:
            raise FileNotFoundError("the checkout around this package is another project's")
        return {
            "version": __version__,
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"version": __version__, "commit": "unknown", "dirty": None}
