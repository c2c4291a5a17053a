"""Exports: other programs read them, and what comes back is what went out, byte by byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build import export, manifest, provenance, schema, storage, write
from dataset_build.__main__ import main
from dataset_build.errors import BuildError, UsageError
from dataset_build.exports import files
from dataset_build.exports.llava_import import import_build, import_llava
from dataset_build.recipe import BuildRecipe
from tests.fixtures import plain_build
from tests.fixtures import sources as fixtures
from tests.fixtures.mutations import mutate
from tests.fixtures.s3_server import S3Server

MEDIA = {"video_frames": 2, "frame_side_px": 32, "max_side_px": 64}
HOSTILE_UIDS = (
    "odd/all/../../../../etc/cron.d/x",
    "odd/all//etc/passwd",
    "odd/all/C:\\x\\y.jpg",
    "odd/all/a\x00b\nc",
    "odd/all/" + "long" * 2000,
    "odd/all/Ünï 😀.tar.gz",
    "odd/all/CON",
    "odd/all/con",
    "odd/all/...",
    "odd/all/-rf *",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of pictures and of clips with sound, in several files per split."""
    root = tmp_path_factory.mktemp("built")
    names = ("emoset", "mustard")
    for name in names:
        fixtures.build(name, root / name)
    raw = {"name": "two", "out": str(root / "out"), "root": str(root), "media": MEDIA, "reject_budget": 1}
    raw |= {"rows_per_file": 6, "sources": [{"name": name, "root": name} for name in names]}
    plain_build.build(BuildRecipe.model_validate(raw))
    shutil.rmtree(root / "out" / ".work")
    return root / "out"


@pytest.fixture(scope="module")
def llava(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "export"
    export.export(str(built), "llava", str(folder))
    return folder


@pytest.fixture
def copied(llava: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llava, tmp_path / "copied")


def samples(out: Path, split: str = "*", source: str = "*") -> list[dict[str, Any]]:
    """The rows of a build in the order of its files, split by split."""
    found = []
    for name in schema.SPLITS if split == "*" else [split]:
        for path in sorted((out / name).glob(f"{source}-*.parquet")):
            found += pq.read_table(path).to_pylist()
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sample(uid: str, number: int = 0, size: int = 3000) -> dict[str, Any]:
    """A sample of a made-up source: two pictures and a sound that no decoder has seen."""
    pictures = [b"\x89PNG\r\n\x1a\n" + bytes([number % 256]) * size, b"\xff\xd8\xff" + os.urandom(8)]
    kinds = [("image", pictures[:1]), ("image", pictures[1:]), ("audio", [b"RIFF" + uid.encode()])]
    facts = {"sha256": "0" * 64, "phash": "f" * 16, "width": 4, "height": 4, "fps": None}
    facts |= {"duration_s": 0.1 + 0.2, "sample_rate": None}
    return {
        "uid": uid,
        "source": "odd",
        "sub_task": "humor",
        "split": "train",
        "fold": None if number else 2,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": '<image><image><audio>\n"Is it\u2028funny?" 😀 \\ </s>'},
        ],
        "options": ["Yes", "No"],
        "answer": "Yes",
        "other_answers": [],
        "media": [{"kind": kind, "data": data, **facts} for kind, data in kinds],
        "group_keys": [("show", "é"), ("", "x\ty")],
        "demonstration": bool(number % 2),
        "n_text_tokens": number,
        "provenance": {
            name: f"{name}-{number}" for name in (f.name for f in schema.sample_schema().field("provenance").type)
        },
    }  # fmt: skip


def make_out(out: Path, files_of_rows: list[list[dict[str, Any]]]) -> Path:
    """A finished build of made-up rows."""
    entries = {}
    for number, rows in enumerate(files_of_rows):
        path = f"train/odd-{number:05d}.parquet"
        entries[path] = write.write_rows(str(out / path), rows, schema.sample_schema())
    for name, table in (
        ("rejects.parquet", schema.reject_schema()),
        ("duplicates.parquet", schema.duplicate_schema()),
    ):
        entries[name] = write.write_rows(str(out / name), [], table)
    kept = sum(map(len, files_of_rows))
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "digest": manifest.data_digest(entries),
        "inputs_digest": "x",
        "recipe": {"name": "odd", "splits": {}},
        "code": {},
        "sources": {"odd": {"train": {"records": kept, "kept": kept, "rejected": 0, "duplicates": 0}}},
        "source_facts": {"odd": {"group_key": "show", "groups_whole": False, "split": "official"}},
        "files": entries,
    }
    storage.write_json(str(out / "manifest.json"), content)
    return out


