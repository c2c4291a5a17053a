"""The plan and the ledger: whatever text an annotation holds, each row is counted and no row ends the build."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build import cards, convert, ledger, media, plan, quality, sources
from dataset_build.errors import StorageError
from dataset_build.recipe import BuildRecipe, MediaSettings, inputs_digest
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base

HALF = "\ud800"  # json.loads gives this for the six characters \\ud800
GOOD = Record(
    "odd/all/good", "odd", "humor", None, (), "Yes", "yes", "MIT", ("Yes", "No"), text="A good row."
)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A registered source whose items a test chooses."""
    adapter = types.ModuleType("odd_source")
    adapter.NAME, adapter.VERSION, adapter.GROUP_KEY = "odd", "1", "text"
    adapter.PICTURES, adapter.SPLIT, adapter.Options = "cards", "shares", base.Options
    adapter.items = [GOOD]
    adapter.read = lambda root, options: iter(adapter.items)
    monkeypatch.setitem(sys.modules, "odd_source", adapter)
    monkeypatch.setitem(sources.REGISTRY, "odd", "odd_source")
    return adapter


def recipe(tmp_path: Path) -> BuildRecipe:
    raw = {"name": "odd", "out": str(tmp_path / "out"), "root": str(tmp_path), "seed": 1}
    return BuildRecipe.model_validate({**raw, "sources": [{"name": "odd", "root": "."}]})


HALVES = {
    "uid": {"uid": f"odd/all/{HALF}"},
    "text": {"text": f"half a face {HALF}"},
    "path": {"media": (MediaRef("image", f"{HALF}.png"),)},
    "label": {"label": HALF},
    "options": {"options": ("Yes", HALF)},
    "context": {"context": (Turn(HALF, "hello"),)},
    "group key": {"group_keys": {HALF: "a"}},
    "group": {"group_keys": {"text": HALF}},
    "split": {"split": HALF},
}


@pytest.mark.parametrize("change", HALVES.values(), ids=HALVES)
def test_half_a_character_costs_its_row_and_no_other(odd, tmp_path, change):
    odd.items = [dataclasses.replace(GOOD, **{"uid": "odd/all/bad", **change}), GOOD]
    made = plan.make(recipe(tmp_path), str(tmp_path / "work"))
    (found,) = made.rejects
    assert (found.reason, found.split) == ("bad_row", None)
    assert "ud800" in found.detail
    json.dumps(dataclasses.asdict(found), ensure_ascii=False).encode()
    assert [shard.rows for shard in made.shards] == [1]
    assert plan.read_records(made.shards[0].path(str(tmp_path / "work"), "plan.json")) == [GOOD]
    assert made.records["odd"] == 2


def test_an_id_without_end_costs_its_row_and_is_cut(odd, tmp_path):
    long = "odd/all/" + "x" * 1_000_000
    fits = dataclasses.replace(GOOD, uid="odd/all/" + "y" * (plan.MAX_UID_CHARS - 8))
    odd.items = [
        GOOD,
        fits,
        dataclasses.replace(GOOD, uid=long + "a"),
        dataclasses.replace(GOOD, uid=long + "b"),
        Reject(long + "c", "odd", None, "humor", "source_rule", "left out"),
        dataclasses.replace(GOOD, uid=long + "a"),
    ]
    made = plan.make(recipe(tmp_path), None)
    assert made.records["odd"] == 6 and sum(shard.rows for shard in made.shards) == 2
    reasons = ["bad_row", "bad_row", "source_rule", "duplicate_id"]
    assert [reject.reason for reject in made.rejects] == reasons  # two long ids are two, one twice is one
    assert all(reject.uid.startswith("odd/all/xxx") for reject in made.rejects)
    assert all(
        len(reject.uid) <= plan.MAX_UID_CHARS + 10 and len(reject.detail) < 1000 for reject in made.rejects
    )


def test_an_adapters_own_reject_may_hold_half_a_character_too(odd, tmp_path):
    odd.items = [Reject(f"odd/all/{HALF}", "odd", None, "humor", "unknown_label", f"label {HALF}"), GOOD]
    (found,) = plan.make(recipe(tmp_path), None).rejects
    assert (found.uid, found.reason) == ("odd/all/\\ud800", "bad_row")
    assert "unknown_label" in found.detail


any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


@given(st.lists(st.tuples(any_text, any_text), max_size=6))
@settings(deadline=None, max_examples=60)
def test_every_item_is_a_record_or_a_reject_whatever_its_text(rows):
    items = [dataclasses.replace(GOOD, uid=uid, text=text) for uid, text in rows]
    made = plan.Plan([], plan.RejectLog(), plan.Counter())
    kept = list(plan._unique(map(plan._storable, items), made))
    assert len(kept) + len(made.rejects) == len(items)
    json.dumps([dataclasses.asdict(item) for item in (*kept, *made.rejects)], ensure_ascii=False).encode()
    whole = [
        item
        for item in items
        if (item.uid + item.text).encode("utf-8", "ignore").decode() == item.uid + item.text
    ]
    assert {item.uid for item in whole} <= {item.uid for item in (*kept, *made.rejects)}


