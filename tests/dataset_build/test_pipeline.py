"""Whole builds on a real Ray: digests, resume after a kill, hostile files, ledger, twins, card."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_build import ledger, manifest, media, pipeline, plan, schema, write
from dataset_build.errors import BuildError
from dataset_build.recipe import load_recipe
from tests.fixtures.emoji_tree import draw_face, smoke_overrides, write_emoji_tree

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("emoji_pictures", "emoji_clips", "gestures", "jokes", "sarcastic_jokes")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    write_emoji_tree(root)
    return root


@pytest.fixture(scope="module")
def smoke(tree, tmp_path_factory, ray_session) -> tuple[Path, dict]:
    """An undisturbed build of the smoke recipe: its folder and manifest."""
    out = tmp_path_factory.mktemp("build") / "emobench"
    return out, pipeline.build(load_recipe("smoke", smoke_overrides(tree, out)))


def rows(out: Path, path: str) -> list[dict]:
    return pq.read_table(out / path).to_pylist()


def samples(out: Path) -> list[dict]:
    return [
        row
        for split in schema.SPLITS
        for path in sorted((out / split).glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def command(tree: Path, out: Path, *more: str) -> list[str]:
    overrides = [part for override in smoke_overrides(tree, out) for part in ("--set", override)]
    return [sys.executable, "-m", "dataset_build", "build", "smoke", *overrides, *more]


def markers(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / ".work" / "shards").glob("*.done.json")}


def test_a_build_verifies_and_its_ledger_balances(smoke):
    out, done = smoke
    assert manifest.verify(str(out), deep=True) == []
    assert ledger.unbalanced(done["sources"]) == []
    assert set(done["sources"]) == set(SOURCES)
    kept = Counter((row["source"], row["split"]) for row in samples(out))
    for source, splits in done["sources"].items():
        for split, counts in splits.items():
            assert counts["records"] == counts["kept"] + counts["rejected"] + counts["duplicates"]
            assert counts["kept"] == kept[source, split]
    assert (
        done["sources"]["emoji_pictures"]["train"]["rejected"] == 12
    )  # two unclear emoji, three vendors, two sub-tasks


def test_samples_have_what_training_and_evaluation_read(smoke):
    for row in samples(smoke[0]):
        kinds = [medium["kind"] for medium in row["media"]]
        assert kinds == (["video"] if row["source"] == "emoji_clips" else ["image"])
        assert row["messages"][0]["content"].endswith(f"<{kinds[0]}>")
        assert row["answer"] in (row["options"] or [row["answer"]])
        assert len(row["media"][0]["data"]) == (2 if kinds == ["video"] else 1)
        assert media.open_picture(row["media"][0]["data"][0]).mode == "RGB"
        assert row["demonstration"] == (row["source"] in ("jokes", "sarcastic_jokes"))


def test_all_drawings_and_the_clip_of_an_emoji_share_a_fold(smoke):
    folds: dict[str, set] = {}
    for row in samples(smoke[0]):
        if row["source"] in ("emoji_pictures", "emoji_clips"):
            folds.setdefault(dict(row["group_keys"])["emoji"], set()).add((row["fold"], row["split"]))
    assert len(folds) == 16
    assert all(len(found) == 1 for found in folds.values())
    assert {fold for found in folds.values() for fold, _ in found} == {0, 1}
    assert all((fold == 0) == (split == "test") for found in folds.values() for fold, split in found)


def test_a_second_build_says_that_nothing_changed_without_starting_ray(smoke, tree):
    out, done = smoke
    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    started = time.monotonic()
    again = subprocess.run(
        command(tree, out), env=nowhere, capture_output=True, text=True, timeout=60, check=True
    )
    assert "nothing changed" in again.stdout and done["digest"] in again.stdout
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("workers", [1, 2])
def test_the_digest_does_not_depend_on_workers_shards_or_folder(smoke, tree, tmp_path, workers):
    overrides = [*smoke_overrides(tree, tmp_path / "elsewhere"), f"shard_rows={30 * workers}"]
    assert pipeline.build(load_recipe("smoke", overrides), workers=workers)["digest"] == smoke[1]["digest"]


def test_a_killed_build_redoes_only_unfinished_shards_and_ends_with_the_same_digest(
    smoke, tree, tmp_path, ray_cluster
):
    out = tmp_path / "killed"
    small = ["--set", "shard_rows=4", "--workers", "1"]
    environment = {**os.environ, **ray_cluster.env}
    process = subprocess.Popen(
        command(tree, out, *small), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while len(markers(out)) < 5:
            assert process.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < deadline, "no shard was finished in 90 s"
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(2)  # a task that was running may still finish its shard
    before = markers(out)
    recipe = load_recipe("smoke", [*smoke_overrides(tree, out), "shard_rows=4"])
    n_shards = sum(1 for _ in (out / ".work" / "shards").glob("*.plan.json"))
    assert 5 <= len(before) < n_shards
    assert not (out / "manifest.json").exists()
    assert pipeline.build(recipe)["digest"] == smoke[1]["digest"]
    after = markers(out)
    assert len(after) == n_shards
    assert {name: after[name] for name in before} == before  # the finished ones were not touched


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_build_killed_again_and_again_at_random_moments_ends_with_the_same_digest(
    smoke, tree, tmp_path, ray_cluster, kills
):
    """Moments from before the first shard to after the last, a random while into what comes then."""
    out, draw = tmp_path / "killed", random.Random(kills)
    recipe = load_recipe("smoke", [*smoke_overrides(tree, out), "shard_rows=16"])
    n_shards = len(plan.make(recipe, None).shards)
    moments = sorted(draw.choices(range(n_shards + 1), k=kills - 1)) + [n_shards]
    environment = {**os.environ, **ray_cluster.env}
    unfinished = 0
    for moment in moments:
        process = subprocess.Popen(
            command(tree, out, "--set", "shard_rows=16"),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 90
        try:
            while len(markers(out)) < moment and process.poll() is None:
                assert time.monotonic() < deadline, f"no {moment} shards were finished in 90 s"
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 1.5))
        finally:
            process.kill()
            process.wait()
        unfinished += not (out / "manifest.json").exists()
    assert unfinished >= kills - 1, "the kills came too late to show anything"
    assert pipeline.build(recipe)["digest"] == smoke[1]["digest"]
    assert manifest.verify(str(out), deep=True) == []


def test_a_changed_file_redoes_only_its_shard(smoke, tree, tmp_path, ray_session):
    root, out = tmp_path / "samples", tmp_path / "out"
    shutil.copytree(tree, root)
    shutil.copytree(smoke[0], out)
    for path in root.rglob("*"):  # copies keep their times, and so the shards their keys
        if path.is_file():
            stat = (tree / path.relative_to(root)).stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = markers(out)
    draw_face(root / "emoji" / "google" / "img" / "1f937.png", seed="another drawing")
    done = pipeline.build(load_recipe("smoke", smoke_overrides(root, out)))
    assert done["digest"] != smoke[1]["digest"]
    after = markers(out)
    assert len(after) == len(before)
    assert len(set(before) - set(after)) == 1
    assert [name.split("-")[0] for name in set(after) - set(before)] == ["gestures"]
    assert all(
        after[name] == before[name] for name in set(before) & set(after)
    )  # the others were not written again


def test_validation_folds_lie_in_val_and_the_manifest_says_how_each_source_is_split(
    tree, tmp_path, ray_session
):
    out = tmp_path / "out"
    overrides = [*smoke_overrides(tree, out), "splits.folds=3", "splits.fold_val=true"]
    done = pipeline.build(load_recipe("smoke", overrides))
    folders = {(row["fold"], row["split"]) for row in samples(out) if row["source"] == "emoji_pictures"}
    assert folders == {(0, "test"), (1, "val"), (2, "train")}
    facts = done["source_facts"]
    assert (facts["emoji_pictures"]["split"], facts["emoji_pictures"]["folds"]) == ("folds", 3)
    assert (facts["gestures"]["split"], facts["gestures"]["folds"]) == ("official", None)
    assert {name for name, fact in facts.items() if not fact["groups_whole"]} == {"gestures"}
    assert done["warnings"] == []
    assert manifest.verify(str(out), deep=True) == []


def plant_four_faults(root: Path) -> dict[str, str]:
    """Break four gesture pictures; returns uid → the reason it must leave with."""
    folder = root / "emoji" / "google" / "img"
    whole = (folder / "1f937.png").read_bytes()
    (folder / "1f937.png").write_bytes(whole[: len(whole) // 2])
    (folder / "1f645.png").write_bytes(b"")
    (folder / "1f646.png").write_text("This is a text file, whatever its name says.\n")
    (folder / "1f647-200d-2642-fe0f.png").unlink()
    return {
        "gestures/train/google-1f937": "undecodable",
        "gestures/train/google-1f645": "empty_file",
        "gestures/train/google-1f646": "not_media",
        "gestures/test/google-1f647-200d-2642": "missing_media",
    }


def test_four_planted_faults_are_four_rejects_and_break_the_budget(tree, tmp_path, ray_session, capsys):
    root, out = tmp_path / "samples", tmp_path / "out"
    shutil.copytree(tree, root)
    expected = plant_four_faults(root)
    with pytest.raises(
        BuildError, match=r"gestures: 4 of 48 rows; the recipe's reject_budget is 1.00%"
    ) as refused:
        pipeline.build(load_recipe("smoke", smoke_overrides(root, out)))
    for reason in expected.values():
        assert reason in str(refused.value)
    assert not (out / "manifest.json").exists()
    assert {
        row["uid"]: row["reason"] for row in rows(out, "rejects.parquet") if row["reason"] != "source_rule"
    } == expected

    done = pipeline.build(load_recipe("smoke", [*smoke_overrides(root, out), "reject_budget=0.1"]))
    assert {
        row["uid"]: row["reason"] for row in rows(out, "rejects.parquet") if row["reason"] != "source_rule"
    } == expected
    assert ledger.unbalanced(done["sources"]) == []
    assert done["sources"]["gestures"]["test"]["kept"] == 15
    printed = ledger.reject_table([row for row in rows(out, "rejects.parquet") if row["uid"] in expected])
    assert all(reason in printed for reason in expected.values())
    card = (out / "README.md").read_text()
    assert all(f"| gestures | {reason} | 1 |" in card for reason in expected.values())


def test_the_budget_is_exit_code_1_without_a_traceback(tree, tmp_path, ray_cluster):
    root, out = tmp_path / "samples", tmp_path / "out"
    shutil.copytree(tree, root)
    plant_four_faults(root)
    environment = {**os.environ, **ray_cluster.env}
    done = subprocess.run(command(root, out), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "too many rejected rows" in done.stderr and "Traceback" not in done.stderr


def test_planted_twins_give_way_on_the_training_side_and_are_listed(tree, tmp_path, ray_session):
    root, out = tmp_path / "samples", tmp_path / "out"
    shutil.copytree(tree, root)
    folder = root / "emoji" / "google" / "img"
    shutil.copy(folder / "1f937-200d-2642-fe0f.png", folder / "1f937.png")  # the man's drawing for the person
    shutil.copy(
        folder / "1f600.png", root / "emoji" / "twitter" / "img" / "1f601.png"
    )  # one feeling, two emoji
    done = pipeline.build(load_recipe("smoke", smoke_overrides(root, out)))
    assert {row["uid"]: (row["twin_uid"], row["rule"]) for row in rows(out, "duplicates.parquet")} == {
        "gestures/train/google-1f937": ("gestures/test/google-1f937-200d-2642", "same_bytes_across_splits"),
        "emoji_pictures/all/twitter-1f601:emo_c": ("emoji_pictures/all/google-1f600:emo_c", "same_bytes"),
        "emoji_pictures/all/twitter-1f601:emo_o": ("emoji_pictures/all/google-1f600:emo_o", "same_bytes"),
    }
    leakage = json.loads((out / "leakage.json").read_text())
    assert [entry["rule"] for entry in leakage["removed"]] == ["same_bytes_across_splits"]
    assert {tuple(tie["groups"]) for tie in leakage["tied_groups"]} == {("1f600", "1f601")}
    folds = {
        dict(row["group_keys"])["emoji"]: row["fold"]
        for row in samples(out)
        if row["source"] == "emoji_pictures"
    }
    assert folds["1f600"] == folds["1f601"]
    assert ledger.unbalanced(done["sources"]) == []


def test_verify_finds_a_changed_byte_and_a_missing_file(smoke, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(smoke[0], out)
    path = next((out / "test").glob("jokes-*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (out / "duplicates.parquet").unlink()
    problems = manifest.verify(str(out), deep=False)
    assert any("sha256 is not the manifest's" in problem for problem in problems)
    assert "duplicates.parquet: missing" in problems
    assert manifest.unchanged(str(out), smoke[1]["inputs_digest"]) is None


def test_the_deep_check_finds_a_doubled_row_and_a_torn_group(smoke, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(smoke[0], out)
    path = sorted((out / "train").glob("emoji_pictures-*.parquet"))[0]
    found = pq.read_table(path).to_pylist()
    doubled, moved = (
        found[0],
        {**found[1], "fold": 0},
    )  # a fold-0 row lies in test, as the rest of its group does not
    write.write_rows(str(path), [doubled, *found[:1], moved, *found[2:]], schema.sample_schema())
    problems = manifest.content_problems(str(out), smoke[1])
    name = f"train/{path.name}"
    assert problems.count(f"{name}: uid {doubled['uid']} appears twice") == 2
    assert any(f"{name}: {len(found) + 1} rows" in problem for problem in problems)
    assert f"{name}: {moved['uid']}: fold 0 lies in train; its folder in this build is test" in problems
    emoji = dict(moved["group_keys"])["emoji"]
    assert any(f"group ('emoji', '{emoji}') is both in" in problem for problem in problems)


def test_the_card_says_what_matters(smoke):
    out = smoke[0]
    card = (out / "README.md").read_text()
    for words in (
        "demonstration, separable by style",
        "no openly licensed sample",
        "Unclear emoji",
        "CC-BY-4.0",
        "## Ledger",
    ):
        assert words in card
    for name in ("labels.png", "sizes.png", "rejects.png"):
        assert media.open_picture((out / "stats" / name).read_bytes()).width > 400


def test_a_row_lost_or_doubled_is_a_defect_that_stops_the_build():
    with pytest.raises(BuildError, match="3 records went in, 2 came out"):
        ledger.make({"s": 3}, kept=[("s", "train")], rejected=[("s", "train")], duplicates=[])
