"""One light row for each training sample: what a plan needs to know, without texts and media.

Made once for each (data, processor, prompt), by one pass over all Parquet files, one row group in memory at a time:
a Ray Data job where there is much to read, in this process else, by the same function. It lies in `OUT/index/` as
Parquet, and all ranks read it. Rows are sorted by uid, so row numbers do not depend on who made it.

Encoding the texts of all rows beforehand also finds what cannot be trained on: every such row is named, at once, before
anything starts.
"""

from __future__ import annotations

import functools
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_build import ray_local, storage
from dataset_build.progress import Progress
from dataset_build.provenance import code_digest, sha256_of_json
from emollm.data import folds
from emollm.data.emobench import (
    DataError,
    DataFile,
    check_bytes,
    data_files,
    open_file,
    parquet_file,
    read_columns,
    read_group,
    read_manifest,
)
from emollm.data.plan import Place

if TYPE_CHECKING:
    import pyarrow

    from emollm.data.encoder import Encoder

FOLDER = "index"
ERRORS_FILE = "errors.txt"
# Up to this size a data set is indexed faster than the processes of a Ray job start.
_SMALL_BYTES = 64 << 20
_SHOWN_ERRORS = 20
_LIGHT = ["uid", "source", "sub_task", "split", "fold", "answer"]
# Code that cannot change what is in an index.
_ELSEWHERE = ("emollm/train", "emollm/evaluate", "emollm/recipes", "emollm/__main__", "emollm/predict")


def index_schema() -> pyarrow.Schema:
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("uid", pa.string()),
            ("source", word),
            ("sub_task", word),
            ("split", word),
            ("fold", pa.int32()),
            ("answer", word),
            ("file", word),
            ("group", pa.int32()),  # row group in the file
            ("place", pa.int32()),  # row in the row group
            ("n_tokens", pa.int32()),
            ("n_pictures", pa.int32()),  # still pictures and frames
            ("n_sounds", pa.int32()),  # those that the model hears
            ("media_key", pa.string()),  # equal for rows with the same media, empty without
            ("rationale", word),  # see `collate.Encoded`
            ("error", pa.string()),  # why the row cannot be encoded
        ]
    )


class RowIndex:
    """The training rows of an EmoBench, or of one of its protocols, sorted by uid. Rows are spoken of by number."""

    def __init__(self, table: pyarrow.Table, n_folds: Mapping[str, int]) -> None:
        """`n_folds`: of the sources that a protocol validates on a fold of (`folds.validating_folds`)."""
        self.table, self.n_folds = table, n_folds

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def keys(self) -> list[str]:
        """`source/sub_task` of every row: what `mix` speaks of."""
        once: dict[tuple[str, str], str] = {}  # one text for all rows of a key
        pairs = zip(self.column("source"), self.column("sub_task"))
        return [once.setdefault(pair, "/".join(pair)) for pair in pairs]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return self.column("n_tokens")

    @functools.cached_property
    def places(self) -> list[Place]:
        """File (its number among the paths in order) and row group of every row."""
        paths = self.column("file")
        files = {path: number for number, path in enumerate(sorted(set(paths)))}
        once: dict[Place, Place] = {}
        found = ((files[path], group) for path, group in zip(paths, self.column("group")))
        return [once.setdefault(place, place) for place in found]

    @functools.cached_property
    def media_keys(self) -> list[str]:
        return self.column("media_key")

    @functools.cached_property
    def pictures(self) -> list[int]:
        """Still pictures and frames of every row."""
        return self.column("n_pictures")

    @functools.cached_property
    def shortest(self) -> int:
        """The row that stands in where a rank has none: of those that can be encoded, which alone have a length."""
        return min((row for row, n in enumerate(self.lengths) if n), key=lambda row: (self.lengths[row], row))

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def folds(self) -> list[int]:
        """The protocols there are: 0..K-1 where sources are cross-validated, else just 0."""
        return sorted({fold for fold in self.column("fold") if fold is not None}) or [0]

    def of_fold(self, fold: int, part: str = "train") -> RowIndex:
        """The training rows of protocol `fold`, or its validation rows ("val"). Raises DataError where there are none."""
        keep = [
            folds.part(fold, split, row_fold, self.n_folds.get(source)) == part
            for source, row_fold, split in zip(*(self.column(name) for name in ("source", "fold", "split")))
        ]
        chosen = self.table.filter(keep)
        if chosen.num_rows == 0:
            kind = {"train": "training", "val": "validation"}[part]
            raise DataError(f"protocol {fold} has no {kind} rows in this EmoBench")
        return RowIndex(chosen, self.n_folds)

    def refuse_errors(self, left_out: Collection[str] = ()) -> None:
        """Raises DataError naming the rows that cannot be encoded, but for those of keys that are `left_out`."""
        errors = [
            error for key, error in zip(self.keys, self.column("error")) if error and key not in left_out
        ]
        if errors:
            more = f"\n… and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
            raise DataError(
                f"{len(errors)} of {len(self)} training rows cannot be trained on (all are listed in "
                f"{FOLDER}/{ERRORS_FILE} of the output); build EmoBench again without them, or leave their "
                f"source/sub_task out with mix:\n" + "\n".join(errors[:_SHOWN_ERRORS]) + more
            )


