"""WebDataset: one tar file per sample file, the parts of a sample side by side under one key.

    DEST/SPLIT/SOURCE-NNNNN.tar    e.g. webdataset.WebDataset("DEST/train/meld-{00000..00012}.tar")
      KEY.json                     every field of the sample but the bytes; `media[].members` names the parts
      KEY.0.png                    medium 0, a picture (the key of webdataset's dict is "0.png")
      KEY.1.000.jpg KEY.1.001.jpg  medium 1, the frames of a clip
      KEY.2.wav                    medium 2, sound

KEY comes from the uid (`files.safe_name`) and holds no dot, because webdataset cuts names at the first one. The tar
headers hold no time, user or mode of anybody: the same samples give the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

from dataset_build.exports import files
from dataset_build.exports.files import Written
from dataset_build.schema import Sample

OWNED = ("train/", "val/", "test/")


def write(out: str, split_files: dict[str, list[str]], written: Written) -> Iterator[int]:
    """Write one tar file per sample file; yields how many rows were written each time."""
    for path in (path for paths in split_files.values() for path in paths):
        with (
            written.open(path.removesuffix(".parquet") + ".tar") as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for batch in files.tables(out, path):
                for sample in batch.to_pylist():
                    _add(archive, sample)
                yield batch.num_rows


def _add(archive: tarfile.TarFile, sample: Sample) -> None:
    key = files.safe_name(sample["uid"])
    members: list[tuple[str, bytes]] = []
    media_rows: list[dict[str, Any]] = []
    for number, medium in enumerate(sample["media"]):
        kind, clip = medium["kind"], medium["kind"] == "video" or len(medium["data"]) > 1
        own = [
            (f"{number}{f'.{place:03d}' if clip else ''}.{files.suffix(kind, data)}", data)
            for place, data in enumerate(medium["data"])
        ]
        members += own
        facts = {name: value for name, value in medium.items() if name != "data"}
        media_rows.append({**facts, "members": [name for name, _ in own]})
    content = {**sample, "group_keys": dict(sample["group_keys"]), "media": media_rows}
    text = json.dumps(content, ensure_ascii=False).encode()
    for name, data in (("json", text), *members):
        header = tarfile.TarInfo(f"{key}.{name}")  # time, user and group are 0, the mode is 644
        header.size = len(data)
        archive.addfile(header, io.BytesIO(data))
