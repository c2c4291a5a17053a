"""Which rows are asked, by which fold's model, and what the majority answer and the probe may look at."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_build.provenance import sha256_of_file
from dataset_build.schema import sample_schema
from emollm.evaluate.baselines import linear_probe_answers, majority_answers
from emollm.evaluate.plan import make_plan
from emollm.evaluate.protocol import (
    EvaluationError,
    Row,
    cluster_keys,
    is_training_row,
    protocol_of,
    read_rows,
    select_rows,
)
from emollm.evaluate.results import read_model
from tests.emollm.evaluate.emobench import make_rows, write_emobench


def row(
    uid: str, answer: str = "joy", split: str = "train", fold: int | None = None, source: str = "s"
) -> Row:
    return Row(
        uid, source, "emo_c", split, fold, "Q\n<image>", ("joy", "sadness", "anger"), answer, (), {}, False, ("image",),
        (f"sha-{uid}",), f"{split}/{source}-00000.parquet", 0,
    )  # fmt: skip


def rows_of(folder: Path) -> list[Row]:
    return read_rows(str(folder), json.loads((folder / "manifest.json").read_text()))


def test_every_fold_is_tested_by_its_own_model_and_trains_the_others() -> None:
    rows = [
        row("a", fold=0, split="test"),
        row("b", fold=1),
        row("c", fold=2),
        row("d"),
        row("e", split="test"),
        row("f", split="val"),
    ]
    asked, _ = select_rows(rows, "test", ["emo_c"], None, [0, 1, 2])
    assert {r.uid: protocol_of(r) for r in asked} == {"a": 0, "b": 1, "c": 2, "e": 0}
    trained = {k: "".join(r.uid for r in rows if is_training_row(r, k)) for k in range(3)}
    assert trained == {0: "bcd", 1: "acd", 2: "abd"}
    for asked_row in asked:
        assert not is_training_row(asked_row, protocol_of(asked_row))


def test_with_validation_folds_a_protocol_neither_trains_on_nor_validates_on_the_fold_it_tests() -> None:
    """Two sources with 3 and 4 folds: protocol k validates on fold (k + 1) mod n of each."""
    rows = [replace(row(f"a{k}", fold=k, source="a"), n_folds=3) for k in range(3)]
    rows += [replace(row(f"b{k}", fold=k, source="b"), n_folds=4) for k in range(4)]
    rows += [row("t"), row("v", split="val")]
    trained = {k: {r.uid for r in rows if is_training_row(r, k)} for k in range(4)}
    assert trained[0] == {"a2", "b2", "b3", "t"}
    assert trained[2] == {"a1", "b0", "b1", "t"}
    asked, _ = select_rows(rows, "val", ["emo_c"], None, range(4))
    assert {r.uid: protocol_of(r) for r in asked} == {
        "a0": 2, "a1": 0, "a2": 1, "b0": 3, "b1": 0, "b2": 1, "b3": 2, "v": 0,
    }  # fmt: skip
    for asked_row in asked:
        assert asked_row.fold is None or asked_row.fold != protocol_of(asked_row)
        assert asked_row.uid not in trained[protocol_of(asked_row)]
    tested, _ = select_rows(rows, "test", ["emo_c"], None, range(4))
    assert all(protocol_of(r) == r.fold for r in tested) and len(tested) == 7


def test_validation_rows_of_folds_without_a_model_are_left_out_and_counted() -> None:
    rows = [replace(row(f"a{k}", fold=k), n_folds=3) for k in range(3)]
    asked, left_out = select_rows(rows, "val", ["emo_c"], None, [0])
    assert [r.uid for r in asked] == ["a1"] and left_out == {"fold_without_model": 2}


def test_folds_without_a_model_are_left_out_and_counted() -> None:
    rows = [row("a", fold=0, split="test"), row("b", fold=1), row("c", fold=1)]
    asked, left_out = select_rows(rows, "test", ["emo_c"], None, [0])
    assert ([r.uid for r in asked], left_out) == (["a"], {"fold_without_model": 2})


def test_one_fold_alone_is_asked_its_own_test_rows_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "emollm"}')
    (tmp_path / "fold.json").write_text(json.dumps({"fold": 1, "data_digest": "d"}))
    model = read_model(str(tmp_path))
    assert (model.folds, model.protocols([]), model.data_digest) == (None, (1,), "d")
    rows = [row("a", fold=0, split="test"), row("b", fold=1), row("c", split="test")]
    asked, left_out = select_rows(rows, "test", ["emo_c"], None, model.protocols([]))
    assert ([r.uid for r in asked], left_out) == (["b"], {"fold_without_model": 2})


def test_clips_never_share_an_answer_and_pictures_do() -> None:
    picture, clip = row("a"), replace(row("b"), media_kinds=("video",), media_sha256=("sha-a",))
    again = replace(picture, uid="z")
    assert picture.question_digest(False) == again.question_digest(False)
    assert clip.question_digest(False) != replace(clip, uid="other").question_digest(False)


def test_two_faces_cut_from_one_picture_do_not_share_an_answer(tmp_path: Path) -> None:
    """Their `sha256` is that of the picture, and an open question has the same words for both."""
    face = {"kind": "image", "data": [b"1"], "sha256": "whole", "phash": "f" * 16, "width": 48, "height": 48}
    values = {
        "sub_task": "emo_o",
        "options": None,
        "answer": "joy",
        "messages": [{"role": "user", "content": "?"}],
    }
    sample = {"source": "expw", "split": "test", "demonstration": False, **values}
    media = {"a": [face], "b": [{**face, "phash": "0" * 16}], "c": [face], "d": [{**face, "width": 49}]}
    table = pa.Table.from_pylist(
        [{**sample, "uid": uid, "media": its} for uid, its in media.items()], sample_schema()
    )
    (tmp_path / "test").mkdir()
    pq.write_table(table, tmp_path / "test/expw-00000.parquet")
    entry = {"rows": 4, "sha256": sha256_of_file(str(tmp_path / "test/expw-00000.parquet"))}
    a, b, c, d = read_rows(str(tmp_path), {"files": {"test/expw-00000.parquet": entry}})
    with pytest.raises(
        EvaluationError, match="test/expw-00000.parquet: its bytes are not those of the manifest"
    ):
        read_rows(str(tmp_path), {"files": {"test/expw-00000.parquet": {**entry, "sha256": "0" * 64}}})
    assert a.question_digest(False) == c.question_digest(False)
    assert (
        len({row.question_digest(False) for row in (a, b, d)})
        == len({row.media_keys for row in (a, b, d)})
        == 3
    )
    assert a.question_digest(True) == b.question_digest(True)


def test_val_and_train_are_what_the_folders_say() -> None:
    rows = [row("a", fold=0, split="test"), row("b", fold=1), row("f", split="val")]
    assert [r.uid for r in select_rows(rows, "val", ["emo_c"], None, [0, 1])[0]] == ["f"]
    assert [r.uid for r in select_rows(rows, "train", ["emo_c"], None, [0, 1])[0]] == ["b"]


def test_majority_answer_is_counted_on_training_rows_of_the_protocol_and_source() -> None:
    rows = [
        row("a", "anger", fold=0, split="test"), row("b", "joy", fold=1), row("c", "joy", fold=1), row("d", "anger", fold=0, split="test"),
        row("e", "anger", fold=0, split="test"), row("t", "sadness", source="other"), row("u", "joy", split="test", source="other"),
    ]  # fmt: skip
    asked, _ = select_rows(rows, "test", ["emo_c"], None, [0, 1])
    answers = dict(zip([r.uid for r in asked], majority_answers(rows, asked)))
    assert answers == {"a": "joy", "d": "joy", "e": "joy", "b": "anger", "c": "anger", "u": "sadness"}


def test_majority_ties_go_to_the_first_by_name_and_nothing_to_count_is_an_error() -> None:
    rows = [row("a", split="test"), row("b", "sadness"), row("c", "anger")]
    assert majority_answers(rows, rows[:1]) == ["anger"]
    with pytest.raises(EvaluationError, match="no training row of emo_c"):
        majority_answers(rows[:1], rows[:1])


def test_linear_probe_never_sees_the_features_of_its_test_fold() -> None:
    """Features are noise but for a code that only the row's own fold shares: a probe that peeked would be perfect."""
    generator = np.random.default_rng(0)
    rows, features = [], {}
    for number in range(120):
        fold, answer = number % 3, ("joy", "sadness", "anger")[generator.integers(3)]
        made = row(f"{number:03d}", answer, fold=fold, split="test" if fold == 0 else "train")
        rows.append(made)
        code = np.zeros(9, dtype=np.float32)
        code[fold * 3 + made.options.index(answer)] = 1
        features[made.media_sha256[0]] = np.concatenate([code, generator.normal(size=4).astype(np.float32)])
    groups = {made.uid: made.uid for made in rows}
    guessed = linear_probe_answers(rows, rows, features, groups)
    assert np.mean([made.answer == said for made, said in zip(rows, guessed)]) < 0.6
    seen = [replace(made, fold=None, split="train") for made in rows]
    tested = [replace(made, uid=f"t{made.uid}", fold=None, split="test") for made in rows]
    assert linear_probe_answers(seen + tested, tested, features, groups) == [made.answer for made in tested]