# --- LLaVA -----------------------------------------------------------------------------------------------------------


def test_samples_come_back_from_llava_field_by_field_and_byte_by_byte(built, llava):
    kinds = {medium["kind"] for row in samples(built) for medium in row["media"]}
    assert kinds == {"image", "video", "audio"}, "the build was to hold everything"
    assert list(import_llava(str(llava))) == samples(built)


def test_a_build_made_of_an_export_is_the_exported_build(built, llava, tmp_path):
    done = import_build(str(llava), str(tmp_path / "again"))
    assert tree(tmp_path / "again") == tree(built)
    assert done == manifest.read_manifest(str(built))
    assert manifest.verify(str(tmp_path / "again"), deep=True) == []


def test_an_export_of_a_part_comes_back_as_a_build_that_verifies(built, tmp_path):
    for number, (splits, sources) in enumerate(
        ((["train"], []), ([], ["mustard"]), (["train", "test"], ["emoset"]))
    ):
        dest, again = tmp_path / f"part{number}", tmp_path / f"again{number}"
        export.export(str(built), "llava", str(dest), splits, sources)
        done = import_build(str(dest), str(again))
        expected = [
            row
            for row in samples(built)
            if row["split"] in (splits or schema.SPLITS)
            and row["source"] in (sources or ["emoset", "mustard"])
        ]
        assert expected and samples(again) == list(import_llava(str(dest))) == expected
        assert manifest.verify(str(again), deep=True) == []
        assert done["inputs_digest"] != manifest.read_manifest(str(built))["inputs_digest"]


def test_entries_are_what_llava_reads(llava):
    """Keys, roles and files as LLaVA's `LazySupervisedDataset` uses them, and the same for clips and sound."""
    from PIL import Image

    entries = [
        entry for split in ("train", "test") for entry in json.loads((llava / f"{split}.json").read_text())
    ]
    assert {key for entry in entries for key in entry} == {
        "id",
        "image",
        "video",
        "audio",
        "conversations",
        "emobench",
    }
    for entry in entries:
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] and all(turn["value"] for turn in turns)
        for kind in ("image", "video", "audio"):
            assert turns[0]["value"].count(f"<{kind}>") == int(kind in entry)
        if "image" in entry:
            Image.open(llava / entry["image"]).load()
        if "video" in entry:
            frames = sorted(os.listdir(llava / entry["video"]))
            assert frames == ["000.jpg", "001.jpg"]
        if "audio" in entry:
            assert (llava / entry["audio"]).read_bytes()[:4] == b"RIFF" and entry["audio"].endswith(".wav")


def test_uids_never_decide_where_a_file_goes(tmp_path):
    out = make_out(tmp_path / "out", [[sample(uid, number) for number, uid in enumerate(HOSTILE_UIDS)]])
    for name in export.FORMATS:
        export.export(str(out), name, str(tmp_path / "dest" / name))
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in written} == {"out", "dest"}
    assert all(len(part) < 100 and part.isascii() for path in written for part in path.parts)
    assert list(import_llava(str(tmp_path / "dest/llava"))) == samples(out)
    assert sum(path.suffix in (".png", ".jpg", ".wav") for path in written) == 3 * len(HOSTILE_UIDS)


