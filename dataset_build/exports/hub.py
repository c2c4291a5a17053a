"""A folder that Hugging Face `datasets` loads: `load_dataset(DEST)`, or `load_dataset(DEST, "SOURCE")` for one source.

    DEST/data/SPLIT/SOURCE-NNNNN.parquet   the features are in the files, so pictures come as pictures
    DEST/README.md                         front matter with one configuration per source, then the card of the build

The placeholders `<image>`, `<video>` and `<audio>` in the question stand, in order, for `images`, `videos` (the
frames of a clip, in time order) and `audios`. Sound is not decoded on the way (`Audio(decode=False)`: bytes of a WAV
file), because that takes a further package; `dataset.cast_column("audios", List(Audio()))` turns it on. `media` holds
what is known of each medium beside its bytes. The splits keep their names: train, val, test.
`load_from_disk` is for folders that `save_to_disk` wrote; this is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dataset_build import schema
from dataset_build.exports import files
from dataset_build.exports.files import Written

if TYPE_CHECKING:
    import pyarrow

OWNED = ("README.md", "data/", "stats/")
# How `datasets` reads a column of media.
_MEDIA = {
    "images": [{"_type": "Image"}],
    "videos": [[{"_type": "Image"}]],
    "audios": [{"sampling_rate": None, "decode": False, "_type": "Audio"}],
}
_KINDS = {"image": "images", "video": "videos", "audio": "audios"}
_ROW_GROUP_ROWS = 128


def write(out: str, split_files: dict[str, list[str]], written: Written) -> Iterator[int]:
    """Write one Parquet file per sample file; yields how many rows were written each time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = arrow_schema()
    for paths in split_files.values():
        for path in paths:
            with written.open(f"data/{path}") as stream:
                options: dict[str, Any] = {
                    "compression": "zstd",
                    "use_dictionary": False,
                    "version": "2.6",
                    "store_schema": True,
                }
                waiting: list[dict[str, Any]] = []
                with pq.ParquetWriter(stream, target, **options) as writer:
                    for batch in files.tables(out, path):
                        waiting += map(_row, batch.to_pylist())
                        if len(waiting) >= _ROW_GROUP_ROWS:
                            writer.write_table(pa.Table.from_pylist(waiting, schema=target))
                            waiting = []
                        yield batch.num_rows
                    if waiting:
                        writer.write_table(pa.Table.from_pylist(waiting, schema=target))


def arrow_schema() -> pyarrow.Schema:
    """The columns, with the description that `datasets` reads its features from."""
    import pyarrow as pa

    blob = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields, features = [], {}
    for field in schema.sample_schema():
        kind = field.type
        if field.name == "media":
            medium = [part for part in kind.value_type if part.name != "data"]
            for name, place in _MEDIA.items():
                fields.append(pa.field(name, pa.list_(pa.list_(blob) if name == "videos" else blob)))
                features[name] = place
            kind = pa.list_(pa.struct(medium))
        elif pa.types.is_map(kind):  # `datasets` has no maps
            kind = pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        fields.append(pa.field(field.name, kind))
        features[field.name] = _feature(kind)
    description = {"info": {"features": features}}
    return pa.schema(fields, metadata={"huggingface": json.dumps(description)})


def _feature(kind: pyarrow.DataType) -> Any:
    """How `datasets` writes a type; lists in the form that all its versions read."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {part.name: _feature(part.type) for part in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {**sample, "images": [], "videos": [], "audios": []}
    name = files.safe_name(sample["uid"])
    for number, medium in enumerate(sample["media"]):
        kind = medium["kind"]
        parts = [
            {"bytes": data, "path": f"{name}-{number}-{place:03d}.{files.suffix(kind, data)}"}
            for place, data in enumerate(medium["data"])
        ]
        row[_KINDS[kind]] += [parts] if kind == "video" else parts
    row["media"] = [
        {key: value for key, value in medium.items() if key != "data"} for medium in sample["media"]
    ]
    row["group_keys"] = [{"key": key, "value": value} for key, value in sample["group_keys"]]
    return row


def front_matter(name: str, split_files: dict[str, list[str]]) -> str:
    """The YAML head of README.md: one configuration with everything, and one per source."""
    import yaml

    sources = sorted(
        {path.split("/")[1].rsplit("-", 1)[0] for paths in split_files.values() for path in paths}
    )
    configs = [
        _config("default", split_files, "*"),
        *(_config(source, split_files, source) for source in sources),
    ]
    head = {"pretty_name": name, "license": "other", "configs": configs}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _config(name: str, split_files: dict[str, list[str]], source: str) -> dict[str, Any]:
    found = [
        {"split": split, "path": f"data/{split}/{source}-*.parquet"}
        for split, paths in split_files.items()
        if any(source in ("*", path.split("/")[1].rsplit("-", 1)[0]) for path in paths)
    ]
    return {"config_name": name, "data_files": found}