def outline(data: str) -> RowIndex:
    """The index without what only encoding tells (tokens, media, errors): a quick look for plans and refusals."""
    return joined(
        data,
        {file.path: _trained(read_columns(data, file, _LIGHT), file.path) for file in data_files(data)},
    )


def stored_index(data: str, out: str, encoder: Encoder, data_digest: str) -> RowIndex | None:
    """The index in `OUT/index` if it is of these data and this encoder, else None."""
    import pyarrow.parquet as pq

    path = _path(out, encoder, data_digest)
    if not Path(path).exists():
        return None
    return RowIndex(pq.read_table(path), folds.validating_folds(read_manifest(data)))


def make_index(data: str, out: str, encoder: Encoder, data_digest: str, on_ray: bool = False) -> RowIndex:
    """`stored_index`, made and stored where it is not there; by a Ray Data job if `on_ray` and there is much to read."""
    if (found := stored_index(data, out, encoder, data_digest)) is not None:
        return found
    files = data_files(data)
    much = sum(file.bytes for file in files) > _SMALL_BYTES
    parts = index_on_ray(data, files, encoder) if on_ray and much else index_here(data, files, encoder)
    tables: dict[str, pyarrow.Table] = {}
    with Progress("indexing", sum(file.rows for file in files), "rows") as progress:
        for file, table in parts:
            tables[file.path] = table
            progress.advance(file.rows)
    if lost := sorted({file.path for file in files} - set(tables)):
        raise DataError(f"{data}: no index came of {', '.join(lost)}; start the same command again")
    index = joined(data, tables)
    _store(index, _path(out, encoder, data_digest))
    return index


def index_here(
    data: str, files: Sequence[DataFile], encoder: Encoder
) -> Iterator[tuple[DataFile, pyarrow.Table]]:
    """The index of each file, as it is done."""
    for file in files:
        yield file, index_file(data, file, encoder)