@given(st.lists(st.text(max_size=80), min_size=2, max_size=8, unique=True))
def test_safe_names_are_safe_and_different(texts):
    texts = [text for text in texts if text == text.encode("utf-8", "ignore").decode()]
    names = [files.safe_name(text) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert name.replace("_", "").replace("-", "").isalnum() and name.isascii() and len(name) <= 65
        assert name[0] not in "-_"


def test_what_was_changed_since_the_export_is_an_error_that_names_it(copied):
    medium = next(path for path in (copied / "media").rglob("*.jpg"))
    whole = medium.read_bytes()
    medium.write_bytes(whole + b"x")
    with pytest.raises(BuildError, match=f"{medium.name} .*changed since it was exported"):
        list(import_llava(str(copied)))
    medium.unlink()
    with pytest.raises(BuildError, match=f"{medium.name} .*not there"):
        list(import_llava(str(copied)))
    medium.write_bytes(whole)
    (copied / "train.json").write_text((copied / "train.json").read_text().replace("awe", "joy", 1))
    with pytest.raises(BuildError, match=r"train\.json: changed since it was exported"):
        list(import_llava(str(copied)))


def sealed(folder: Path, name: str, data: bytes) -> None:
    """Change a file of an export together with its marker, as a hostile hand would."""
    (folder / name).write_bytes(data)
    marker = json.loads((folder / "export.json").read_text())
    marker["files"][name] = {"sha256": provenance.sha256_of_bytes(data), "bytes": len(data)}
    marker.pop("digest")
    marker["digest"] = provenance.sha256_of_json(marker)
    storage.write_json(str(folder / "export.json"), marker)


@pytest.mark.parametrize(
    "path", ["../secret", "{tmp}/secret", "media/link", "media/up/secret", "media/none", "media"]
)
def test_an_import_reads_nothing_outside_its_folder(copied, tmp_path, path):
    (tmp_path / "secret").write_bytes(b"secret")
    (copied / "media" / "link").symlink_to(tmp_path / "secret")
    (copied / "media" / "up").symlink_to(tmp_path)
    entries = json.loads((copied / "test.json").read_text())
    part = entries[0]["emobench"]["media"][0]["files"][0]
    part |= {"path": path.format(tmp=tmp_path), "sha256": provenance.sha256_of_bytes(b"secret")}
    sealed(copied, "test.json", json.dumps(entries).encode())
    with pytest.raises(BuildError, match="leads out|not there"):
        list(import_llava(str(copied)))


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"{}", b"null", b'["a"]', b"[{}]", b'[{"id": 1}]', b"[" * 100_000, b'[{"a": ' * 50_000, b"\xff\xfe"]
    + [b'[{"id": "x", "conversations": [], "emobench": {}}]', b'[{"id": "x"', b'[{"a": "' + b"x" * (17 << 20)],
    ids=lambda data: repr(data[:24]),
)  # fmt: skip
def test_json_that_is_no_export_is_an_error_that_names_it(copied, data):
    sealed(copied, "train.json", data)
    with pytest.raises(BuildError, match=r"train\.json"):
        list(import_llava(str(copied)))


def test_a_damaged_entry_is_a_build_error_whatever_it_holds(copied):
    """Each damage with a marker that vouches for it."""
    whole = (copied / "test.json").read_bytes()
    errors = 0
    for number in range(150):
        sealed(copied, "test.json", mutate(whole, ".json", random.Random(number))[1])
        try:
            for row in import_llava(str(copied)):
                pa.Table.from_pylist([row], schema=schema.sample_schema())
        except BuildError as error:
            errors += 1
            assert str(copied) in str(error) and len(str(error)) < 1000
    assert 30 < errors < 150


