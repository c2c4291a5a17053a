"""Storage on a real S3 server: whole writes, exact names, patience with its faults, errors without secrets."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_build import media, recipe, roots, s3, storage, write
from dataset_build.errors import StorageError, UsageError
from dataset_build.schema import MediaRef, Record
from dataset_build.sources import readers
from tests.fixtures.s3_server import SECRET, S3Server
from tests.fixtures.sources import base


@pytest.fixture
def bucket(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    return s3_server.bucket(f"t{abs(hash(request.node.name)) % 10**12}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is down is given up after botocore's two tries, not after five rounds of them."""
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def reason_of(call) -> str:
    with pytest.raises(media.MediaError) as caught:
        call()
    return caught.value.reason


def test_files_are_written_read_listed_and_removed_as_on_a_disk(bucket, tmp_path):
    for root in (f"{bucket}/a/b", str(tmp_path / "b")):
        storage.write_bytes(storage.join(root, "x", "1.bin"), b"one")
        storage.write_bytes(storage.join(root, "2.bin"), b"")
        storage.write_json(storage.join(root, "é ü+%41.json"), {"a": 1})
        assert storage.list_files(root) == ["2.bin", "x/1.bin", "é ü+%41.json"]
        assert storage.sizes(root) == {"x/1.bin": 3, "2.bin": 0, "é ü+%41.json": 13}
        assert storage.read_json(storage.join(root, "é ü+%41.json")) == {"a": 1}
        assert storage.read_bytes(storage.join(root, "2.bin")) == b""
        assert [storage.exists(storage.join(root, name)) for name in ("x/1.bin", "x", ".", "", "y")] == [
            True,
            True,
            True,
            True,
            False,
        ]
        assert storage.size(storage.join(root, "x/1.bin")) == 3
        for missing in (storage.size, storage.read_bytes, lambda path: storage.open_read(path).read()):
            with pytest.raises(FileNotFoundError):
                missing(storage.join(root, "nothing"))
        storage.remove_all([storage.join(root, name) for name in ("x/1.bin", "2.bin", "never there")])
        assert storage.list_files(root) == ["é ü+%41.json"]
        assert storage.list_files(storage.join(root, "nowhere")) == []


def test_a_parquet_file_can_be_read_in_pieces(bucket, s3_server):
    table = pa.table({"number": range(300_000), "text": [f"row {n % 977}" for n in range(300_000)]})
    storage.write_bytes(f"{bucket}/t.parquet", write.parquet_bytes([table], table.schema))
    s3_server.calm()
    with storage.open_read(f"{bucket}/t.parquet") as stream:
        assert pq.read_table(stream) == table
    assert s3_server.requests["GET", 206] >= 1


def test_a_large_file_travels_in_parts_and_shows_only_when_whole(bucket, s3_server, impatient):
    data = os.urandom(1 << 20) * 33
    s3_server.faults.down_after = 2  # the upload begins, and no part gets through
    with pytest.raises(StorageError, match=f"{bucket}/large.bin: S3 did not take it"):
        storage.write_bytes(f"{bucket}/large.bin", data)
    s3_server.calm()
    assert storage.list_files(bucket) == []
    storage.write_bytes(f"{bucket}/large.bin", data)
    assert storage.size(f"{bucket}/large.bin") == len(data)
    assert storage.read_bytes(f"{bucket}/large.bin") == data


def test_more_than_one_page_is_listed_and_no_page_is_asked_for_twice(bucket, s3_server, monkeypatch):
    names = [f"deep/{number:03d}/x.jpg" for number in range(57)]
    for name in names:
        storage.write_bytes(f"{bucket}/{name}", b"x")
    asked = s3.filesystem

    class Small:
        """The file system with pages of ten."""

        def call_s3(self, method: str, **arguments: object) -> object:
            return asked().call_s3(method, **{**arguments, "MaxKeys": 10})

    monkeypatch.setattr(s3, "filesystem", Small)
    s3_server.calm()
    assert storage.list_files(f"{bucket}/deep") == [name.removeprefix("deep/") for name in names]
    assert s3_server.requests == {("GET", 200): 6}