def index_on_ray(
    data: str, files: Sequence[DataFile], encoder: Encoder
) -> Iterator[tuple[DataFile, pyarrow.Table]]:
    """The same by a Ray Data job, a file a block, in whatever order they are done."""
    import pyarrow as pa

    with ray_local.session():
        import ray

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and progress lines; ours are enough
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False
        by_path = {file.path: file for file in files}
        workers = max(1, min(len(files), int(ray.cluster_resources().get("CPU", 1))))
        largest_first = sorted(files, key=lambda file: -file.bytes)
        made = ray.data.from_items(
            [{"path": file.path} for file in largest_first], override_num_blocks=len(files)
        ).map_batches(
            _FileIndexer,
            fn_constructor_args=(data, by_path, encoder),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        for row in made.iter_rows():
            with pa.ipc.open_stream(row["index"]) as reader:
                yield by_path[row["path"]], reader.read_all()


class _FileIndexer:
    """`index_file` in an actor of a Ray Data job."""

    def __init__(self, data: str, files: dict[str, DataFile], encoder: Encoder) -> None:
        import torch

        torch.set_num_threads(1)
        self.data, self.files, self.encoder = data, files, encoder

    def __call__(self, batch: dict[str, Any]) -> pyarrow.Table:
        import pyarrow as pa

        paths = [str(path) for path in batch["path"]]
        made = []
        for path in paths:
            table = index_file(self.data, self.files[path], self.encoder)
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            made.append(sink.getvalue())
        return pa.table({"path": paths, "index": pa.array(made, pa.binary())})


def index_file(data: str, file: DataFile, encoder: Encoder) -> pyarrow.Table:
    """The index of one file; one row group is in memory at a time."""
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    check_bytes(data, file)
    with open_file(data, file) as stream:
        parquet = parquet_file(stream, file)
        for group in range(parquet.num_row_groups):
            rows = read_group(parquet, file, group).to_pylist()
            found += [
                {name: row[name] for name in _LIGHT}
                | {"file": file.path, "group": group, "place": place}
                | encoder.measure(row)._asdict()
                for place, row in enumerate(rows)
                if _may_be_trained(row["split"], row["fold"])
            ]
    return pa.Table.from_pylist(found, schema=index_schema())


def _may_be_trained(split: str, fold: int | None) -> bool:
    """Whether any protocol trains or validates on the row."""
    return split in ("train", "val") or fold is not None


def _trained(table: pyarrow.Table, path: str) -> pyarrow.Table:
    """Light columns of a file as rows of an index; what is not known stays empty."""
    import pyarrow as pa

    splits, row_folds = table.column("split").to_pylist(), table.column("fold").to_pylist()
    kept = table.filter([_may_be_trained(split, fold) for split, fold in zip(splits, row_folds)])
    columns = {name: kept.column(name) for name in kept.column_names}
    empty = pa.nulls(kept.num_rows)
    columns["file"] = pa.array([path] * kept.num_rows, pa.string())
    schema = index_schema()
    return pa.table([columns.get(name, empty).cast(schema.field(name).type) for name in schema.names], schema)


def joined(data: str, tables: Mapping[str, pyarrow.Table]) -> RowIndex:
    """The index of all files from that of each, in whatever order they came. Raises DataError where a uid is twice."""
    import pyarrow as pa

    whole = (
        pa.concat_tables([tables[path] for path in sorted(tables)])
        .unify_dictionaries()
        .sort_by("uid")
        .combine_chunks()
    )
    uids = whole.column("uid").to_pylist()
    uid, count = next(iter(Counter(uids).most_common(1)), ("", 0))
    if count > 1:
        raise DataError(f"{data}: uid {uid!r} is in the data {count} times; build it again")
    if not uids:
        raise DataError(f"{data}: holds no row that could be trained on; build EmoBench with training rows")
    return RowIndex(whole, folds.validating_folds(read_manifest(data)))


def _path(out: str, encoder: Encoder, data_digest: str) -> str:
    key = sha256_of_json(
        {
            "data": data_digest,
            "encoder": encoder.digest(),
            "code": code_digest(["emollm"], leave_out=_ELSEWHERE),
        }
    )
    return str(Path(out) / FOLDER / f"{key[:16]}.parquet")


def _store(index: RowIndex, path: str) -> None:
    """Write the index, whole or not at all, in place of earlier ones, with the list of errors beside it."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(index.table, sink, compression="zstd")
    errors = [error for error in index.column("error") if error]
    folder = Path(path).parent
    for stale in folder.glob("*"):
        stale.unlink()
    if errors:
        storage.write_bytes(str(folder / ERRORS_FILE), "".join(f"{error}\n" for error in errors).encode())
    storage.write_bytes(path, sink.getvalue())
