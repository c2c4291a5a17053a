"""One build over the fixtures of every source: each planted row is accounted for, on a real Ray."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from dataset_build import ledger, manifest, pipeline, sources
from dataset_build.recipe import load_recipe
from tests.fixtures import sources as fixtures
from tests.fixtures.sources.base import Planted

# Pairs that the leakage register refuses; here they are built side by side to check the conversion, not for scores.
FORBIDDEN = [["caer", "caer_s"], ["mustard", "mustard_pp"], ["mmsd", "mmsd2"], ["mer2023", "mer2024"]]


class Built:
    """The build, what was planted in each source, and the tables beside the samples."""

    def __init__(self, out: Path, planted: dict[str, Planted], done: dict) -> None:
        self.out, self.planted, self.done = out, planted, done
        self.rejects = pq.read_table(out / "rejects.parquet").to_pylist()
        self.duplicates = pq.read_table(out / "duplicates.parquet").to_pylist()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, ray_session) -> Built:
    folder = tmp_path_factory.mktemp("every-source")
    planted = {name: fixtures.build(name, folder / "roots" / name) for name in fixtures.NAMES}
    recipe = {
        "name": "every-source",
        "out": str(folder / "emobench"),
        "root": str(folder / "roots"),
        "seed": 5,
        "sources": [
            {"name": name, "root": name, "options": dict(planted[name].options)} for name in fixtures.NAMES
        ],
        "media": {"max_side_px": 96, "video_frames": 2, "frame_side_px": 48, "timeout_s": 60},
        "splits": {"folds": 3},
        "leakage": {"allow_pairs": FORBIDDEN},
        "reject_budget": 1.0,
        "shard_rows": 16,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = pipeline.build(load_recipe(str(folder / "recipe.yaml")))
    return Built(folder / "emobench", planted, done)


def test_every_licensed_source_has_a_fixture():
    ours = {"emoji_pictures", "emoji_clips", "gestures", "jokes", "sarcastic_jokes"}  # tests of their own
    assert set(fixtures.NAMES) == set(sources.REGISTRY) - ours
    assert len(fixtures.NAMES) == 34


def test_every_planted_row_is_accounted_for(built: Built):
    assert ledger.unbalanced(built.done["sources"]) == []
    found = {
        name: sum(row["records"] for row in splits.values()) for name, splits in built.done["sources"].items()
    }
    assert found == {name: planted.records for name, planted in built.planted.items()}


def test_the_planted_dirt_ends_as_the_right_reject_reasons(built: Built):
    for name, planted in built.planted.items():
        found = Counter(reject["reason"] for reject in built.rejects if reject["source"] == name)
        assert found == planted.adapter_rejects + planted.media_rejects, name


def test_only_planted_twins_are_removed(built: Built):
    found = Counter(entry["source"] for entry in built.duplicates)
    assert found == Counter({name: planted.twins for name, planted in built.planted.items() if planted.twins})


def test_the_build_verifies(built: Built):
    assert manifest.verify(str(built.out), deep=True) == []


def test_the_card_names_every_source_with_licence_and_citation_and_the_allowed_pairs(built: Built):
    card = (built.out / "README.md").read_text()
    for name in fixtures.NAMES:
        adapter = sources.adapter(name)
        assert name in card and adapter.CITATION.split(",")[0] in card, name
        assert adapter.LICENCE.replace("|", "\\|") in card, name
    leakage = json.loads((built.out / "leakage.json").read_text())
    for one, other in FORBIDDEN:
        (warning,) = (entry for entry in leakage["allowed_pairs"] if {one, other} <= set(entry.split()))
        assert f"> **Warning: leaking sources.** {warning}" in card
