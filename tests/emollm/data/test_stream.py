"""What ranks read: every row exactly once an epoch, the same bits for any number of decode workers, never a hang."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataset_build.provenance import sha256_of_file, sha256_of_json
from dataset_build.schema import sample_schema
from emollm.config import LoaderConfig, TrainRecipe
from emollm.data.cache import FileCache
from emollm.data.collate import Encoded
from emollm.data.emobench import DataError, data_files, read_digest
from emollm.data.encoder import Encoder
from emollm.data.features import FeatureStore
from emollm.data.index import RowIndex, make_index
from emollm.data.plan import Step, plan_training
from emollm.data.rows import Rows
from emollm.data.stream import Steps, Stream
from emollm.model.families import Visual
from emollm.train.fold import row_encoder
from tests.emollm.train.small_emobench import LABELS, in_words, sample
from tests.fixtures.s3_server import S3Server


def write_rows(folder: Path, rows: list[dict], per_file: int, per_group: int = 8) -> Path:
    """A finished EmoBench of these rows, all in split train, in files of `per_file` rows."""
    files = {}
    for number, start in enumerate(range(0, len(rows), per_file)):
        path = folder / "train" / f"drawn-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(
            [{**row, "group_keys": []} for row in rows[start : start + per_file]], schema=sample_schema()
        )
        pq.write_table(table, path, row_group_size=per_group)
        entry = {"sha256": sha256_of_file(str(path)), "rows": len(table), "bytes": path.stat().st_size}
        files[f"train/{path.name}"] = entry
    manifest = {"schema_version": "1.0", "digest": sha256_of_json(files), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def drawn(number: int, **changes) -> dict:
    return sample(
        number,
        fold=None,
        split="train",
        label=LABELS[number % 4],
        frames=2 if number % 5 == 4 else 0,
        **changes,
    )


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows with pictures, clips and words alone, in 3 files of 3 row groups."""
    rows = [in_words(drawn(n)) if n % 7 == 3 else drawn(n) for n in range(60)]
    return write_rows(tmp_path_factory.mktemp("some") / "emobench", rows, per_file=20)


def recipe_over(recipe: TrainRecipe, data: Path | str, out: Path, **loader) -> TrainRecipe:
    tune = recipe.tune.model_copy(update={"epochs": 3})
    settings = LoaderConfig(**loader)
    return recipe.model_copy(update={"data": str(data), "out": str(out), "tune": tune, "loader": settings})


