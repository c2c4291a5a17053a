"""A promotion is decided by a paired bootstrap on the same rows, and held back by guard rails per sub-task."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import promotion
from flows.promotion import Accuracies, Comparison, Shared
from tests.fixtures.registry_files import evaluation


def test_a_clear_gain_is_promoted_and_a_tie_is_not(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", [False, False, True, False] * 20)
    better = evaluation(tmp_path / "better", [True, True, True, False] * 20)
    twin = evaluation(tmp_path / "twin", [False, False, True, False] * 20)
    champion = {"model_digest": "old"}

    gain = promotion.compare(better, base, draws=500, seed=0)
    assert gain.diff == pytest.approx(0.5) and gain.ci95[0] > 0.3 and gain.n == 80
    assert promotion.decide(champion, "new", gain)[0] == "promoted"

    tie = promotion.compare(twin, base, draws=500, seed=0)
    assert tie.diff == 0 and tie.ci95 == (0, 0)
    assert promotion.decide(champion, "new", tie)[0] == "kept"

    loss = promotion.compare(base, better, draws=500, seed=0)
    verdict, reason = promotion.decide(champion, "new", loss)
    assert verdict == "kept" and "-0.5000" in reason and "80 rows" in reason


def test_a_gain_within_the_noise_is_not_promoted(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", [False, True] * 10 + [True, True])
    slightly = evaluation(tmp_path / "slightly", [True, True] + [True, False] * 9 + [True, True])
    result = promotion.compare(slightly, base, draws=500, seed=0)
    assert result.diff > 0 > result.ci95[0] - 1e-12
    assert promotion.decide({"model_digest": "old"}, "new", result)[0] == "kept"


def test_only_the_same_questions_are_compared(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", [True] * 40)
    shifted = evaluation(tmp_path / "shifted", [False] * 40, first_uid=10)
    result = promotion.compare(one, shifted, draws=100, seed=0)
    assert (result.n, result.left_out, result.diff) == (30, 10, 1.0)

    mostly_new = evaluation(tmp_path / "new", [False] * 40, first_uid=30)
    verdict, reason = promotion.decide(
        {"model_digest": "old"}, "new", promotion.compare(one, mostly_new, 100, 0)
    )
    assert verdict == "kept" and "too much to compare emo_c" in reason and "emo_c 10 of 40" in reason

    demo = evaluation(tmp_path / "demo", [True] * 4, demonstration=True)
    for other in (evaluation(tmp_path / "elsewhere", [True] * 4, first_uid=900), demo):
        nothing = promotion.compare(one, other, draws=100, seed=0)
        assert nothing.n == 0
        assert promotion.decide({"model_digest": "old"}, "new", nothing)[0] == "kept"


def test_a_sub_task_that_cannot_be_compared_prevents_a_promotion(tmp_path: Path) -> None:
    champion = {"model_digest": "old"}
    worse, better = [False] * 40, [True] * 40
    base = evaluation(tmp_path / "base", worse, others={"intent": [True] * 20})

    gone = evaluation(
        tmp_path / "gone", better
    )  # the sub-task that the champion is good at is not asked any more
    result = promotion.compare(gone, base, draws=100, seed=0)
    assert result.ci95[0] > 0 and result.rows["intent"] == (0, 0, 20)
    verdict, reason = promotion.decide(champion, "new", result)
    assert verdict == "kept" and "too much to compare intent" in reason and "intent 0 of 20" in reason

    for rows, expected in ((9, "kept"), (10, "promoted"), (40, "promoted"), (41, "kept")):
        other = evaluation(tmp_path / str(rows), better, others={"intent": [True] * rows})
        result = promotion.compare(other, base, draws=100, seed=0)
        verdict, reason = promotion.decide(champion, "new", result)
        assert verdict == expected, (rows, reason)
        assert "emo_c 40 of 40" in reason and f"intent {min(rows, 20)} of {max(rows, 20)}" in reason
        assert f"{abs(rows - 20)} rows were put to one model only" in reason

    new = evaluation(tmp_path / "new", better, others={"intent": [True] * 20, "stance": [True] * 20})
    verdict, reason = promotion.decide(champion, "new", promotion.compare(new, base, draws=100, seed=0))
    assert verdict == "kept" and "too much to compare stance" in reason


def test_a_better_model_that_broke_one_sub_task_is_refused_with_the_numbers(tmp_path: Path) -> None:
    champion = {"model_digest": "old"}
    base = evaluation(tmp_path / "base", [False] * 80, others={"hate": [True] * 50})
    broken = evaluation(tmp_path / "broken", [True] * 80, others={"hate": [True] * 44 + [False] * 6})
    result = promotion.compare(broken, base, draws=500, seed=0)
    assert result.ci95[0] > 0.3, "better overall: without guard rails it would win"

    verdict, reason = promotion.decide(champion, "new", result)
    assert verdict == "kept"
    assert "guard rail of 0.0300" in reason
    assert "hate fell by 0.1200 (1.0000 → 0.8800 on 50 rows)" in reason
    assert "difference +0.4400" in reason and "emo_c fell" not in reason

    assert promotion.decide(champion, "new", result, guard_rail=0.12)[0] == "promoted"
    assert promotion.decide(champion, "new", result, guard_rail=0.1199)[0] == "kept"


def test_a_model_that_was_rolled_back_stays_out_however_good_it_is(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", [False] * 40)
    better = evaluation(tmp_path / "better", [True] * 40)
    gain = promotion.compare(better, base, draws=100, seed=0)
    verdict, reason = promotion.decide({"model_digest": "old"}, "new", gain, barred="it was rolled back")
    assert (verdict, reason) == ("kept", "it was rolled back")


differences = st.dictionaries(
    st.sampled_from(["emo_c", "emo_o", "intent", "hate", "humor", "sarcasm"]),
    st.floats(-1, 1, allow_nan=False),
    min_size=1,
)


@given(differences, st.floats(0, 1))
def test_no_promotion_ever_lets_a_sub_task_fall_by_more_than_the_guard_rail(
    diffs: dict[str, float], guard_rail: float
) -> None:
    rows = {task: Shared(10, 10, 10) for task in diffs}
    accuracies = {task: Accuracies(0.5, 0.5 + diff) for task, diff in diffs.items()}
    result = Comparison(0.5, (0.4, 0.6), 10 * len(diffs), 0, diffs, rows, accuracies)
    verdict, reason = promotion.decide({"model_digest": "old"}, "new", result, guard_rail=guard_rail)
    worst = min(diffs.values())
    if verdict == "promoted":
        assert worst >= -guard_rail - 1e-8
    else:
        assert worst < -guard_rail and min(diffs, key=lambda task: diffs[task]) in reason
