"""LLaVA's conversations and a media folder, with everything that is needed to come back.

    DEST/{train,val,test}.json   a list, one entry a line
    DEST/media/SPLIT/SOURCE/HH/  pictures (NAME-0.jpg), frames of clips (NAME-0/000.jpg …), sound (NAME-1.wav)

An entry is what LLaVA's training reads (`id`, `image`, `conversations`), with `video` (the folder of the frames, in
time order) and `audio` beside it. One path is a text, several are a list; the placeholders `<image>`, `<video>` and
`<audio>` in the question stand for them in order. The last turn (`gpt`) is the answer in the form that the question
asks for. `emobench` holds every other field of the sample, and the sha256 of each media file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from dataset_build import schema
from dataset_build.errors import BuildError
from dataset_build.exports import files
from dataset_build.exports.files import Part, Written
from dataset_build.schema import Sample

OWNED = ("train.json", "val.json", "test.json", "media/", "build/")
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
# Fields that LLaVA has a place for; all others go to `emobench`.
_TOLD = ("uid", "messages", "answer", "media")


def write(out: str, split_files: dict[str, list[str]], written: Written) -> Iterator[int]:
    """Write the sample files of each split as one JSON list; yields how many rows were written each time."""
    for split, paths in split_files.items():
        with written.open(f"{split}.json") as stream:
            before = b"[\n"
            for path in paths:
                for batch in files.tables(out, path):
                    parts: list[Part] = []
                    for sample in batch.to_pylist():
                        text = json.dumps(_entry(sample, parts), ensure_ascii=False)
                        stream.write(before + text.encode())
                        before = b",\n"
                    written.media(parts)
                    yield batch.num_rows
            stream.write(b"\n]\n" if before != b"[\n" else b"[]\n")


def _entry(sample: Sample, parts: list[Part]) -> dict[str, Any]:
    """The entry of a sample; the files of its media are appended to `parts`."""
    media_rows: list[dict[str, Any]] = []
    places: dict[str, list[str]] = {kind: [] for kind in schema.PLACEHOLDERS}
    for number, medium in enumerate(sample["media"]):
        place, own = _parts(sample, number, medium)
        parts += own
        places[medium["kind"]].append(place)
        facts = {name: value for name, value in medium.items() if name != "data"}
        names = [{"path": part.path, "sha256": hashlib.sha256(part.data).hexdigest()} for part in own]
        media_rows.append({**facts, "files": names})
    turns = [{"from": _role(sample, turn["role"]), "value": turn["content"]} for turn in sample["messages"]]
    told = {kind: found[0] if len(found) == 1 else found for kind, found in places.items() if found}
    rest = {name: value for name, value in sample.items() if name not in _TOLD}
    said = schema.answer_text(sample)
    if schema.answer_word(sample, said) != sample["answer"]:
        raise BuildError(f"{sample['uid']}: the answer {said!r} does not say which option it is; build again")
    return {
        "id": sample["uid"],
        **told,
        "conversations": [*turns, {"from": "gpt", "value": said}],
        "emobench": {**rest, "media": media_rows},
    }


def _parts(sample: Sample, number: int, medium: dict[str, Any]) -> tuple[str, list[Part]]:
    """Where a medium is named (the folder of frames for a clip), and its files."""
    name = files.safe_name(sample["uid"])
    folder = f"media/{sample['split']}/{sample['source']}/{name[-2:]}"
    stem = f"{folder}/{name}-{number}"
    if medium["kind"] == "video":
        frames = [
            Part(f"{stem}/{place:03d}.{files.suffix('video', data)}", data)
            for place, data in enumerate(medium["data"])
        ]
        return stem, frames
    if len(medium["data"]) != 1:
        kind, count = medium["kind"], len(medium["data"])
        raise BuildError(f"{sample['uid']}: {kind} {number} has {count} parts, one was expected; build again")
    data = medium["data"][0]
    path = f"{stem}.{files.suffix(medium['kind'], data)}"
    return path, [Part(path, data)]


def _role(sample: Sample, role: str) -> str:
    if role not in ROLES:
        raise BuildError(f"{sample['uid']}: a message of {role!r}; LLaVA knows {', '.join(ROLES)}")
    return ROLES[role]