def test_one_listing_answers_for_every_file_of_a_root(bucket, s3_server):
    for name in ("a.csv", "clips/1.mp4", "clips/2.mp4"):
        storage.write_bytes(f"{bucket}/set/{name}", name.encode())
    refs = [MediaRef("video", path) for path in ("clips/1.mp4", "./clips//2.mp4", "gone.mp4", "../x.mp4")]
    s3_server.calm()
    with storage.snapshot(f"{bucket}/set") as taken:
        found = [roots.fingerprint(taken, ref) for ref in refs]
        assert [readers.exists(f"{bucket}/set", name) for name in ("a.csv", "clips", "clips/9.mp4")] == [
            True,
            True,
            False,
        ]
        assert readers.listing(f"{bucket}/set", "clips") == ["clips/1.mp4", "clips/2.mp4"]
        assert storage.size(f"{bucket}/set/a.csv") == 5
    assert sum(s3_server.requests.values()) == 1
    assert found[2:] == ["missing_media", "path_outside_root"]
    assert found[0] != found[1]
    storage.write_bytes(f"{bucket}/set/clips/1.mp4", b"other bytes")
    with storage.snapshot(f"{bucket}/set") as taken:
        again = [roots.fingerprint(taken, ref) for ref in refs]
    assert again[0] != found[0]
    assert again[1:] == found[1:]


def record(*paths: str) -> Record:
    refs = tuple(MediaRef("image", path) for path in paths)
    return Record(f"s/all/{paths}", "s", "emo_c", None, refs, "joy", "joy", "MIT")


def test_a_shard_fetches_each_file_once_and_deletes_it_after_its_last_row(bucket, s3_server, tmp_path):
    for name in ("shared.png", "own.png"):
        storage.write_bytes(f"{bucket}/set/{name}", base.picture(tmp_path / name).read_bytes())
    rows = [record("shared.png", "own.png"), record("./shared.png"), record("shared.png")]
    settings = recipe.MediaSettings()
    s3_server.calm()
    with roots.opened(f"{bucket}/set", rows, settings) as root:
        for row, left in zip(rows, (1, 1, 0)):
            for ref in row.media:
                assert media.read_picture(root, ref.path, settings) == media.read_picture(
                    str(tmp_path), ref.path, settings
                )
            roots.release(root, row)
            assert len(os.listdir(root.folder)) == left
    assert not os.path.exists(root.folder)
    assert s3_server.requests["GET", 200] == 2


def test_files_are_fetched_ahead_of_their_rows_and_no_more_than_a_few(bucket, s3_server, tmp_path):
    data = base.picture(tmp_path / "one.png").read_bytes()
    rows = [record(f"{number}.png") for number in range(12)]
    for row in rows:
        storage.write_bytes(f"{bucket}/set/{row.media[0].path}", data)
    s3_server.calm()
    s3_server.faults.wait_s = 0.05
    with roots.opened(f"{bucket}/set", rows, recipe.MediaSettings()) as root:
        for row in rows:
            assert Path(media.resolve(root, row.media[0].path)).read_bytes() == data
            assert len(os.listdir(root.folder)) <= 1 + roots.AHEAD
            roots.release(root, row)
    assert 2 <= s3_server.most_at_once <= roots.AHEAD + 1  # and the one that is asked for
    assert s3_server.requests["GET", 200] == len(rows), "each once"


def test_what_was_fetched_for_a_row_that_nobody_looks_at_is_deleted_and_its_errors_are_nobodys(
    bucket, s3_server, tmp_path
):
    data = base.picture(tmp_path / "one.png").read_bytes()
    asked = ("a.png", "b.png", "c.png")
    names = ("a.png", "refused.png", "gone.png", "no\udce9name.png", "b.png", "./refused.png", "c.png")
    for name in (*asked, "refused.png"):
        storage.write_bytes(f"{bucket}/set/{name}", data)
    rows = [record(name) for name in names]
    with roots.opened(f"{bucket}/set", rows, recipe.MediaSettings()) as root:
        for row in rows:
            if row.media[0].path in asked:
                assert Path(media.resolve(root, row.media[0].path)).read_bytes() == data
            roots.release(root, row)
        assert os.listdir(root.folder) == []


