"""The evaluation from end to end on tiny models: exact counts, resuming, and answers that nothing but the data decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emollm.config import EvaluateRecipe
from emollm.evaluate import run
from emollm.evaluate.protocol import EvaluationError, read_rows, select_rows
from emollm.evaluate.results import evaluate
from tests.emollm.evaluate.conftest import in_this_process
from tests.emollm.evaluate.emobench import FOLDS, make_rows, write_emobench

SUB_TASKS = ("emo_c", "emo_o", "intent", "hate", "humor", "sarcasm")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real scoring of shards, without the processes around it (the tests with Ray are below)."""
    monkeypatch.setattr(run, "_on_ray", in_this_process)


def recipe(**values: Any) -> EvaluateRecipe:
    return EvaluateRecipe.model_validate({"bootstrap": {"samples": 200}, **values})


def predictions(out: Path) -> list[tuple[Any, ...]]:
    names = [
        "uid",
        "answer",
        "status",
        "correct",
        "text_only_answer",
        "untrained_answer",
        "majority_answer",
        "linear_probe_answer",
    ]
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    return [tuple(row[name] for name in names) for row in rows]


def test_every_test_row_has_exactly_one_record(evaluation: Path, bench: Path) -> None:
    rows = read_rows(str(bench), json.loads((bench / "manifest.json").read_text()))
    asked, left_out = select_rows(rows, "test", SUB_TASKS, None, range(FOLDS))
    records = pq.read_table(evaluation / "samples.parquet").to_pylist()
    assert [record["uid"] for record in records] == sorted(row.uid for row in asked)
    assert len(records) == 24 * 2 * 2 + 6 + 8 + 12 and not left_out
    assert {record["status"] for record in records if record["sub_task"] != "emo_o"} == {"ok"}
    assert all(len(record["scores"]) == len(record["options"]) for record in records if record["options"])


def test_results_follow_the_published_schema(evaluation: Path) -> None:
    import jsonschema

    schema = json.loads((Path(run.__file__).parent / "results.schema.json").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(results, schema)
    del results["sub_tasks"]["emo_c"]["ci95"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, schema)


def test_demonstrations_stay_out_of_the_mean_and_hate_is_listed(evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    tasks = results["sub_tasks"]
    assert tasks["hate"] == {
        "n": 0, "accuracy": None, "ci95": None, "macro_f1": None, "uar": None, "note": "no openly licensed sample",
    }  # fmt: skip
    assert tasks["humor"]["note"] == "demonstration, separable by style"
    assert results["overall"]["sub_tasks"] == ["emo_c", "emo_o", "intent"]
    mean = sum(tasks[name]["accuracy"] for name in ("emo_c", "emo_o", "intent")) / 3
    assert results["overall"]["accuracy"] == pytest.approx(mean, abs=1e-5)
    assert set(tasks["emo_c"]["references"]) == {"linear_probe", "nearest_neighbour", "random"}
    assert set(tasks["emo_c"]["baselines"]) == {"majority", "text_only", "untrained"}


def test_pictures_change_the_answers_and_withholding_them_does_not_crash(evaluation: Path) -> None:
    records = pq.read_table(evaluation / "samples.parquet").to_pylist()
    assert any(record["answer"] != record["text_only_answer"] for record in records)
    assert any(record["answer"] != record["untrained_answer"] for record in records)


def test_a_killed_evaluation_scores_only_what_is_missing(
    evaluation: Path, bench: Path, model_dir: Path, tmp_path: Path, without_ray: None
) -> None:
    total = json.loads((evaluation / "results.json").read_text())["scoring"]["questions"]
    shutil.copytree(evaluation / "answers", tmp_path / "answers")
    lost = sorted((tmp_path / "answers").iterdir())[:2]
    n_lost = sum(pq.read_metadata(path).num_rows for path in lost)
    for path in lost:
        path.unlink()
    (tmp_path / "answers" / f"{'0' * 32}.parquet.12345678.partial").write_bytes(b"half a file")
    results = evaluate(str(model_dir), str(bench), str(tmp_path), recipe())
    assert (results["scoring"]["questions"], results["scoring"]["scored"]) == (total, n_lost)
    assert predictions(tmp_path) == predictions(evaluation)


def test_a_change_after_scoring_asks_no_model_again(
    evaluation: Path, bench: Path, model_dir: Path, tmp_path: Path, without_ray: None
) -> None:
    shutil.copytree(evaluation / "answers", tmp_path / "answers")
    results = evaluate(
        str(model_dir), str(bench), str(tmp_path), recipe(bootstrap={"samples": 300, "seed": 1})
    )
    assert results["scoring"]["scored"] == 0


def test_limit_takes_the_same_rows_every_time(
    bench: Path, model_dir: Path, tmp_path: Path, without_ray: None
) -> None:
    few = recipe(limit=3, sub_tasks=["intent", "emo_c"], baselines=["majority"], linear_probe=False)
    results = evaluate(str(model_dir), str(bench), str(tmp_path / "a"), few)
    evaluate(str(model_dir), str(bench), str(tmp_path / "b"), few)
    assert predictions_of(tmp_path / "a") == predictions_of(tmp_path / "b")
    assert {name: entry["n"] for name, entry in results["sub_tasks"].items()} == {"emo_c": 3, "intent": 3}
    assert results["left_out"] == {"over_limit": 24 * 2 + 6 - 3 + 8 - 3}


def test_clips_with_sound_are_scored_without_the_linear_probe(
    model_dir: Path, tmp_path: Path, without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows()
    for row in rows:
        if row["source"] == "clips":
            row["media"].append({**row["media"][0], "kind": "audio", "data": [b"not heard"]})
            row["messages"][0]["content"] += "<audio>"
    bench = write_emobench(tmp_path / "bench", rows)
    few = recipe(limit=4, sub_tasks=["emo_c"], baselines=["majority"])
    results = evaluate(str(model_dir / "fold-0"), str(bench), str(tmp_path / "out"), few)
    assert set(results["sub_tasks"]["emo_c"]["references"]) == {"nearest_neighbour"}
    assert "no linear probe" in capsys.readouterr().out


def predictions_of(out: Path) -> list[tuple[str, str]]:
    return [(row["uid"], row["answer"]) for row in pq.read_table(out / "samples.parquet").to_pylist()]


def test_models_of_another_build_are_refused(model_dir: Path, bench: Path, tmp_path: Path) -> None:
    other = tmp_path / "emobench"
    shutil.copytree(bench, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "digest": "another"}))
    with pytest.raises(EvaluationError, match="trained on the EmoBench with digest"):
        evaluate(str(model_dir), str(other), str(tmp_path / "out"), recipe())


def test_missing_folders_are_named(bench: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"neither training\.json nor config\.json"):
        evaluate(str(tmp_path), str(bench), str(tmp_path / "out"), recipe())
    with pytest.raises(EvaluationError, match=r"manifest\.json is not there"):
        evaluate(str(model_dir), str(tmp_path), str(tmp_path / "out"), recipe())
