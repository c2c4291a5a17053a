"""The leakage register: forbidden pairs are refused before anything is read, shared lines leave on the training side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from dataset_build import decide, dry, hash_columns, index, leakage, sources
from dataset_build.errors import BuildError
from dataset_build.index import Index
from dataset_build.recipe import BuildRecipe
from dataset_build.schema import Record

PROJECT = Path(__file__).resolve().parents[2]
ANNOTATIONS = Path(os.environ.get("EMOBENCH_ANNOTATIONS") or PROJECT.parent / "shared" / "annotations")
FORBIDDEN = [("caer", "caer_s"), ("mustard", "mustard_pp"), ("mmsd", "mmsd2"), ("mer2023", "mer2024")]


def recipe(*names: str, root: Path = Path("/nowhere"), **more) -> BuildRecipe:
    listed = [{"name": name, "root": str(root / name)} for name in names]
    return BuildRecipe.model_validate({"name": "leaks", "out": "/nowhere/out", "sources": listed, **more})


@pytest.mark.parametrize("pair", FORBIDDEN)
def test_a_forbidden_pair_is_refused_by_name_before_anything_is_read(pair):
    with pytest.raises(BuildError, match=rf"{pair[0]} and {pair[1]} may not be in one build") as refused:
        dry.run(recipe("emoset", *reversed(pair)))  # no folder is there: reading would be another error
    assert f"leakage.allow_pairs: [[{pair[0]}, {pair[1]}]]" in str(refused.value)


def test_a_refused_pair_is_exit_code_1_with_the_remedy_on_stderr(tmp_path):
    content = recipe("mmsd", "mmsd2").model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "dataset_build", "build", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PROJECT)
    assert done.returncode == 1
    assert "mmsd and mmsd2" in done.stderr and "allow_pairs" in done.stderr and "Traceback" not in done.stderr


def test_an_accepted_pair_is_built_and_says_so():
    taken = leakage.check_pairs(["caer_s", "caer", "meld"], [("caer_s", "caer")])
    (warning,) = leakage.warnings(taken)
    assert warning.startswith("caer and caer_s are both in this build although they leak")
    with pytest.raises(BuildError, match="mmsd and mmsd2"):
        leakage.check_pairs(["caer", "caer_s", "mmsd", "mmsd2"], [("caer", "caer_s")])


def test_only_forbidden_pairs_can_be_accepted():
    with pytest.raises(ValidationError, match="meld and mustard is no forbidden pair"):
        recipe("meld", leakage={"allow_pairs": [["meld", "mustard"]]})


def test_the_register_names_only_sources_that_there_are():
    named = {
        name
        for risk in leakage.REGISTER
        for name in (*risk.noted, *(one for pair in (*risk.forbids, *risk.texts) for one in pair))
    }
    assert named <= set(sources.REGISTRY)
    assert all(risk.evidence and risk.guard for risk in leakage.REGISTER)
    assert len({risk.name for risk in leakage.REGISTER}) == len(leakage.REGISTER)
    assert {frozenset(pair) for pair in FORBIDDEN} == set(leakage.FORBIDDEN)


def test_notes_are_those_of_the_sources_in_the_build():
    assert {note["name"] for note in leakage.notes(["meld"])} == {"meld-splits-by-dialogue-only"}
    together = {note["name"]: note["sources"] for note in leakage.notes(["meld", "mustard"])}
    assert together["friends-lines-in-meld-and-mustard"] == ["meld", "mustard"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("That’s GREAT!", "thats  great"),
        ("ﬁne — really", "Fine, really..."),
        ("STRASSE", "straße"),
        ("well\u00a0then_so", "well then so"),
    ],
)
def test_texts_that_differ_in_case_form_and_punctuation_are_the_same(one, other):
    assert hash_columns.normalised(one) == hash_columns.normalised(other) != ""


def test_words_count_letters_and_digits_of_any_script_and_nothing_else():
    assert hash_columns.normalised("... -- !?") == ""
    assert hash_columns.normalised("24시간 내내, क्या?").split()[0] == "24시간"
    assert hash_columns.normalised("one-two three") == "one two three"


# --- the published annotation files ----------------------------------------------------------------------------------


def published(root: Path, recipe: BuildRecipe) -> Index:
    """The index of the sources' real rows, each with a medium of its own: what the decision sees of them."""
    builder = index.Builder(decide.facts(recipe))
    for spec in recipe.sources:
        adapter = sources.adapter(spec.name)
        rows = [
            hash_columns.row(item, adapter.GROUP_KEY, [f"clip-of-{item.uid}"])
            for item in adapter.read(str(root / spec.root), recipe.source_options(spec))
            if isinstance(item, Record)
        ]
        builder.add(pa.Table.from_pylist(rows, schema=hash_columns.arrow_schema()), spec.name)
    return builder.finish()