def test_an_export_may_be_laid_out_anew(built, copied):
    """Programs rewrite JSON with other spaces; the entries are the same."""
    for split in ("train", "val", "test"):
        entries = json.loads((copied / f"{split}.json").read_text())
        sealed(copied, f"{split}.json", json.dumps(entries, indent=4).encode())
    assert list(import_llava(str(copied))) == samples(built)


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "export"
    export.export(str(built), "datasets", str(folder))
    return folder


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """`datasets.load_dataset` with a cache of its own and without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True, raising=False)

    def load_dataset(*arguments: str, **options: Any) -> Any:
        return datasets.load_dataset(*arguments, cache_dir=str(tmp_path / "cache"), **options)

    return load_dataset


def test_datasets_loads_the_folder_with_pictures_as_pictures(built, hub, load):
    from PIL import Image

    loaded = load(str(hub))
    assert {name: len(rows) for name, rows in loaded.items()} == {
        split: len(samples(built, split)) for split in schema.SPLITS
    }
    row = next(row for row in loaded["test"] if row["images"])
    assert isinstance(row["images"][0], Image.Image) and "<image>" in row["messages"][0]["content"]
    clip = next(row for row in loaded["test"] if row["videos"])
    assert [frame.size for frame in clip["videos"][0]] == [(32, 24)] * 2
    assert clip["audios"][0]["bytes"][:4] == b"RIFF"


def test_every_field_and_byte_is_in_what_datasets_loads(built, hub, load):
    import datasets

    for split in schema.SPLITS:
        rows = load(str(hub), split=split)
        for column, feature in rows.features.items():
            if column in ("images", "videos"):
                rows = rows.cast_column(column, plain(datasets, feature))
        expected = samples(built, split)
        assert len(rows) == len(expected)
        for row, sample in zip(rows, expected):
            media = {"image": list(row["images"]), "video": list(row["videos"]), "audio": list(row["audios"])}
            for medium, facts in zip(sample["media"], row["media"], strict=True):
                parts = media[medium["kind"]].pop(0)
                parts = parts if medium["kind"] == "video" else [parts]
                assert [part["bytes"] for part in parts] == medium["data"]
                assert facts == {name: value for name, value in medium.items() if name != "data"}
            assert not any(media.values())
            assert [(pair["key"], pair["value"]) for pair in row["group_keys"]] == sample["group_keys"]
            for name in set(sample) - {"media", "group_keys"}:
                assert row[name] == sample[name], name


def plain(datasets: Any, feature: Any) -> Any:
    """The feature with its pictures left encoded."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return datasets.List(plain(datasets, feature.feature))


def test_each_source_is_a_configuration_and_streaming_works(built, hub, load):
    loaded = load(str(hub), "mustard")
    assert {name: len(rows) for name, rows in loaded.items()} == {
        split: len(found) for split in schema.SPLITS if (found := samples(built, split, "mustard"))
    }
    streamed = load(str(hub), split="train", streaming=True)
    assert [row["uid"] for row in streamed] == [row["uid"] for row in samples(built, "train")]


def test_the_card_comes_with_the_folder(built, hub):
    text = (hub / "README.md").read_text()
    assert text.startswith("---\npretty_name: two\n") and text.endswith((built / "README.md").read_text())
    assert tree(built / "stats") == tree(hub / "stats")


# --- WebDataset ------------------------------------------------------------------------------------------------------


def test_webdataset_reads_every_field_and_byte(built, tmp_path):
    import webdataset

    export.export(str(built), "webdataset", str(tmp_path / "shards"))
    for split in schema.SPLITS:
        shards = sorted(map(str, (tmp_path / "shards" / split).glob("*.tar")))
        found = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
        expected = samples(built, split)
        assert len(found) == len(expected)
        for parts, sample in zip(found, expected):
            row = json.loads(parts["json"])
            for medium, facts in zip(sample["media"], row["media"], strict=True):
                assert [parts[member] for member in facts.pop("members")] == medium["data"]
                assert facts == {name: value for name, value in medium.items() if name != "data"}
            plain = {**sample, "group_keys": dict(sample["group_keys"]), "media": row["media"]}
            assert row == plain
            assert parts["__key__"] == files.safe_name(sample["uid"])


def test_webdataset_decodes_the_pictures(built, tmp_path):
    import webdataset

    export.export(str(built), "webdataset", str(tmp_path / "shards"), ["test"], ["emoset"])
    shards = sorted(map(str, (tmp_path / "shards/test").glob("emoset-*.tar")))
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert all(next(row[key] for key in row if key.startswith("0.")).size == (64, 48) for row in rows)
    assert {row["json"]["answer"] for row in rows} <= set(rows[0]["json"]["options"])


def test_tar_headers_tell_nothing_of_the_machine(built, tmp_path):
    export.export(str(built), "webdataset", str(tmp_path / "shards"))
    for path in (tmp_path / "shards").rglob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert member.isfile() and member.uname == member.gname == "" and "/" not in member.name


