"""No file of infra/ or docs/ holds a secret, and nothing in them listens for everybody without asking who it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from infra import check_manifests
from infra.kustomize import render

PROJECT = Path(__file__).resolve().parent.parent.parent
# 32 and more letters and digits of a hexadecimal or base64 value, which is not the digest of something.
_RANDOM = re.compile(r"(?<!sha256:)\b(?=[a-zA-Z+]*\d)(?=\d*[a-zA-Z])[A-Za-z0-9+]{32,}={0,2}")
_DIGESTS = {"infra/samples.py"}  # of the packages that it fetches
_FOR_EVERYBODY = re.compile(r"0\.0\.0\.0|\[::\]|--host[= ]\*")


def files() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "infra", "docs", "prefect.yaml"], cwd=PROJECT, capture_output=True, text=True
    ).stdout.split()
    names = tracked or [str(path) for folder in ("infra", "docs") for path in (PROJECT / folder).rglob("*.*")]
    chosen = [PROJECT / name for name in names if "/crds/" not in name]
    assert len(chosen) > 40
    return [path for path in chosen if path.is_file() and path.suffix not in (".pyc",)]


def rendered() -> dict[str, str]:
    folder = PROJECT / "infra" / "kubernetes"
    return {name: yaml.safe_dump_all(render(folder / name)) for name in check_manifests.KUSTOMIZATIONS}


def test_files_and_what_is_rendered_of_them_hold_no_random_values() -> None:
    texts = {path.relative_to(PROJECT).as_posix(): path.read_text() for path in files()} | rendered()
    texts = {name: text for name, text in texts.items() if name not in _DIGESTS}
    found = {name: values for name, text in texts.items() if (values := _RANDOM.findall(text))}
    assert not found, "a token, a password or a key?"


@pytest.mark.parametrize(
    "secret", ["f" * 31 + "0", "c2VjcmV0IHZhbHVlIHRoYXQgaXMgbG9uZw==", "0123456789abcdef" * 4]
)
def test_a_random_value_would_be_seen(secret: str) -> None:
    for line in (f"password: {secret}\n", f'"token": "{secret}"', f"postgresql://prefect:{secret}@postgres"):
        assert _RANDOM.search(line)
    assert not _RANDOM.search(f"image: postgres@sha256:{'0a' * 32}")


def test_rendered_secrets_are_references() -> None:
    for name, text in rendered().items():
        kinds = re.findall(r"^kind: (\w+)$", text, re.MULTILINE)
        assert kinds and "Secret" not in kinds, (
            f"{name}: secrets are made by create_secrets.sh, not kept in files"
        )


def test_what_listens_for_everybody_asks_who_it_is() -> None:
    # (file, what guards it): inside a container or a pod, published on loopback or not at all, and asking for a secret.
    guarded = {
        "infra/compose/compose.yaml": ["RAY_AUTH_MODE: token", "PREFECT_SERVER_API_AUTH_STRING"],
        "infra/kubernetes/base/raycluster.yaml": ["mode: token"],
        "infra/kubernetes/base/prefect-server.yaml": ["PREFECT_SERVER_API_AUTH_STRING"],
        "infra/kubernetes/jobs/train/rayjob.yaml": ["mode: token"],
    }
    speaking_of_it = {"infra/check_manifests.py"}
    for path in files():
        name, text = path.relative_to(PROJECT).as_posix(), path.read_text()
        if _FOR_EVERYBODY.search(text) and name not in speaking_of_it:
            assert name in guarded, f"{name} listens for everybody"
            assert all(word in text for word in guarded[name]), name
