"""What results.json says of given answers: by hand, with invalid answers, several gold labels, clusters and missing classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emollm.config import EvaluateRecipe
from emollm.evaluate import records, report, scores
from emollm.evaluate.protocol import Row
from emollm.evaluate.score import Answer
from tests.emollm.evaluate import synthetic

RECIPE = EvaluateRecipe.model_validate({"bootstrap": {"samples": 200}})


def row(number: int, answer: str, task: str = "emo_o", **changes: Any) -> Row:
    options = {"emo_o": (), "hate": ("Yes", "No")}.get(task, ("joy", "sadness", "anger"))
    made = Row(
        f"s/test/{number:03d}", "s", task, "test", None, "Q\n<image>", options, answer, (), {"clip": f"c{number}"}, False,
        ("image",), (f"sha{number}",), "test/s-00000.parquet", number,
    )  # fmt: skip
    return replace(made, **changes)


def said(text: str, probability: float = 0.5) -> Answer:
    return Answer(None, text, [1], [math.log(probability)], 1.0)


def chosen(place: int, *probabilities: float) -> Answer:
    return Answer(place, None, [], [math.log(p) for p in probabilities], 1.0)


def scored(rows: list[Row], answers: list[Answer], **baselines: list[str]) -> dict[str, Any]:
    made = records.make_records(rows, answers, baselines, {"source_facts": {}})
    return scores.score_all(made, RECIPE)


def test_open_answers_by_hand() -> None:
    golds = ["joy", "joy", "joy", "amusement", "fear", "anger", "sadness", "sadness"]
    answers = ["joyful", "amused", "sad", "happy", "", "xyzzy", "I cannot say", "grief and loss"]
    entry = scored([row(n, gold) for n, gold in enumerate(golds)], [said(text) for text in answers])[
        "sub_tasks"
    ]["emo_o"]
    # right: joyful; amused (a kind of joy); grief. happy for amusement is right on the wheel only.
    assert (entry["accuracy"], entry["exact_accuracy"], entry["wheel_accuracy"]) == (3 / 8, 1 / 8, 4 / 8)
    assert {kind: n for kind, n in entry["invalid"].items() if n} == {"empty": 1, "unparsed": 1, "refused": 1}
    assert entry["unknown_words"] == {"xyzzy": 1} and entry["distinct_unknown_words"] == 1
    matrix = entry["confusion"]
    assert matrix["gold"] == ["amusement", "anger", "fear", "joy", "sadness"]
    assert matrix["counts"][3] == [
        0,
        0,
        0,
        2,
        1,
        0,
    ]  # amused counts as its gold label, although it is a label itself
    assert matrix["counts"][0] == [0, 0, 0, 1, 0, 0] and matrix["counts"][2] == [0, 0, 0, 0, 0, 1]
    assert sum(map(sum, matrix["counts"])) == entry["n"] == 8
    assert entry["by_label"]["joy"]["recall"] == pytest.approx(2 / 3, abs=1e-6)


def test_every_answer_stays_in_the_denominator_whatever_became_of_it() -> None:
    rows = [row(n, "joy", "emo_c") for n in range(6)]
    answers = [
        chosen(0, 0.8, 0.1, 0.1), said("(A) joy"), said(""), Answer(None, "I must", [], [], math.inf, "refused"),
        Answer(None, "well, it could", [], [], math.inf, "length"), Answer(None, "", [], [], math.inf, "error", "503"),
    ]  # fmt: skip
    entry = scored(rows, answers)["sub_tasks"]["emo_c"]
    assert entry["n"] == 6 and entry["accuracy"] == pytest.approx(2 / 6, abs=1e-6)
    assert entry["invalid"] == {"empty": 1, "unparsed": 0, "refused": 1, "too_long": 1, "endpoint_error": 1}
    # One answer has a probability: the calibration error is of that one, and without an interval.
    assert entry["ece"] == pytest.approx(0.2) and "ece" not in entry["intervals"]


def test_any_of_several_gold_labels_counts_as_that_label() -> None:
    rows = [
        row(0, "joy", "emo_c", other_answers=("sadness",)),
        row(1, "joy", "emo_c", other_answers=("sadness",)),
    ]
    entry = scored(rows, [chosen(1, 0.2, 0.7, 0.1), chosen(2, 0.2, 0.2, 0.6)])["sub_tasks"]["emo_c"]
    assert entry["accuracy"] == 0.5
    assert entry["confusion"]["gold"] == ["joy", "sadness"] and entry["confusion"]["counts"] == [
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_auroc_is_of_the_probability_of_yes_and_absent_with_one_class() -> None:
    rows = [row(n, gold, "hate") for n, gold in enumerate(["Yes", "Yes", "No", "No"])]
    answers = [chosen(0, 0.9, 0.1), chosen(1, 0.3, 0.7), chosen(0, 0.8, 0.2), chosen(1, 0.1, 0.9)]
    entry = scored(rows, answers)["sub_tasks"]["hate"]
    assert entry["auroc"] == 0.75 and len(entry["intervals"]["auroc"]) == 2
    alone = scored(rows[:2], answers[:2])["sub_tasks"]["hate"]
    assert alone["auroc"] is None and alone["intervals"]["auroc"] is None
    assert alone["uar"] == alone["war"] == alone["accuracy"] == 0.5


def test_samples_about_one_clip_or_one_medium_are_one_cluster() -> None:
    rows = [
        row(0, "joy"), row(1, "joy", group_keys={"clip": "c0"}), row(2, "joy", media_sha256=("sha0",)),
        row(3, "joy", group_keys={}, media_sha256=()), row(4, "joy", group_keys={}, media_sha256=()),
    ]  # fmt: skip
    assert scored(rows, [said("joy")] * 5)["sub_tasks"]["emo_o"]["clusters"] == 3


def test_one_cluster_beats_nothing() -> None:
    """Its interval has no width: every draw is the sample itself."""
    rows = [row(n, "joy", group_keys={"clip": "c"}) for n in range(4)]
    entry = scored(rows, [said("joy")] * 4, majority=["sad"] * 4)["sub_tasks"]["emo_o"]
    compared = entry["baselines"]["majority"]
    assert (compared["diff"], compared["diff_ci95"], compared["beaten"]) == (1.0, [1.0, 1.0], False)
    assert report.statements(entry)[0]["verdict"] == "open"


def test_differences_to_baselines_are_paired_and_by_hand() -> None:
    rows = [row(n, "joy") for n in range(4)]
    result = scored(
        rows, [said(text) for text in ("joy", "joy", "sad", "joy")], majority=["joy", "sad", "sad", "sad"]
    )
    compared = result["sub_tasks"]["emo_o"]["baselines"]["majority"]
    assert (compared["accuracy"], compared["diff"], compared["diff_ci95"]) == (0.25, 0.5, [0.0, 1.0])
    assert not compared["beaten"]  # the interval touches zero
    assert result["overall"]["baselines"]["majority"]["diff"] == 0.5


def test_a_made_up_run_follows_the_published_schema_and_is_the_same_in_any_order(tmp_path: Path) -> None:
    from emollm.evaluate import run_folder

    rows = synthetic.rows(80)
    folder = synthetic.write_run(tmp_path / "run", rows, 0.5)
    results = json.loads((folder / "results.json").read_text())
    run_folder.validate(results, "results.json")
    made = records.make_records(rows, synthetic.answers(rows, 0.5, 0), {}, {"source_facts": {}})
    assert scores.score_all(made, RECIPE) == scores.score_all(list(reversed(made)), RECIPE)
