"""Virtual environments of the peers: tests/benchmarks/peers/NAME/requirements.txt, installed under .local/bench/peers/NAME.

A peer gets an environment of its own, so that what it pins never meets what we pin. A package that our own environment
has already (`datasets`, transformers, deepspeed) needs none: its side runs with the project's own Python.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import CACHE

PEERS = Path(__file__).resolve().parent / "peers"


class PeerMissing(Exception):
    """A peer cannot be installed here; the message says why, in one line."""


def peer_python(name: str, timeout_s: float = 900) -> str:
    """The Python of the peer's environment, installed at the first call. Raises PeerMissing."""
    wanted = PEERS / name / "requirements.txt"
    venv = CACHE / "peers" / name
    python = venv / "bin" / "python"
    mark = venv / ".installed"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return str(python)
    shutil.rmtree(venv, ignore_errors=True)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    environment = dict(os.environ)
    links = environment.get("UV_FIND_LINKS") or environment.get("PIP_FIND_LINKS") or _find_links()
    if links:
        environment["UV_FIND_LINKS"] = links
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True, text=True)
        install = [uv, "pip"] if uv else [str(python), "-m", "pip"]
        chosen = ["--python", str(python)] if uv else []
        subprocess.run(
            [*install, "install", "--quiet", *chosen, "--requirement", str(wanted)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise PeerMissing(f"{name} was not installed after {timeout_s:g} s") from None
    except subprocess.CalledProcessError as error:
        said = [line.strip() for line in (error.stderr or "").splitlines() if line.strip()]
        raise PeerMissing(f"{name} does not install: {' '.join(said)[:300]}") from None
    mark.write_text(digest)
    return str(python)


def _find_links() -> str:
    """A folder of wheels that pip was told about; uv does not read pip's settings."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    return asked.stdout.strip()