def test_thousands_of_rejects_come_out_as_they_went_in_and_stay_small(odd, tmp_path):
    rule = [
        Reject(
            f"odd/all/{n}",
            "odd",
            (None, "test")[n % 2],
            "humor",
            "source_rule",
            f"row {n} is left out by rule",
        )
        for n in range(5000)
    ]
    odd.items = [*rule, GOOD]
    made = plan.make(recipe(tmp_path), None)
    assert (list(made.rejects), len(made.rejects)) == (rule, 5000)
    table = made.rejects.table()
    assert table.to_pylist() == [dataclasses.asdict(reject) for reject in rule]
    assert table.nbytes / 5000 < 120
    assert list(made.rejects) == rule  # making the table took nothing away


@given(any_text.map(lambda text: f"a{text}\x00") | st.just(f"{HALF}.png") | any_text)
@settings(deadline=None, max_examples=60)
def test_no_path_raises_anything_but_a_media_error(path):
    root = str(Path(__file__).parent)
    assert isinstance(media.fingerprint(root, path), (str, list))
    try:
        media.read_picture(root, path, MediaSettings())
    except media.MediaError as error:
        assert error.reason in ("bad_row", "path_outside_root", "missing_media", "not_media")


@pytest.mark.parametrize(
    ("path", "reason"),
    [(f"{HALF}.png", "bad_row"), ("a\x00.png", "path_outside_root"), ("a" * 5000, "missing_media")],
)
def test_paths_that_name_no_file_are_rejects(odd, tmp_path, path, reason):
    record = dataclasses.replace(GOOD, media=(MediaRef("image", path),))
    found = convert.convert(record, str(tmp_path), odd, MediaSettings())
    assert isinstance(found, Reject)
    assert found.reason == reason


def test_what_the_machine_lacks_is_no_fault_of_the_row(odd, tmp_path):
    """A reject would be kept with its shard, and the row be gone from every later build."""
    (tmp_path / "a.png").write_bytes(cards.render("a picture"))
    record = dataclasses.replace(GOOD, media=(MediaRef("image", "a.png"),))
    assert not isinstance(convert.convert(record, str(tmp_path), odd, MediaSettings()), Reject)
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(StorageError, match="odd/all/good: .*Too many open files.*goes on"):
            convert.convert(record, str(tmp_path), odd, MediaSettings())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_reject_can_be_stored_whatever_name_a_file_has(odd, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(os.fsencode(tmp_path) + b"/\xff.png", root / "link.png")
    record = dataclasses.replace(GOOD, media=(MediaRef("image", "link.png"),))
    found = convert.convert(record, str(root), odd, MediaSettings())
    assert isinstance(found, Reject)
    assert found.reason == "path_outside_root"
    assert found.detail.encode()


@pytest.mark.parametrize("sub_task", ["humor", "no such task"])
def test_a_row_of_an_unknown_split_is_rejected_and_the_ledger_balances(sub_task):
    found = quality.check(dataclasses.replace(GOOD, split="dev", sub_task=sub_task))
    assert found is not None
    assert (found.reason, found.split) == ("bad_row", None)
    counted = [("odd", ledger.split_of_reject(found.split))]
    assert ledger.make({"odd": 1}, [], counted, [])["odd"]["train"]["rejected"] == 1


@pytest.mark.parametrize(("split", "side"), [(None, "train"), ("dev", "train"), ("test", "test")])
def test_rejects_of_adapters_are_counted_whatever_split_they_name(split, side):
    assert ledger.split_of_reject(split) == side


@pytest.mark.parametrize("name", ["GROUP_KEY", "VERSION"])
def test_a_converted_shard_is_not_taken_for_that_of_another_adapter(odd, tmp_path, monkeypatch, name):
    keys = {plan.make(recipe(tmp_path), None).shards[0].key for _ in range(2)}
    monkeypatch.setattr(odd, name, "other")
    keys.add(plan.make(recipe(tmp_path), None).shards[0].key)
    assert len(keys) == 2


def test_another_ffmpeg_converts_again(odd, tmp_path, monkeypatch):
    before = plan.make(recipe(tmp_path), None).shards[0].key
    monkeypatch.setattr(plan.decoder, "ffmpeg_version", lambda: "ffmpeg version of tomorrow")
    assert plan.make(recipe(tmp_path), None).shards[0].key != before


def test_a_source_may_hold_files_whose_names_are_not_utf_8(odd, tmp_path):
    before = inputs_digest(recipe(tmp_path))
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as stream:
        stream.write(b"x")
    assert inputs_digest(recipe(tmp_path)) != before


_MEDIA = st.lists(st.sampled_from(["image", "video", "audio"]), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(_MEDIA, max_size=40), st.integers(1, 20), st.integers(1, 9))
def test_shards_hold_every_record_in_order_and_clips_count_as_their_frames(
    kinds: list[list[str]], shard_rows: int, frames: int
) -> None:
    records = [
        dataclasses.replace(GOOD, uid=str(number), media=tuple(MediaRef(kind, "x") for kind in one))
        for number, one in enumerate(kinds)
    ]
    made = BuildRecipe.model_validate(
        {"name": "odd", "out": "out", "sources": [{"name": "emoset", "root": "."}], "shard_rows": shard_rows, "media": {"video_frames": frames}}
    )  # fmt: skip
    shards = list(plan._batches(iter(records), made))

    def weight(record: Record) -> int:
        return sum(frames if ref.kind == "video" else 1 for ref in record.media) or 1

    assert [record for shard in shards for record in shard] == records
    assert all(len(shard) == 1 or sum(map(weight, shard)) <= shard_rows for shard in shards)
    # None could have taken the first record of the next.
    assert all(
        sum(map(weight, one)) + weight(after[0]) > shard_rows for one, after in zip(shards, shards[1:])
    )
