"""Storage: a killed write never disturbs readers of the folder, and what it left behind goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_build import pipeline, storage

_KILLED = """
import os, signal, sys
from dataset_build import storage
storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
storage.write_bytes(sys.argv[1], b"half a file")
"""


def kill_a_write(path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", _KILLED, str(path)], timeout=60)
    assert result.returncode == -9


def test_a_killed_write_neither_shows_nor_breaks_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    pq.write_table(pa.table({"a": [1, 2]}), folder / "x-00000.parquet")
    kill_a_write(folder / "x-00001.parquet")
    assert len(os.listdir(folder)) == 2, "the killed write was to leave something behind"
    assert pq.read_table(folder).num_rows == 2
    assert storage.list_files(str(tmp_path)) == ["test/x-00000.parquet"]


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kill_a_write(tmp_path / "test" / "x-00001.parquet")
    (tmp_path / "test" / "x-00002.parquet.0123abcd.partial").write_bytes(b"as earlier versions named it")
    (tmp_path / "notes.partial").write_text("somebody's own")
    storage.write_bytes(str(tmp_path / "test" / "x-00000.parquet"), b"whole")
    assert storage.remove_partials(str(tmp_path)) == 2
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["notes.partial", "test/x-00000.parquet"]
    assert storage.remove_partials(str(tmp_path / "not there")) == 0


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("a.json", b"old")

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        storage.write_bytes("a.json", b"new")
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_a_build_removes_what_is_not_its_own_before_its_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    theirs = [
        "train/clip.mp4",
        "train/notes.parquet",
        "val/sub/old-00000.parquet",
    ]  # a folder called train, but not ours
    for name in ("train/a-00000.parquet", "train/old-00000.parquet", ".work/shards/a.done.json", *theirs):
        storage.write_bytes(str(out / name), b"whole")
    kill_a_write(out / "train" / "a-00000.parquet")
    kill_a_write(out / ".work" / "shards" / "a.samples.parquet")
    pipeline._remove_strangers(str(out), {"train/a-00000.parquet": {}})
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == [".work/shards/a.done.json", "train/a-00000.parquet", *theirs]