@pytest.fixture(scope="module")
def friends() -> tuple[BuildRecipe, Index]:
    for name in ("MELD", "MUStARD"):
        if not (ANNOTATIONS / name).is_dir():
            pytest.skip(
                f"the published annotation of {name} is not in {ANNOTATIONS}; set EMOBENCH_ANNOTATIONS"
            )
    raw = {
        "name": "friends",
        "out": "out",
        "sources": [
            {"name": "meld", "root": "MELD"},
            {"name": "mustard", "root": "MUStARD", "options": {"split": "speaker_independent"}},
        ],
    }
    made = BuildRecipe.model_validate(raw)
    return made, published(ANNOTATIONS, made)


def test_meld_train_lines_that_mustard_tests_are_found_and_removed(friends):
    made, found = friends
    test_lines = [
        row
        for row in found.rows_of(["mustard"]).tolist()
        if found.split[row] == 2 and found.text_words[row] >= 5
    ]
    assert len(test_lines) == 276  # MUStARD's Friends utterances of at least five words
    meld_rows = found.rows_of(["meld"])
    in_train = set(found.text[meld_rows[found.split[meld_rows] == 0]].tolist())
    anywhere = set(found.text[meld_rows].tolist())
    shared = [row for row in test_lines if found.text[row] in in_train]
    assert (sum(found.text[row] in anywhere for row in test_lines), len(shared)) == (149, 148)

    decision = decide.decide(made, found)
    removed = list(decision.removed.values())
    tested = {found.text[row] for row in test_lines}
    assert {found.uid(one.row) for one in removed if found.split[one.row] == 0} == {
        found.uid(row) for row in meld_rows.tolist() if found.split[row] == 0 and found.text[row] in tested
    }
    for one in removed:
        assert one.rule == "same_text:friends-lines-in-meld-and-mustard" and one.across_splits
        assert found.text[one.row] == found.text[one.twin] and found.text_words[one.row] >= 5
        assert {found.source_of(one.row), found.source_of(one.twin)} == {"meld", "mustard"}
        assert found.split[one.row] != 2 or found.split[one.twin] == 2
    gone = set(decision.removed)
    left = {int(found.text[row]) for row in meld_rows.tolist() if found.split[row] == 0 and row not in gone}
    assert not left & {int(code) for code in tested}
    assert len(gone & set(meld_rows[found.split[meld_rows] == 0].tolist())) == 147
    assert not gone & set(test_lines)


def test_both_uids_and_the_rule_are_listed_and_repeats_inside_a_source_are_only_counted(friends):
    made, found = friends
    report = decide.leakage_report(made, found, decide.decide(made, found))
    rules = Counter(
        (entry["source"], entry["split"], entry["twin_split"], entry["rule"]) for entry in report["removed"]
    )
    assert rules["meld", "train", "test", "same_text:friends-lines-in-meld-and-mustard"] == 147
    assert all(entry["uid"] and entry["twin_uid"] for entry in report["removed"])
    repeated = {(entry["source"], entry["split"]): entry for entry in report["reported_only"]}
    assert repeated["meld", "test"] == {"source": "meld", "split": "test", "rows": 404, "of_5_words": 9}
    assert not any(
        entry["rule"].startswith("same_text") and entry["source"] == entry["twin_uid"].split("/")[0]
        for entry in report["removed"]
    )
    assert {note["name"] for note in report["notes"]} >= {
        "meld-splits-by-dialogue-only",
        "friends-lines-in-meld-and-mustard",
    }


def test_in_five_folds_every_mustard_row_is_a_test_row_so_meld_gives_way_to_all(friends):
    made, _ = friends
    folds = made.model_copy(
        update={
            "sources": (
                made.sources[0],
                made.sources[1].model_copy(update={"options": {"split": "speaker_dependent"}}),
            )
        }
    )
    found = published(ANNOTATIONS, folds)
    decision = decide.decide(folds, found)
    assert decision.places.n_folds == {"mustard": 5} and decision.places.drawn == {"mustard": False}
    counts = np.bincount(decision.places.fold[found.rows_of(["mustard"])])
    assert counts.tolist() == [138] * 5
    by_source = Counter(found.source_of(row) for row in decision.removed)
    assert by_source["meld"] >= 147
    report = decide.leakage_report(folds, found, decision)
    assert [entry["source"] for entry in report["straddling_groups"]] == ["mustard"]
