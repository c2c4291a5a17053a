"""`check` and `sources`: what is missing, unreadable or unlisted in the folder of any source, without a build."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from dataset_build import catalogue, check, sources
from dataset_build.__main__ import main
from dataset_build.errors import BuildError, UsageError
from tests.fixtures import sources as fixtures
from tests.fixtures.sources import base

# What only decoding shows.
UNSEEN = ("undecodable", "bad_time_range", "too_large")


def options_of(name: str, **options):
    return sources.adapter(name).Options.model_validate(options)


@pytest.mark.parametrize("name", fixtures.NAMES)
def test_every_planted_fault_of_every_source_is_found_without_a_build(name, tmp_path):
    planted = fixtures.build(name, tmp_path)
    found = check.check(name, str(tmp_path), options_of(name, **planted.options), full=True)
    expected = planted.adapter_rejects + planted.media_rejects
    by_rule = expected.pop("source_rule", 0)
    counts = {reason: tally.count for reason, tally in found.faults.items()}
    for reason in UNSEEN:
        assert counts.pop(reason, 0) <= expected.pop(reason, 0)
    assert counts == dict(expected)
    assert found.left_out.count == by_rule
    assert found.items.total() == planted.records
    assert found.files_there <= found.files_named
    assert not found.fine or not expected
    text = check.report(found)
    for reason, tally in found.faults.items():
        assert f"{reason}: {tally.count:,}" in text and tally.examples[0] in text


@pytest.fixture
def emoset(tmp_path: Path) -> Path:
    """Ten whole rows in train, five in val, five in test."""
    lists = {"train": 10, "val": 5, "test": 5}
    for split, rows in lists.items():
        entries = [["awe", f"{split}{n}", f"image/awe/{split}{n}.jpg"] for n in range(rows)]
        for entry in entries:
            base.picture(tmp_path / entry[2])
        base.write(tmp_path / f"{split}.json", json.dumps(entries))
    return tmp_path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counts = {"train": 10, "val": 5, "test": 5}
    monkeypatch.setattr(sources.adapter("emoset"), "EXPECTED", counts)
    return counts


def test_a_whole_folder_is_fine_and_says_so(emoset, published, capsys):
    assert main(["check", "emoset", str(emoset)]) == 0
    out = capsys.readouterr().out
    assert "No problem found." in out
    assert "20 files named, 20 there" in out and "20 opened (all of them)" in out
    assert main(["check", "emoset", str(emoset), "--set", "ask=both", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["train"] == {"expected": 10, "found": 10}  # a row is a row, whatever it serves
    assert found["records"] == {"emo_c": 20, "emo_o": 20}


def test_missing_unreadable_unlisted_and_missing_rows_are_told_apart(emoset, published, capsys):
    folder = emoset / "image" / "awe"
    (folder / "train3.jpg").unlink()
    (folder / "val1.jpg").write_bytes(b"")
    (folder / "test2.jpg").write_text("<html>404</html>")
    (folder / "test3.jpg").write_bytes(base.GIT_LFS_POINTER)
    base.picture(folder / "extra.jpg")
    (folder / "._train1.jpg").write_bytes(b"Mac")
    (emoset / "notes.txt").write_text("no medium")
    published["train"] = 12
    assert main(["check", "emoset", str(emoset)]) == 1
    out = capsys.readouterr().out
    for words in (
        "train         12     10  2 short",
        "20 files named, 19 there",
        "missing_media: 1 (the annotation names a file that is not there)\n  emoset/train/train3: image/awe/train3.jpg",
        "empty_file: 1",
        "emoset/test/test2: image/awe/test2.jpg: no image begins with b'<html>404</html>'",
        "image/awe/test3.jpg: a git-lfs pointer; run `git lfs pull`",
        "unlisted: 1 media files that no row names (no fault), such as\n  image/awe/extra.jpg",
        "Problems: 1 empty_file, 1 missing_media, 2 not_media, 2 rows of train are not there.",
        "A build would reject 20.00% of the records",
    ):
        assert words in out


def test_more_rows_than_published_is_told_but_no_problem(emoset, published, capsys):
    published["val"] = 4
    assert main(["check", "emoset", str(emoset)]) == 0
    out = capsys.readouterr().out
    assert "1 more" in out and "another release" in out


def test_published_rows_of_another_split_mode_are_compared_as_a_sum(emoset, monkeypatch):
    from dataset_build.schema import Record

    adapter = sources.adapter("emoset")
    whole = list(adapter.read(str(emoset), options_of("emoset")))
    import dataclasses

    bare = [dataclasses.replace(item, split=None) for item in whole if isinstance(item, Record)]
    monkeypatch.setattr(adapter, "read", lambda root, options: iter(bare))
    monkeypatch.setattr(adapter, "EXPECTED", {"train": 10, "val": 5, "test": 5})
    assert check.check("emoset", str(emoset), options_of("emoset")).expected == {"all": 20}
    monkeypatch.setattr(adapter, "EXPECTED", {"train": 10, "test": 11, "all": 21})
    found = check.check("emoset", str(emoset), options_of("emoset"))
    assert found.expected == {"all": 21} and found.short == {"all": (21, 20)}


def test_a_sample_is_even_and_full_opens_all(emoset, published, monkeypatch):
    monkeypatch.setattr(check, "SAMPLE", 4)
    opened = check._evenly([str(number) for number in range(20)], 4)
    assert opened == ["0", "6", "13", "19"]
    (emoset / "image" / "awe" / "train7.jpg").write_text("not looked at by the sample")
    quick = check.check("emoset", str(emoset), options_of("emoset"))
    assert quick.files_opened == 4 and quick.fine
    thorough = check.check("emoset", str(emoset), options_of("emoset"), full=True)
    assert thorough.files_opened == 20 and thorough.faults["not_media"].count == 1


def test_nothing_outside_the_root_is_looked_at(emoset, published, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    secret = base.picture(outside / "secret.jpg")
    link = emoset / "image" / "awe" / "train0.jpg"
    link.unlink()
    os.symlink(secret, link)
    entries = json.loads((emoset / "val.json").read_text())
    entries[0][2] = f"../{outside.name}/secret.jpg"
    entries[1][2] = str(secret)
    (emoset / "val.json").write_text(json.dumps(entries))
    found = check.check("emoset", str(emoset), options_of("emoset"), full=True)
    assert found.faults["path_outside_root"].count == 3
    assert found.files_there == 17


def test_a_folder_on_s3_gives_the_same_findings(emoset, published, s3_server, capsys):
    (emoset / "image" / "awe" / "train3.jpg").unlink()
    (emoset / "image" / "awe" / "val1.jpg").write_bytes(b"")
    (emoset / "image" / "awe" / "test2.jpg").write_text("<html>404</html>")
    base.picture(emoset / "image" / "awe" / "extra.jpg")
    root = s3_server.bucket("check") + "/sets/emoset"
    s3_server.upload(emoset, root)
    assert main(["check", "emoset", root, "--full", "--json"]) == 1
    there = json.loads(capsys.readouterr().out)
    assert main(["check", "emoset", str(emoset), "--full", "--json"]) == 1
    local = json.loads(capsys.readouterr().out)
    assert {**there, "root": 0} == {**local, "root": 0}
    assert {reason: found["count"] for reason, found in there["faults"].items()} == {
        "missing_media": 1, "empty_file": 1, "not_media": 1,
    }  # fmt: skip
    assert main(["check", "emoset", root + "-elsewhere"]) == 2


def test_an_annotation_without_rows_is_no_fine_folder(emoset, monkeypatch):
    monkeypatch.setattr(sources.adapter("emoset"), "EXPECTED", {})
    for split in ("train", "val", "test"):
        (emoset / f"{split}.json").write_text("[]")
    found = check.check("emoset", str(emoset), options_of("emoset"))
    assert not found.fine and "the annotation holds no row" in check.report(found)


def test_what_is_not_the_source_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: there is no such folder; emoset needs: EmoSet-118K.zip"):
        check.check("emoset", str(tmp_path / "nowhere"), options_of("emoset"))
    with pytest.raises(BuildError, match=r"train.json"):
        check.check("emoset", str(tmp_path), options_of("emoset"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "emozet", "."], 2, "there is no source 'emozet'; did you mean 'emoset'?"),
        (["check", "qqqqq", "."], 2, "`python -m dataset_build sources` lists them"),
        (["sources", "emozet"], 2, "did you mean 'emoset'?"),
        (["check", "emoset", "/no/such/folder"], 2, "there is no such folder"),
        (["check", "emoset", "ROOT", "--set", "aks=both"], 2, "unknown key 'aks'; did you mean 'ask'?"),
        (["check", "emoset", "ROOT", "--set", "ask=sometimes"], 2, "found 'sometimes'"),
        (["check", "emoset", "ROOT", "--set", "ask"], 2, "expected KEY=VALUE"),
        (["check", "emoset", "ROOT"], 1, "annotation file is not there"),
    ],
)
def test_wrong_use_is_one_line_with_a_remedy(arguments, code, words, tmp_path, capsys):
    assert main([str(tmp_path) if part == "ROOT" else part for part in arguments]) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert error.startswith("dataset_build: ") or error.splitlines()[-1].startswith("dataset_build: ")


def test_ten_thousand_files_take_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.adapter("emoset"), "EXPECTED", {})
    picture = base.picture(tmp_path / "one.jpg").read_bytes()
    entries = []
    for number in range(10_000):
        path = f"image/awe/{number:05d}.jpg"
        base.write(tmp_path / path, picture) if number % 100 == 0 else os.link(
            tmp_path / "one.jpg", tmp_path / path
        )
        entries.append(["awe", f"{number:05d}", path])
    for split, rows in (("train", entries), ("val", []), ("test", [])):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    started = time.process_time()
    found = check.check("emoset", str(tmp_path), options_of("emoset"))
    assert found.files_there == 10_000 and found.fine
    assert time.process_time() - started < 4  # 100,000 took 11 s on two busy cores


# --- sources ---------------------------------------------------------------------------------------------------------


def test_the_table_names_every_source_with_its_licence(capsys):
    assert main(["sources"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["source", "sub-tasks", "split", "size", "licence"]
    assert {line.split()[0] for line in lines[2:] if line and not line.startswith("`")} == set(
        sources.REGISTRY
    )
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize("name", sources.REGISTRY)
def test_the_facts_of_a_source_are_complete(name):
    adapter = sources.adapter(name)
    text = " ".join(catalogue.facts(name).split())
    for fact in (
        adapter.TITLE,
        adapter.DOWNLOAD,
        adapter.LICENCE,
        adapter.CITATION,
        adapter.LIMITS,
        adapter.SIZE,
    ):
        assert " ".join(fact.split()) in text
    for option in adapter.Options.model_fields:
        assert f"{option}: " in text
        assert text.count(option) >= 2, f"{name}: nothing says what the option {option} means"


def test_a_tally_keeps_a_few_examples_and_counts_all():
    tally = check.Tally()
    for number in range(1_000):
        tally.add(str(number), times=2)
    assert tally.count == 2_000 and tally.examples == ["0", "1", "2", "3", "4"]
    assert Counter(check._rows([])) == Counter()


def test_a_copy_with_other_times_is_as_fine(emoset, published, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "emoset"
    shutil.copytree(emoset, copy)
    assert check.check("emoset", str(copy), options_of("emoset")).fine