# --- all formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_export_is_the_same_bytes_twice_and_its_marker_says_which(built, tmp_path, name):
    first = export.export(str(built), name, str(tmp_path / "one"))
    os.utime(built / "manifest.json")
    second = export.export(str(built), name, str(tmp_path / "two"))
    assert first == second and tree(tmp_path / "one") == tree(tmp_path / "two")
    assert first["build"]["digest"] == manifest.read_manifest(str(built))["digest"]
    assert first["rows"] == len(samples(built))
    for path, entry in first["files"].items():
        data = (tmp_path / "one" / path).read_bytes()
        assert entry == {"sha256": provenance.sha256_of_bytes(data), "bytes": len(data)}


def test_an_export_refuses_a_folder_with_files_and_force_replaces_only_its_own(built, tmp_path):
    dest = tmp_path / "dest"
    export.export(str(built), "webdataset", str(dest))
    (dest / "mine.txt").write_text("mine")
    (dest / "train" / "emoset-99999.tar").write_text("of an earlier export")
    before = tree(dest)
    with pytest.raises(UsageError, match="not empty .*--force"):
        export.export(str(built), "webdataset", str(dest))
    assert tree(dest) == before
    export.export(str(built), "webdataset", str(dest), force=True)
    before.pop("train/emoset-99999.tar")
    assert tree(dest) == before
    with pytest.raises(UsageError, match="is a file"):
        export.export(str(built), "llava", str(dest / "mine.txt"))


@pytest.mark.parametrize("place", ["", "/", "/../out", "/train", "/stats/x", "/.."])
def test_nothing_is_written_over_what_is_read_even_with_force(built, llava, tmp_path, place):
    build, exported = tmp_path / "out", tmp_path / "llava"
    shutil.copytree(built, build)
    before = tree(build)
    for name in export.FORMATS:
        with pytest.raises(UsageError, match="lie in each other"):
            export.export(str(build), name, f"{build}{place}", force=True)
    assert tree(build) == before
    shutil.copytree(llava, exported)
    before = tree(exported)
    with pytest.raises(UsageError, match="lie in each other"):
        import_build(str(exported), f"{exported}{place.replace('out', 'llava')}", force=True)
    assert tree(exported) == before


def test_force_takes_only_whole_names(built, tmp_path):
    export.export(str(built), "llava", str(tmp_path / "dest"))
    (tmp_path / "dest" / "train.json.kept").write_text("mine")
    export.export(str(built), "llava", str(tmp_path / "dest"), force=True)
    assert (tmp_path / "dest" / "train.json.kept").read_text() == "mine"


