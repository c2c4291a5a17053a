"""Whatever an annotation file holds, an adapter yields Record or Reject or raises BuildError, and soon.

The mutations come from a seed (`tests.fixtures.mutations`): a failure names the source and the number that repeats it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_build import media, plan, quality, sources
from dataset_build.errors import BuildError
from dataset_build.schema import Crop, MediaRef, Record, Reject, Turn
from dataset_build.sources import readers
from tests.fixtures import sources as fixtures
from tests.fixtures.mutations import Bench, bench, memory_folder

MUTATIONS, MANY_MUTATIONS = 120, 10_000
# A fixture is read in milliseconds; a machine that does other things takes a while longer.
LIMIT_S = 10.0


@pytest.fixture(scope="module", params=fixtures.NAMES)
def source(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with memory_folder() as folder, pytest.MonkeyPatch.context() as patch:
        made = bench(request.param, folder)
        made.look(lambda: list(read(made)), patch)
        assert made.files or made.lists
        yield made


def read(source: Bench) -> Iterator[Record | Reject]:
    adapter = sources.adapter(source.name)
    yield from adapter.read(str(source.root), adapter.Options.model_validate(source.options))


def test_damaged_annotations_end_as_rejects_or_a_clear_error(source: Bench) -> None:
    assert not (found := defects(source, MUTATIONS)), "\n\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_annotations_end_as_rejects_or_a_clear_error(source: Bench) -> None:
    assert not (found := defects(source, MANY_MUTATIONS)), "\n\n".join(found)


def test_the_fuzzer_sees_what_it_looks_for(source: Bench) -> None:
    """Its mutations do reach the rows: many change what comes out, and many leave a source that can be read."""
    whole, changed, readable = list(read(source)), 0, 0
    for number in range(40):
        with source.mutation(number):
            try:
                found = list(read(source))
            except BuildError:
                changed += 1
            else:
                readable += 1
                changed += found != whole
    assert list(read(source)) == whole, "a mutation was not undone"
    assert changed >= 5 and readable >= 5


def test_a_careless_adapter_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes every row for a list of three texts."""

    def careless(root: str, options: Any) -> Iterator[Record]:
        for row in readers.json_value(root, "train.json", list):
            yield Record(f"emoset/train/{row[1]}", "emoset", "emo_c", "train", (), row[0], row[0], "x")

    with memory_folder() as folder:
        made = bench("emoset", folder)
        made.look(lambda: list(read(made)), monkeypatch)
        monkeypatch.setattr(sources.adapter("emoset"), "read", careless)
        found = "\n".join(defects(made, 1500))
    assert "TypeError" in found and "IndexError" in found and "label is no text" in found


def defects(source: Bench, count: int) -> list[str]:
    """The first mutation that shows each defect: what it did and what came out."""
    found: dict[str, str] = {}
    sound = {item.uid: item for item in read(source) if not wrong(source, item)}
    for number in range(count):
        with source.mutation(number) as what:
            started = time.monotonic()
            try:
                fresh = (item for item in read(source) if sound.get(getattr(item, "uid", "")) != item)
                problem = next(filter(None, (wrong(source, item) for item in fresh)), "")
                place = problem.split(":")[0]
            except BuildError as error:
                problem = "" if str(error).strip() else "a BuildError without a word"
                place = problem
            except Exception as error:
                frames = [
                    f for f in traceback.extract_tb(error.__traceback__) if "dataset_build" in f.filename
                ]
                place = f"{type(error).__name__} in {Path(frames[-1].filename).name}:{frames[-1].lineno}"
                problem = f"{place}: {error!r:.300}"
            if (spent := time.monotonic() - started) > LIMIT_S:
                problem = place = f"took {spent:.0f} s"
        if problem and place not in found:
            found[place] = f"{source.name} mutation {number} ({what}): {problem}"
    return list(found.values())


def wrong(source: Bench, item: Any) -> str:
    """What a build could not do with an item; empty where it is sound."""
    if not isinstance(item, (Record, Reject)):
        return f"neither Record nor Reject: {item!r:.200}"
    if not str(item.uid).startswith(f"{source.name}/") or item.source != source.name:
        return f"uid or source of another: {item.uid!r:.200}"
    types = _record_types(item) if isinstance(item, Record) else _texts(item, "split")
    if types:
        return f"{types}: {item!r:.400}"
    if isinstance(item, Reject) and not item.detail.strip():
        return f"no detail: {item!r:.200}"
    stored = plan._storable(item)
    json.dumps(dataclasses.asdict(stored), ensure_ascii=False).encode()
    if isinstance(stored, Record):
        quality.check(stored)
        for ref in stored.media:
            media.fingerprint(str(source.root), ref.path)
    return ""


def _texts(value: Any, *may_lack: str) -> str:
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if not (type(content) is str or content is None and field.name in may_lack):
            return f"{field.name} is no text"
    return ""


def _record_types(record: Record) -> str:
    """What of a record is not of the type that the schema says."""
    texts = (
        "uid",
        "source",
        "sub_task",
        "label",
        "native_label",
        "licence_tag",
        "text",
        "speaker",
        "ocr_text",
    )
    for name in (*texts, "label_rule"):
        if type(getattr(record, name)) is not str:
            return f"{name} is no text"
    if record.split is not None and type(record.split) is not str:
        return "split is no text"
    for name in ("options", "other_labels", "media", "context"):
        if type(getattr(record, name)) is not tuple:
            return f"{name} is no tuple"
    if not all(type(word) is str for word in (*record.options, *record.other_labels)):
        return "an option or label is no text"
    if not all(isinstance(turn, Turn) and not _texts(turn) for turn in record.context):
        return "a turn is no turn"
    if not all(type(word) is str for pair in record.group_keys.items() for word in pair):
        return "a group key is no text"
    if record.fold is not None and type(record.fold) is not int:
        return "fold is no number"
    return next(filter(None, map(_ref_types, record.media)), "")


def _ref_types(ref: MediaRef) -> str:
    if not isinstance(ref, MediaRef) or type(ref.kind) is not str or type(ref.path) is not str:
        return "a medium is no medium"
    numbers = [ref.start_s, ref.end_s]
    if ref.crop is not None:
        if not isinstance(ref.crop, Crop):
            return "a crop is no crop"
        numbers += [ref.crop.left, ref.crop.top, ref.crop.right, ref.crop.bottom]
        if None in numbers[2:]:
            return "a crop lacks a side"
    for number in numbers:
        if number is not None and (type(number) not in (int, float) or not math.isfinite(number)):
            return f"{number!r:.40} is no finite number"
    return ""