def test_sound_that_the_recipe_does_not_store_is_not_fetched(bucket, s3_server, tmp_path):
    data = base.picture(tmp_path / "one.png").read_bytes()
    for name in ("1.png", "1.wav", "2.png"):
        storage.write_bytes(f"{bucket}/set/{name}", data)
    rows = [record("1.png"), record("2.png")]
    rows[0] = dataclasses.replace(rows[0], media=(*rows[0].media, MediaRef("audio", "1.wav")))
    for audio, fetched in ((False, 2), (True, 3)):
        s3_server.calm()
        with roots.opened(f"{bucket}/set", rows, recipe.MediaSettings(audio=audio)) as root:
            for row in rows:
                for ref in row.media:
                    if audio or ref.kind != "audio":
                        media.resolve(root, ref.path)
                roots.release(root, row)
        assert s3_server.requests["GET", 200] == fetched


def test_a_shard_that_is_given_up_waits_for_what_still_comes_and_leaves_no_folder(bucket, s3_server):
    rows = [record(f"{number}.png") for number in range(12)]
    for row in rows:
        storage.write_bytes(f"{bucket}/set/{row.media[0].path}", b"x" * 1000)
    s3_server.faults.wait_s = 0.2
    opened = roots.opened(f"{bucket}/set", rows, recipe.MediaSettings())
    with pytest.raises(RuntimeError, match="given up"), opened as root:
        media.resolve(root, "0.png")
        coming = list(root._coming.values())
        assert len(coming) == roots.AHEAD and not any(future.done() for future in coming)
        raise RuntimeError("given up")
    assert all(future.done() for future in coming)
    assert not os.path.exists(root.folder)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../other/secret.png", "path_outside_root"),
        ("/etc/passwd", "path_outside_root"),
        ("..\\other\\secret.png", "path_outside_root"),
        ("a/../../other/secret.png", "path_outside_root"),
        ("\\\\host\\secret.png", "path_outside_root"),
        ("x::file:///etc/passwd", "missing_media"),
        ("file:///etc/passwd", "missing_media"),
        ("s3://other/secret.png", "missing_media"),
        ("a.png?versionId=1", "bad_row"),
        ("gone.png", "missing_media"),
        ("folder", "not_media"),
        ("", "not_media"),
        ("empty.png", "empty_file"),
        ("large.png", "too_large"),
    ],
)
def test_paths_below_a_remote_root_follow_the_rules_of_a_folder(bucket, s3_server, path, reason):
    for name, data in (
        ("other/secret.png", b"secret"),
        ("set/folder/x.png", b"x"),
        ("set/empty.png", b""),
        ("set/large.png", bytes((1 << 20) + 1)),
    ):
        storage.write_bytes(f"{bucket}/{name}", data)
    s3_server.calm()
    settings = recipe.MediaSettings(max_file_mb=1)
    with roots.opened(f"{bucket}/set", [record(path)], settings) as root:
        assert reason_of(lambda: media.read_picture(root, path, settings)) == reason
    name = bucket.removeprefix("s3://")
    assert all(asked.startswith((f"/{name}/set", f"/{name}?")) for _, asked in s3_server.asked)
    assert ("GET", 200) not in s3_server.requests or reason in ("empty_file", "not_media", "missing_media")


def test_busy_answers_and_bodies_that_break_off_are_waited_out(bucket, s3_server):
    data = os.urandom(200_000)
    s3_server.faults.busy_share, s3_server.faults.stall_share, s3_server.faults.drip_share = 0.2, 0.05, 0.2
    began = time.monotonic()
    for number in range(8):
        path = f"{bucket}/{number}.bin"
        storage.write_bytes(path, data)
        assert storage.read_bytes(path) == data
        with storage.open_read(path) as stream:
            stream.seek(100_000)
            assert stream.read() == data[100_000:]
    assert len(storage.list_files(bucket)) == 8
    assert s3_server.requests["GET", 503] + s3_server.requests["PUT", 503] >= 3
    assert time.monotonic() - began < 60


