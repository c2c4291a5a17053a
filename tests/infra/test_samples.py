"""Fetching the samples: what is there is kept, what is damaged or unreachable is said."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from infra import samples
from infra.samples import Archive, SamplesError, Step


def tgz(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def archive_of(data: bytes, file: str = "thing-1.tgz") -> Archive:
    return Archive("npm", "thing", "1", file, hashlib.sha256(data).hexdigest(), 1, "MIT")


def test_an_archive_that_is_there_whole_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tgz({"package/a.txt": b"a"})
    (tmp_path / "thing-1.tgz").write_bytes(data)
    monkeypatch.setattr(samples, "_npm", lambda: pytest.fail("asked npm for what is there"))
    assert samples.fetch(archive_of(data), tmp_path) == tmp_path / "thing-1.tgz"


def test_a_registry_that_cannot_be_reached_ends_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "npm"
    broken.write_text("#!/bin/sh\necho 'network is down' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(samples, "_npm", lambda: str(broken))
    with pytest.raises(
        SamplesError, match=r"(?s)thing 1 could not be fetched.*network is down.*run the same command"
    ):
        samples.fetch(archive_of(b"whole"), tmp_path / "downloads")


def test_a_package_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forger = tmp_path / "npm"
    forger.write_text("#!/bin/sh\nprintf forged > thing-1.tgz\n")
    forger.chmod(0o755)
    monkeypatch.setattr(samples, "_npm", lambda: str(forger))
    with pytest.raises(SamplesError, match="sha256"):
        samples.fetch(archive_of(b"real"), tmp_path / "downloads")
    assert not (tmp_path / "downloads" / "thing-1.tgz").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_the_code_of_a_source_package_runs_only_after_its_digest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    ran = tmp_path / "setup.py ran"
    setup = (
        f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='thing', version='1')\n"
    )
    data = tgz({"thing-1/setup.py": setup.encode(), "thing-1/PKG-INFO": b"Name: thing\nVersion: 1\n"})
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thing-1.tar.gz").write_bytes(data)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's spelling of "no isolation": setuptools is here
    expected = data if whole else b"what the author published"
    archive = archive_of(expected, "thing-1.tar.gz")._replace(registry="pypi")
    downloads = tmp_path / "downloads"
    if whole:
        assert samples.fetch(archive, downloads).read_bytes() == data
        assert ran.exists(), "pip no longer runs the code, so this test checks nothing"
    else:
        with pytest.raises(SamplesError, match="(?i)hash"):
            samples.fetch(archive, downloads)
        assert not ran.exists()
        assert not (downloads / "thing-1.tar.gz").exists()


def test_an_interrupted_step_is_made_again_and_a_finished_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emoji = tgz({"package/img/google/64/1f600.png": b"png", "package/emoji.json": json.dumps([]).encode()})
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "google.tgz").write_bytes(emoji)
    monkeypatch.setattr(samples, "ARCHIVES", {"google": archive_of(emoji, "google.tgz")})
    calls = []

    def lay_out(archives: list[Path], folder: Path) -> None:
        calls.append(folder)
        samples._write(folder / "half", b"")
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "half").unlink()
        samples.lay_out_emoji(archives, folder)

    step = Step("laying out", ("google",), "samples/emoji/google", lay_out)
    monkeypatch.setattr(samples, "STEPS", (step,))
    with pytest.raises(KeyboardInterrupt):
        samples.prepare(str(tmp_path))
    assert not (tmp_path / "samples/emoji/google").exists(), "a half-made folder must never look finished"
    assert samples.prepare(str(tmp_path)) is True
    target = tmp_path / "samples/emoji/google"
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == ["1f600.png", "emoji.json"]
    assert samples.prepare(str(tmp_path)) is False
    assert len(calls) == 2
