"""Scores by hand, against scikit-learn, and what holds whatever the answers."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from emollm.evaluate import metrics

GOLD = ["joy", "joy", "joy", "sad", "sad", "fear"]
SAID = ["joy", "joy", "sad", "sad", "anger", "joy"]


def test_accuracy_by_hand() -> None:
    assert metrics.accuracy([g == s for g, s in zip(GOLD, SAID)]) == 0.5
    with pytest.raises(ValueError, match="0 samples"):
        metrics.accuracy([])


def test_macro_f1_by_hand() -> None:
    # joy: precision 2/3, recall 2/3, F1 2/3; sad: precision 1/2, recall 1/2, F1 1/2; fear: 0. "anger" is no gold label.
    assert metrics.macro_f1(GOLD, SAID) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_uar_by_hand() -> None:
    assert metrics.unweighted_average_recall(GOLD, SAID) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.unweighted_average_recall(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(
        (1 / 2 + 1) / 2
    )


def test_auroc_by_hand() -> None:
    # Pairs (positive, negative): .9>.8, .9>.1, .3<.8, .3>.1: 3 of 4; a tie counts half.
    assert metrics.auroc([True, True, False, False], [0.9, 0.3, 0.8, 0.1]) == 0.75
    assert metrics.auroc([True, False], [0.5, 0.5]) == 0.5
    assert metrics.auroc([True, True], [0.1, 0.2]) is None


def test_calibration_error_by_hand() -> None:
    """Four bins: (.25, .5] holds .5 and .3 (mean .4, accuracy .5), (.75, 1] holds .8 and 1 (mean .9, accuracy .5)."""
    bins = metrics.calibration([True, False, True, False], [0.5, 0.3, 0.8, 1.0], bins=4)
    assert [part.n for part in bins] == [0, 2, 0, 2]
    assert bins[1].confidence == pytest.approx(0.4) and bins[3].accuracy == 0.5
    assert metrics.expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)


def test_a_bin_holds_its_upper_bound_and_the_first_one_holds_zero() -> None:
    places = [metrics.calibration_bin(p, 10) for p in (0.0, 1e-6, 0.1, 0.1000001, 0.3, 0.7, 0.9999, 1.0)]
    assert places == [0, 0, 0, 1, 2, 6, 9, 9]
    for confidence in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="no probability"):
            metrics.calibration_bin(confidence)
    with pytest.raises(ValueError, match="0 samples"):
        metrics.expected_calibration_error(metrics.calibration([], []))


def test_scores_per_label_by_hand() -> None:
    scores = metrics.by_label(GOLD, SAID)
    assert list(scores) == ["fear", "joy", "sad"]
    assert scores["joy"] == (3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert scores["sad"] == (2, 0.5, 0.5, 0.5)
    assert scores["fear"] == (1, 0.0, None, 0.0)  # never the answer: there is no precision


def test_one_class_alone_is_scored_on_itself() -> None:
    assert metrics.macro_f1(["a", "a"], ["a", "b"]) == pytest.approx(2 / 3)
    assert metrics.unweighted_average_recall(["a", "a"], ["a", "b"]) == 0.5
    assert metrics.macro_f1(["a"], ["(other)"]) == 0.0


def test_confusion_counts_answers_outside_the_labels_apart() -> None:
    counts = metrics.confusion(GOLD, SAID, ["joy", "sad", "fear"], "(other)")
    assert counts == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]


labels = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcdx")), min_size=1, max_size=50)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_f1_and_uar_from_the_confusion_matrix(pairs: list[tuple[str, str]]) -> None:
    """Both, computed a second time from counts."""
    gold, said = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    names = sorted(set(gold))
    counts = np.array(metrics.confusion(gold, said, names, "other"))
    hits = np.diag(counts[:, : len(names)])
    recall = hits / counts.sum(axis=1)
    f1 = 2 * hits / (counts.sum(axis=1) + counts[:, : len(names)].sum(axis=0))
    assert metrics.unweighted_average_recall(gold, said) == pytest.approx(recall.mean())
    assert metrics.macro_f1(gold, said) == pytest.approx(f1.mean())


@settings(max_examples=40, deadline=None)
@given(labels, st.randoms(use_true_random=False))
def test_scores_are_those_of_scikit_learn_in_any_order(
    pairs: list[tuple[str, str]], generator: Random
) -> None:
    gold, said = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    names = sorted(set(gold))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        gold, said, labels=names, zero_division=0
    )
    scores = metrics.by_label(gold, said)
    assert [score.n for score in scores.values()] == support.tolist() and support.sum() == len(pairs)
    assert [score.recall for score in scores.values()] == pytest.approx(recall.tolist())
    assert [score.precision or 0.0 for score in scores.values()] == pytest.approx(precision.tolist())
    assert [score.f1 for score in scores.values()] == pytest.approx(f1.tolist())
    weighted = sklearn_metrics.recall_score(gold, said, labels=names, average="weighted", zero_division=0)
    assert metrics.accuracy([g == s for g, s in pairs]) == pytest.approx(weighted)  # WAR
    shuffled = generator.sample(pairs, len(pairs))
    gold2, said2 = [pair[0] for pair in shuffled], [pair[1] for pair in shuffled]
    assert metrics.macro_f1(gold2, said2) == pytest.approx(metrics.macro_f1(gold, said))
    assert metrics.by_label(gold2, said2) == scores


answered = st.lists(
    st.tuples(st.booleans(), st.integers(0, 20).map(lambda n: n / 20)), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(answered)
def test_calibration_error_is_a_share_and_counts_every_answer(rows: list[tuple[bool, float]]) -> None:
    bins = metrics.calibration([row[0] for row in rows], [row[1] for row in rows])
    assert sum(part.n for part in bins) == len(rows)
    error = metrics.expected_calibration_error(bins)
    assert 0 <= error <= 1
    assert metrics.expected_calibration_error(metrics.calibration(*zip(*reversed(rows)))) == pytest.approx(
        error
    )
    # One bin is |accuracy - mean confidence|; finer bins can only find more of it.
    whole = abs(np.mean([row[0] for row in rows]) - np.mean([row[1] for row in rows]))
    assert error >= whole - 1e-12


@settings(max_examples=60, deadline=None)
@given(answered)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float]]) -> None:
    pairs = [(p, n) for is_p, p in rows if is_p for is_n, n in rows if not is_n]
    expected = np.mean([(p > n) + (p == n) / 2 for p, n in pairs]) if pairs else None
    assert metrics.auroc([row[0] for row in rows], [row[1] for row in rows]) == (
        None if expected is None else pytest.approx(expected)
    )