def test_clusters_follow_the_split_key_and_near_duplicates_not_descriptions() -> None:
    drawing = replace(row("a"), group_keys={"drawing": "g/1", "emoji": "1f", "vendor": "g"})
    manifest = {"source_facts": {"s": {"group_key": "drawing"}}}
    assert cluster_keys(drawing, manifest) == {"drawing": "g/1", "emoji": "1f"}
    assert cluster_keys(replace(drawing, group_keys={"vendor": "g"}), manifest) == {"vendor": "g"}


def test_equal_questions_are_asked_once_and_plans_do_not_depend_on_the_order() -> None:
    rows = [replace(row(f"{n}", fold=n % 2, split="train"), media_sha256=(f"m{n // 2}",)) for n in range(8)]
    first = make_plan(rows, [], ["model", "text_only", "untrained"], [0, 1], "digest")
    asked = Counter((shard.pass_name, shard.model) for shard in first.shards for _ in shard.questions)
    assert asked == {
        ("model", "fold-0"): 4, ("model", "fold-1"): 4, ("text_only", "fold-0"): 1, ("text_only", "fold-1"): 1, ("untrained", "untrained"): 4,
    }  # fmt: skip
    assert set(first.answered_by) == {
        (name, r.uid) for name in ("model", "text_only", "untrained") for r in rows
    }
    other = make_plan(rows, [], ["model", "text_only", "untrained"], [0, 1], "another model")
    assert not {shard.name for shard in first.shards} & {shard.name for shard in other.shards}


def test_rows_that_the_manifest_does_not_count_are_an_error(tmp_path: Path) -> None:
    folder = write_emobench(tmp_path, make_rows(8))
    assert len(rows_of(folder)) == len(make_rows(8))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["test/faces-00000.parquet"]["rows"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EvaluationError, match="the manifest says"):
        rows_of(folder)
    (folder / "test" / "faces-00000.parquet").unlink()
    with pytest.raises(EvaluationError, match="not there"):
        rows_of(folder)


def test_answer_outside_the_options_is_an_error(tmp_path: Path) -> None:
    rows = make_rows(8)
    rows[0]["answer"] = "hunger"
    with pytest.raises(EvaluationError, match="'hunger' is not one of its options"):
        rows_of(write_emobench(tmp_path, rows))


def test_a_uid_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    rows = make_rows(8)
    with pytest.raises(EvaluationError, match="2 times"):
        rows_of(write_emobench(tmp_path, [*rows, rows[0]]))