class Read:
    """The rows of a recipe, and the plan of each rank over them."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self.recipe = recipe
        self.encoder: Encoder = row_encoder(recipe)
        self.index: RowIndex = make_index(
            recipe.data, recipe.out, self.encoder, read_digest(recipe.data)
        ).of_fold(0)
        self.rows = Rows(recipe.data, self.index, self.encoder, recipe.loader)

    def plan(self, world: int, rank: int) -> list[Step]:
        index = self.index
        return plan_training(
            index.keys, index.lengths, self.recipe, places=index.places, world_size=world, rank=rank
        )

    def stream(self, world: int = 1, rank: int = 0, start: int = 0, media: bool = True) -> Stream:
        steps = [step.micro_batches for step in self.plan(world, rank)]
        decode = np.array([media and bool(key) for key in self.index.media_keys])
        return Stream(Steps(self.rows, steps, decode, self.index.shortest), self.recipe.loader, start)


def bits(rows: list[list[list[Encoded]]]) -> list:
    """Everything that comes out of a stream, as plain values."""
    return [
        [
            (
                row.uid,
                row.input_ids,
                row.labels,
                row.media_frames,
                [p.numpy().tobytes() for p in row.pictures],
            )
            for batch in step
            for row in batch
        ]
        for step in rows
    ]


class JustRead(Encoder):
    """Makes a row of one token of each row."""

    def text(self, row: dict) -> Encoded:
        return Encoded(row["uid"], [1], [1], [], [], [], 0, [], None)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_1003_samples_are_read_exactly_once_an_epoch_by_the_streams_of_all_ranks(
    thousand: Path, tiny_recipe: TrainRecipe, tmp_path_factory: pytest.TempPathFactory, world: int
) -> None:
    out = tmp_path_factory.getbasetemp() / "thousand-out"  # shared: the index is made once
    read = Read(recipe_over(tiny_recipe, thousand, out, shuffle_rows=200, shuffle_files=3))
    whole = world == 2  # elsewhere rows are only read: encoding them has no part in which come
    if not whole:
        read.rows.encoder = JustRead(*read.encoder)
    seen = [Counter[str]() for _ in range(3)]
    for rank in range(world):
        plan = read.plan(world, rank)
        with read.stream(world, rank, media=whole) as stream:
            for step, found in zip(plan, stream, strict=True):
                for numbers, rows in zip(step.micro_batches, found, strict=True):
                    if numbers:
                        seen[step.epoch].update(row.uid for row in rows)
                    else:
                        assert all(label == -100 for row in rows for label in row.labels), (
                            "a filler teaches nothing"
                        )
    expected = Counter(f"drawn/all/{number:04d}" for number in range(1003))
    assert seen == [expected] * 3


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,003 samples with tiny pictures in 9 files; the last is nearly empty."""
    pictures = [drawn(number)["media"] for number in range(20)]
    rows = [
        {**drawn(number % 20), "uid": f"drawn/all/{number:04d}", "media": pictures[number % 20]}
        for number in range(1003)
    ]
    return write_rows(tmp_path_factory.mktemp("thousand") / "emobench", rows, per_file=125, per_group=32)


@pytest.fixture
def remote(some: Path, s3_server: S3Server) -> str:
    bucket = s3_server.bucket(f"stream-{time.monotonic_ns()}")
    s3_server.upload(some, f"{bucket}/emobench")
    s3_server.calm()
    return f"{bucket}/emobench"