def test_a_download_goes_on_where_it_broke_off(bucket, s3_server, tmp_path):
    data = os.urandom(300_000)
    storage.write_bytes(f"{bucket}/a.bin", data)
    s3_server.calm()
    s3_server.faults.stall_share, s3_server.faults.at_most = 1.0, 1
    s3.download(f"{bucket}/a.bin", str(tmp_path / "a"), len(data))
    assert (tmp_path / "a").read_bytes() == data
    assert s3_server.requests == {("GET", 200): 1, ("GET", 206): 1}


def test_a_store_that_stays_down_is_one_error_that_names_the_path_and_no_secret(bucket, s3_server, impatient):
    storage.write_bytes(f"{bucket}/a.json", b"{}")
    s3_server.faults.down = True
    for call in (storage.read_json, storage.list_files, lambda path: storage.write_bytes(path, b"x")):
        with pytest.raises(
            StorageError, match=f"{bucket}/a.json: S3 did not .*start the same command again"
        ) as caught:
            call(f"{bucket}/a.json")
        assert s3_server.endpoint not in str(caught.value)
        assert SECRET not in str(caught.value)
    s3_server.faults.down = False
    assert storage.read_json(f"{bucket}/a.json") == {}


def test_a_server_that_is_not_there_and_a_missing_bucket_are_named(s3_server):
    with pytest.raises(StorageError, match="s3://no-such-bucket/x.*NoSuchBucket|s3://no-such-bucket/x"):
        storage.write_bytes("s3://no-such-bucket/x", b"x")
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: S3 did not list"):
        storage.list_files("s3://no-such-bucket/x")


@pytest.mark.parametrize(
    "place",
    ["s3://AKIA:secret@bucket/x", "s3://", "s3:///x", "gs://bucket/x", "http://127.0.0.1/x", "s3://a"],
)
def test_only_folders_and_buckets_are_places_and_credentials_are_not_repeated(tmp_path, place):
    with pytest.raises(UsageError, match=r"S3|s3://BUCKET") as caught:
        storage.read_bytes(place)
    assert "secret" not in str(caught.value)
    text = f"name: x\nout: {place}\nroot: '.'\nsources: [{{name: jokes, root: texts}}]\n"
    (tmp_path / "r.yaml").write_text(text)
    for where in ("out", "root", "sources.jokes.root"):
        (tmp_path / "r.yaml").write_text(text.replace(place, "out"))
        with pytest.raises(
            UsageError, match=f"{where}: expected a local folder or s3://BUCKET/PREFIX"
        ) as caught:
            recipe.load_recipe(str(tmp_path / "r.yaml"), [f"{where}={place}"])
        assert "secret" not in str(caught.value)


def test_roots_of_a_recipe_may_be_in_a_bucket(tmp_path):
    text = "name: x\nout: out\nroot: s3://bucket/data/\nsources: [{name: jokes, root: ROOT}]\n"
    for given, expected in (
        ("texts", "s3://bucket/data/texts"),
        (".", "s3://bucket/data"),
        ("s3://other/x/", "s3://other/x"),
        (str(tmp_path), str(tmp_path)),
    ):
        (tmp_path / "r.yaml").write_text(text.replace("ROOT", given))
        loaded = recipe.load_recipe(str(tmp_path / "r.yaml"))
        assert loaded.source_root(loaded.sources[0]) == expected


def test_links_to_folders_are_not_followed_when_files_are_listed(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "a.txt").write_text("a")
    os.symlink(tmp_path / "outside", root / "link")
    os.symlink(root, root / "real" / "loop")
    os.symlink(tmp_path / "outside" / "secret.txt", root / "file_link.txt")
    assert storage.list_files(str(root)) == ["file_link.txt", "real/a.txt"]
    assert media.fingerprint(str(root), "file_link.txt") == "path_outside_root"
    assert media.fingerprint(str(root), "link/secret.txt") == "path_outside_root"


def test_without_credentials_the_error_says_where_to_set_them(s3_server):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": "/nonexistent",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
    }
    code = "from dataset_build import storage\nstorage.read_bytes('s3://bucket/a.json')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **nowhere},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stderr.strip().splitlines()[-1]
    assert "s3://bucket/a.json: there are no credentials for S3; set AWS_ACCESS_KEY_ID" in said
    assert "Ray's nodes" in said
    assert s3_server.asked == []
