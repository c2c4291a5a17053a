"""What holds for every adapter, on a fixture in its exact layout with its dirt planted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dataset_build import labels, quality, sources
from dataset_build.errors import BuildError
from dataset_build.schema import CLOSED_SUB_TASKS, SPLITS, Record, Reject
from dataset_build.sources import base
from tests.fixtures import sources as fixtures
from tests.fixtures.sources.base import Planted

Items = list[Record | Reject]
FACTS = ("VERSION", "TITLE", "LICENCE", "CITATION", "LIMITS", "SIZE", "DOWNLOAD", "GROUP_KEY", "SUB_TASKS")


@pytest.fixture(scope="module", params=fixtures.NAMES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Planted]:
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, fixtures.build(request.param, root)


def items(source: tuple[str, Path, Planted]) -> Items:
    name, root, planted = source
    adapter = sources.adapter(name)
    return list(adapter.read(str(root), adapter.Options.model_validate(dict(planted.options))))


def test_every_fixture_has_an_adapter_that_states_its_facts(source):
    adapter = sources.adapter(source[0])
    assert source[0] == adapter.NAME
    assert all(getattr(adapter, fact) for fact in FACTS)
    assert set(adapter.EXPECTED) <= {*SPLITS, "all"}


def test_every_planted_row_comes_out_once_with_its_split_and_label(source):
    found, planted = items(source), source[2]
    assert len(found) == planted.records
    assert Counter(item.split or "" for item in found) == planted.splits
    assert Counter(item.label for item in found if isinstance(item, Record)) == planted.labels


def test_planted_dirt_leaves_with_the_right_reason(source):
    found = [item for item in items(source) if isinstance(item, Reject)]
    assert Counter(reject.reason for reject in found) == source[2].adapter_rejects
    assert all(reject.detail.strip() for reject in found)


def test_uids_name_source_and_split_and_repeat_only_where_a_duplicate_was_planted(source):
    name, _, planted = source
    found = items(source)
    for item in found:
        assert item.source == name
        assert item.uid.startswith(f"{name}/{item.split or 'all'}/") and len(item.uid.split("/")) >= 3
    repeated = sum(count - 1 for count in Counter(item.uid for item in found).values())
    assert repeated == planted.media_rejects["duplicate_id"]


def test_records_pass_quality_and_emotions_are_canonical(source):
    adapter = sources.adapter(source[0])
    for record in (item for item in items(source) if isinstance(item, Record)):
        wrong = quality.check(record)
        assert wrong is None or wrong.reason in source[2].media_rejects, wrong
        assert record.sub_task in adapter.SUB_TASKS
        assert record.group_keys.get(adapter.GROUP_KEY), f"{record.uid} has no {adapter.GROUP_KEY}"
        assert record.licence_tag and record.native_label
        if record.sub_task in ("emo_c", "emo_o"):
            assert {record.label, *record.other_labels} <= labels.EMOTIONS
        assert bool(record.options) == (record.sub_task in CLOSED_SUB_TASKS)
        if base.split_mode(adapter, adapter.Options.model_validate(dict(source[2].options))) == "official":
            assert record.split in SPLITS


def test_reading_twice_gives_the_same_items_in_the_same_order(source):
    assert items(source) == items(source)


def test_a_folder_that_is_not_the_source_is_an_error_that_names_it(source, tmp_path):
    adapter = sources.adapter(source[0])
    with pytest.raises(BuildError, match=str(tmp_path)):
        list(adapter.read(str(tmp_path), adapter.Options.model_validate(dict(source[2].options))))
