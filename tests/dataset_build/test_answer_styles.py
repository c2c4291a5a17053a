"""Answer styles and contexts through a whole build: what is stored, what an export says, what comes back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_build import export, manifest, schema
from dataset_build.exports.llava_import import import_build
from dataset_build.recipe import BuildRecipe
from tests.fixtures import plain_build
from tests.fixtures import sources as fixtures

MEDIA = {"video_frames": 2, "frame_side_px": 32, "max_side_px": 64}


def build(folder: Path, **instructions) -> tuple[dict, list[dict]]:
    raw = {
        "name": "styles", "out": str(folder / "out"), "root": str(folder.parent / "roots"), "media": MEDIA, "reject_budget": 1,
        "sources": [{"name": name, "root": name} for name in ("emoset", "mustard")], "instructions": instructions,
    }  # fmt: skip
    done = plain_build.build(BuildRecipe.model_validate(raw))
    paths = sorted((folder / "out").glob("*/*.parquet"))
    return done, [
        row for path in paths if path.parent.name in schema.SPLITS for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("styles")
    for name in ("emoset", "mustard"):
        fixtures.build(name, folder / "roots" / name)
    return folder


@pytest.fixture(scope="module")
def mixed(folder: Path) -> tuple[dict, list[dict]]:
    return build(folder / "mixed", answer_style="mixed")


def test_a_style_changes_messages_and_nothing_else(folder, mixed):
    _, words = build(folder / "word")
    by_uid = {row["uid"]: row for row in words}
    styles: Counter[str] = Counter()
    for row in mixed[1]:
        before = by_uid.pop(row["uid"])
        template, _, style = row["provenance"]["template_id"].partition("+")
        styles[style or "word"] += 1
        assert template == before["provenance"]["template_id"]
        assert (row["messages"] == before["messages"]) == (not style)
        assert {**row, "messages": 0, "provenance": 0} == {**before, "messages": 0, "provenance": 0}
    assert not by_uid and set(styles) == set(schema.ANSWER_STYLES)


def test_an_export_answers_in_the_form_that_its_question_asks_for_and_comes_back_the_same(
    folder, mixed, tmp_path
):
    export.export(str(folder / "mixed" / "out"), "llava", str(tmp_path / "llava"))
    rows = {row["uid"]: row for row in mixed[1]}
    seen = 0
    for path in sorted((tmp_path / "llava").glob("*.json")):
        for entry in json.loads(path.read_text()):
            if isinstance(entry, dict) and "conversations" in entry:
                *_, question, answer = entry["conversations"]
                row = rows[entry["id"]]
                seen += 1
                assert answer["value"] == schema.answer_text(row)
                if "Answer with the letter." in question["value"]:
                    assert f"({answer['value']}) {row['answer']}" in question["value"]
                elif "Answer with letter and word." in question["value"]:
                    assert (
                        answer["value"].endswith(f") {row['answer']}")
                        and answer["value"] in question["value"]
                    )
                else:
                    assert answer["value"] == row["answer"]
    assert seen == len(rows)
    back = import_build(str(tmp_path / "llava"), str(tmp_path / "back"))
    assert back["digest"] == mixed[0]["digest"]
    assert manifest.verify(str(tmp_path / "back"), deep=True) == []


def test_the_dialogue_can_be_left_out(folder, mixed):
    assert any("\nBefore:\n" in row["messages"][0]["content"] for row in mixed[1])
    _, without = build(folder / "without", context_chars=0)
    assert len(without) == len(mixed[1])
    assert not any("Before:" in row["messages"][0]["content"] for row in without)