def test_choices_that_the_build_does_not_have_are_named_with_the_nearest(built, tmp_path):
    for choice, says in (
        ({"splits": ["trian"]}, "did you mean 'train'"),
        ({"sources": ["mustrad"]}, "did you mean 'mustard'"),
        ({"format_name": "parquet"}, "llava, datasets, webdataset"),
    ):
        with pytest.raises(UsageError, match=says):
            export.export(
                **{"out": str(built), "format_name": "llava", "dest": str(tmp_path / "d"), **choice}
            )
    with pytest.raises(BuildError, match="holds no row of val of mustard"):
        export.export(str(built), "llava", str(tmp_path / "d"), ["val"], ["mustard"])
    with pytest.raises(BuildError, match="no finished build"):
        export.export(str(tmp_path), "llava", str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_a_row_of_a_source_that_the_manifest_does_not_name_is_a_problem_and_no_crash(built, tmp_path):
    shutil.copytree(built, tmp_path / "out")
    path = next((tmp_path / "out" / "train").glob("*.parquet"))
    rows = pq.read_table(path).to_pylist()
    rows[0]["source"] = "nobody"
    write.write_rows(str(path), rows, schema.sample_schema())
    problems = manifest.content_problems(str(tmp_path / "out"), manifest.read_manifest(str(built)))
    assert f"train/{path.name}: {rows[0]['uid']}: the manifest names no source 'nobody'" in problems


def test_a_build_that_was_changed_is_not_exported(built, tmp_path):
    out = shutil.copytree(built, tmp_path / "out")
    path = next((out / "train").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BuildError, match=f"{path.name}: its sha256 is not the manifest's"):
        export.export(str(out), "webdataset", str(tmp_path / "dest"))


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_killed_export_is_unfinished_and_starts_over_with_force(built, tmp_path, name):
    code = (
        "import os, signal, sys\n"
        "from dataset_build import export\n"
        "from dataset_build.exports import files\n"
        "real, calls = files.tables, []\n"
        "def tables(out, path):\n"
        "    for batch in real(out, path):\n"
        "        yield batch\n"
        "        calls.append(path)\n"
        "        len(calls) == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.tables = tables\n"
        "export.export(*sys.argv[1:])\n"
    )
    dest = tmp_path / "dest"
    done = subprocess.run(
        [sys.executable, "-c", code, str(built), name, str(dest)], capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert any(dest.rglob("*.*")) and not (dest / "export.json").exists()
    with pytest.raises(BuildError, match="no finished export"):
        list(import_llava(str(dest)))
    export.export(str(built), name, str(dest), force=True)
    export.export(str(built), name, str(tmp_path / "undisturbed"))
    assert tree(dest) == tree(tmp_path / "undisturbed")


def test_only_llava_comes_back(built, hub, tmp_path):
    for call in (lambda: list(import_llava(str(hub))), lambda: import_build(str(hub), str(tmp_path / "x"))):
        with pytest.raises(BuildError, match="only llava can be imported"):
            call()


def test_the_command_line_exports_and_imports(built, tmp_path, capsys):
    dest, again = str(tmp_path / "dest"), str(tmp_path / "again")
    assert main(["export", str(built), "llava", dest, "--split", "test", "--source", "mustard"]) == 0
    assert main(["import", "llava", dest, again]) == 0
    assert samples(Path(again)) == samples(built, "test", "mustard")
    assert main(["export", str(built), "llava", dest]) == 2
    assert main(["import", "llava", dest, again]) == 2
    assert main(["export", str(built), "nonsense", dest]) == 2
    assert main(["export", str(tmp_path), "llava", str(tmp_path / "new")]) == 1
    assert "rows as llava" in capsys.readouterr().out


def test_builds_and_exports_may_be_on_s3(built, tmp_path, s3_server: S3Server):
    """The same bytes as on a local disk, in every format, and back."""
    bucket = s3_server.bucket("exports")
    for path, data in tree(built).items():
        storage.write_bytes(f"{bucket}/out/{path}", data)
    for name in export.FORMATS:
        local = export.export(str(built), name, str(tmp_path / name), ["test"])
        assert export.export(f"{bucket}/out", name, f"{bucket}/{name}", ["test"]) == local
        found = {
            path: storage.read_bytes(f"{bucket}/{name}/{path}")
            for path in storage.list_files(f"{bucket}/{name}")
        }
        assert found == tree(tmp_path / name)
    assert list(import_llava(f"{bucket}/llava")) == samples(built, "test")
    import_build(f"{bucket}/llava", f"{bucket}/again")
    assert manifest.verify(f"{bucket}/again", deep=True) == []
    with pytest.raises(UsageError, match="not empty"):
        export.export(f"{bucket}/out", "llava", f"{bucket}/llava")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Four times the files: 80 MB of media instead of 20."""
    code = (
        "import re, sys\n"
        "from dataset_build import export\n"
        "from dataset_build.exports.llava_import import import_llava\n"
        "out, dest = sys.argv[1:]\n"
        "for name in export.FORMATS: export.export(out, name, f'{dest}/{name}')\n"
        "for row in import_llava(f'{dest}/llava'): pass\n"
        # Not getrusage: a new process starts with the peak of the one that made it.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    peaks = []
    for count in (4, 16):
        rows = [[sample(f"odd/all/{f}-{n}", n, 1 << 17) for n in range(40)] for f in range(count)]
        out = make_out(tmp_path / f"out{count}", rows)
        del rows
        arguments = [sys.executable, "-c", code, str(out), str(tmp_path / f"dest{count}")]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < 1.25 * peaks[0], peaks