def test_the_same_bits_for_any_number_of_decode_workers_from_disk_and_from_s3(
    some: Path, remote: str, s3_server: S3Server, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    here = Read(recipe_over(tiny_recipe, some, tmp_path / "here", shuffle_rows=10, shuffle_files=2))
    with here.stream() as stream:
        expected = bits(list(stream))
    for workers, data in ((1, str(some)), (2, remote)):
        cache = str(tmp_path / f"cache-{workers}")
        recipe = recipe_over(
            tiny_recipe, data, tmp_path / f"out-{workers}", shuffle_rows=10, shuffle_files=2, decode_workers=workers,
            cache_folder=cache,
        )  # fmt: skip
        read = Read(recipe)
        s3_server.calm()
        with read.stream() as stream:
            assert bits(list(stream)) == expected
    gets = Counter(
        path.split("?")[0] for method, path in s3_server.asked if method == "GET" and ".parquet" in path
    )
    assert set(gets.values()) == {1} and len(gets) == 3, "each file is copied once, whole, for all processes"
    assert len(list(Path(cache).glob("*.parquet"))) == 3


def test_a_stream_goes_on_in_the_middle_of_an_epoch(
    some: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    read = Read(recipe_over(tiny_recipe, some, tmp_path))
    with read.stream(world=2, rank=1) as stream:
        whole = bits(list(stream))
    with read.stream(world=2, rank=1, start=5) as stream:
        assert bits(list(stream)) == whole[5:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded_ends_the_stream_with_its_uid(
    tiny_recipe: TrainRecipe, tmp_path: Path, workers: int
) -> None:
    rows = [drawn(number) for number in range(12)]
    rows[7]["media"][0]["data"] = [b"not a picture"]
    data = write_rows(tmp_path / "data", rows, per_file=12)
    read = Read(recipe_over(tiny_recipe, data, tmp_path, decode_workers=workers))
    with (
        pytest.raises(DataError, match=r"^drawn/all/0007: media\[0\] cannot be decoded"),
        read.stream() as stream,
    ):
        list(stream)


def test_a_decode_worker_that_dies_is_an_error_and_not_a_hang(
    some: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    read = Read(recipe_over(tiny_recipe, some, tmp_path, decode_workers=1, prefetch=1))
    with read.stream() as stream:
        next(stream)
        (worker,) = decode_workers()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(
            DataError, match="a decode worker died .*lower loader.decode_workers, loader.prefetch"
        ):
            list(stream)


def decode_workers() -> list[psutil.Process]:
    """Processes forked from this process's fork server for streams; Ray's dashboard has one of its own."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if process.name() == "pt_data_worker"]


def test_closing_a_stream_ends_its_decode_workers(
    some: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    read = Read(recipe_over(tiny_recipe, some, tmp_path, decode_workers=1))
    with read.stream() as stream:
        next(stream)
        workers = decode_workers()
        assert len(workers) == 1
    gone, left = psutil.wait_procs(workers, timeout=20)
    assert gone == workers and not left


def test_a_file_that_changed_under_the_training_is_refused(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [drawn(number) for number in range(12)], per_file=12)
    read = Read(recipe_over(tiny_recipe, data, tmp_path))
    write_rows(tmp_path / "data", [drawn(number) for number in range(1, 13)], per_file=12)
    with pytest.raises(DataError, match="the data changed under the training"), read.stream() as stream:
        list(stream)


def test_the_copy_used_longest_ago_goes_when_the_cache_is_full(
    some: Path, remote: str, tmp_path: Path
) -> None:
    files = data_files(str(some))
    cache = FileCache(remote, str(tmp_path / "cache"), sum(file.bytes for file in files[:2]) + 100)

    def there() -> list[bool]:
        return [(tmp_path / "cache" / f"{file.sha256[:32]}.parquet").exists() for file in files]

    with cache.open(files[0]) as first:
        cache.open(files[1]).close()
        cache.open(files[0]).close()
        cache.open(files[2]).close()
        assert there() == [True, False, True]
        cache.open(files[1]).close()
        assert there() == [False, True, True]
        assert first.read() == (some / files[0].path).read_bytes(), "who has it open goes on reading"
    damaged = files[0]._replace(sha256="0" * 64)
    with pytest.raises(DataError, match="its bytes are not those of the manifest"):
        cache.open(damaged)
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_full_cache_folder_is_named_with_what_to_do(some: Path, remote: str, tmp_path: Path) -> None:
    cache = FileCache(remote, str(tmp_path / "cache"), 1 << 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DataError, match=r"cache: no room for a copy of s3://.*loader.cache_folder"):
            cache.fetch(data_files(str(some))[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_row_groups_beyond_the_memory_limit_are_let_go(
    some: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    read = Read(recipe_over(tiny_recipe, some, tmp_path))
    reader = pickle.loads(pickle.dumps(read.rows))  # noqa: S301 - what a decode worker gets
    reader._memory_bytes = 1
    for number in range(len(read.rows)):
        assert reader.row(number) == read.rows.row(number)
    assert len(reader._reader._groups) == 1
    assert len(read.rows._reader._groups) == 9


def test_pictures_that_are_kept_do_not_hold_the_memory_that_decode_workers_share() -> None:
    """It is /dev/shm, often 64 MiB, and a part of one block holds the whole."""
    block = torch.ones(4, 4).share_memory_()
    row = Encoded("a", [1], [1], [], [], [], 0, [Visual("image", block[:1])], None)
    store = FeatureStore(1.0)
    store.fill(["key"], [row], None, None, 0, 1)  # an attached foundation's pictures need no model
    (kept,) = store.get("key").visuals
    assert not kept.pixels.is_shared() and kept.pixels.untyped_storage().nbytes() == kept.n_bytes == 16
    assert torch.equal(kept.pixels, block[:1])
