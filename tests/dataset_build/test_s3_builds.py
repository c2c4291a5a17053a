"""Whole builds with sources and output on S3: the same digest as on a disk, through faults and after an outage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset_build import manifest, pipeline, storage
from dataset_build.recipe import load_recipe
from tests.fixtures.emoji_tree import smoke_overrides, write_emoji_tree
from tests.fixtures.s3_server import SECRET, S3Server


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    write_emoji_tree(root)
    return root


@pytest.fixture(scope="module")
def bucket(tree, s3_environment: S3Server) -> str:
    """A bucket that holds the tree below samples/, and a file beside it that no build may read."""
    s3_environment.start()
    bucket = s3_environment.bucket(f"builds-{os.getpid()}")
    s3_environment.upload(tree, f"{bucket}/samples")
    storage.write_bytes(f"{bucket}/secret.png", b"secret")
    return bucket


@pytest.fixture(scope="module")
def on_disk(tree, tmp_path_factory, ray_session) -> tuple[str, dict]:
    """A build from folder to folder: where it is, and its manifest."""
    out = tmp_path_factory.mktemp("build") / "emobench"
    return str(out), pipeline.build(load_recipe("smoke", smoke_overrides(tree, out)))


def markers(out: str) -> list[str]:
    return [name for name in storage.list_files(f"{out}/.work/shards") if name.endswith("done.json")]


def texts_of(out: str) -> str:
    """Everything that a person might read in a build."""
    names = [name for name in storage.list_files(out) if name.endswith((".json", ".md"))]
    return "".join(storage.read_bytes(storage.join(out, name)).decode() for name in names)


def test_sources_on_s3_give_the_digest_of_a_disk(on_disk, bucket, s3_server, tmp_path):
    done = pipeline.build(load_recipe("smoke", smoke_overrides(f"{bucket}/samples", tmp_path / "out")))
    assert done["digest"] == on_disk[1]["digest"]
    assert done["sources"] == on_disk[1]["sources"]
    assert not any("secret.png" in path for _, path in s3_server.asked)
    fetched = [path for method, path in s3_server.asked if method == "GET" and ".png" in path]
    heads = [path for method, path in s3_server.asked if method == "HEAD" and ".png" in path]
    assert len(heads) <= len(fetched)  # sizes and etags for the plan come from listings
    found = texts_of(str(tmp_path / "out"))
    assert SECRET not in found and s3_server.endpoint not in found


def test_an_output_on_s3_is_that_of_a_disk_and_verifies(on_disk, bucket, s3_server, tree, capsys):
    out = f"{bucket}/from-disk/"
    recipe = load_recipe("smoke", smoke_overrides(tree, out))
    done = pipeline.build(recipe)
    assert done["digest"] == on_disk[1]["digest"]
    assert manifest.verify(out, deep=True) == []
    ours = {name for name in storage.list_files(on_disk[0]) if not name.startswith(".work/")}
    assert {name for name in storage.list_files(out) if not name.startswith(".work/")} == ours
    for name in ours - {"manifest.json", "README.md"}:
        assert storage.read_bytes(storage.join(out, name)) == storage.read_bytes(
            storage.join(on_disk[0], name)
        )
    capsys.readouterr()
    s3_server.calm()
    assert pipeline.build(recipe)["digest"] == done["digest"]
    assert "nothing changed" in capsys.readouterr().out
    assert not any(method in ("PUT", "POST", "DELETE") for method, _ in s3_server.asked)
    storage.write_bytes(f"{out}rejects.parquet", b"something else")
    assert any("rejects.parquet" in problem for problem in manifest.verify(out, deep=False))
    storage.remove(f"{out}duplicates.parquet")
    assert "duplicates.parquet: missing" in manifest.verify(out, deep=False)


def test_busy_answers_and_slow_reads_do_not_change_the_result(on_disk, bucket, s3_server):
    s3_server.faults.busy_share, s3_server.faults.drip_share, s3_server.faults.stall_share = 0.2, 0.05, 0.005
    out = f"{bucket}/through-faults"
    done = pipeline.build(load_recipe("smoke", smoke_overrides(f"{bucket}/samples", out)))
    answered = sum(s3_server.requests.values())
    busy = sum(count for (_, status), count in s3_server.requests.items() if status == 503)
    print(f"{busy} of {answered} requests were answered with 503")
    s3_server.calm()
    assert busy / answered == pytest.approx(0.2, abs=0.06)
    assert done["digest"] == on_disk[1]["digest"]
    assert manifest.verify(out, deep=False) == []


def test_an_outage_in_the_middle_is_an_error_with_a_name_and_the_next_start_goes_on(
    on_disk, bucket, s3_server, ray_cluster
):
    out = f"{bucket}/after-outage"
    small = [*smoke_overrides(f"{bucket}/samples", out), "shard_rows=4"]
    command = [sys.executable, "-m", "dataset_build", "build", "smoke", "--workers", "1"]
    command += [part for override in small for part in ("--set", override)]
    process = subprocess.Popen(
        command,
        env={**os.environ, **ray_cluster.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(markers(out)) < 5:
            assert process.poll() is None, f"the build ended before the outage: {process.communicate()}"
            assert time.monotonic() < deadline, "no five shards in two minutes"
            time.sleep(0.1)
        s3_server.faults.down = True
        printed, said = process.communicate(timeout=200)
    finally:
        process.kill()
    s3_server.calm()
    assert process.returncode == 1, said
    assert f"dataset_build: {bucket}/" in said and "start the same command again" in said
    assert "Traceback" not in said
    assert not any(word in printed + said for word in (SECRET, s3_server.endpoint))

    names = storage.list_files(out)
    assert "manifest.json" not in names
    before = [name for name in names if name.endswith("done.json")]
    plans = sum(name.endswith("plan.json") for name in names)
    assert 5 <= len(before) < plans
    whole = {name.rpartition(".done.json")[0] for name in before}
    assert all(
        f"{stem}.{kind}.parquet" in names for stem in whole for kind in ("samples", "index", "rejects")
    )

    done = pipeline.build(load_recipe("smoke", small))
    assert done["digest"] == on_disk[1]["digest"]
    written = [path for method, path in s3_server.asked if method == "PUT" and path.endswith("done.json")]
    assert len(written) == plans - len(before)
    assert not {path.rpartition("/")[2] for path in written} & {name.rpartition("/")[2] for name in before}
