"""Golden values by hand, agreement with scikit-learn, and what intervals must do whatever the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emollm.evaluate import metrics
from emollm.evaluate.metrics import TaskScores

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


def test_confusion_counts_answers_outside_the_labels_apart() -> None:
    counts = metrics.confusion(GOLD, SAID, ["joy", "sad", "fear"], "(other)")
    assert counts == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]


def test_bootstrap_converges_to_the_exact_distribution_of_three_clusters() -> None:
    """All 27 draws of 3 clusters out of 3, by hand, against the simulated quantiles and mean."""
    values, clusters = [1.0, 1.0, 0.0, 1.0, 0.0], np.array([0, 0, 1, 1, 2])
    sums, sizes = [2.0, 1.0, 0.0], [2.0, 2.0, 1.0]
    exact = [
        sum(sums[c] for c in draw) / sum(sizes[c] for c in draw)
        for draw in itertools.product(range(3), repeat=3)
    ]
    simulated = metrics.bootstrap_means(np.array([values]), clusters, 200_000, seed=0)[0]
    assert simulated.mean() == pytest.approx(np.mean(exact), abs=2e-3)
    for value in sorted(set(exact)):
        share = np.mean(np.isclose(simulated, value))
        assert share == pytest.approx(np.mean(np.isclose(exact, value)), abs=4e-3)


def test_cluster_of_copies_is_as_uncertain_as_one_sample() -> None:
    once = metrics.bootstrap_interval([1, 0, 1, 0], np.arange(4), 4000, seed=0)
    copied = metrics.bootstrap_interval([1, 0, 1, 0] * 50, np.tile(np.arange(4), 50), 4000, seed=0)
    naive = metrics.bootstrap_interval([1, 0, 1, 0] * 50, np.arange(200), 4000, seed=0)
    assert copied == once
    assert naive.high - naive.low < 0.2 < once.high - once.low


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        correct = generator.random(80) < 0.4
        low, high = metrics.bootstrap_interval(correct, np.arange(80), 400, seed)
        covered += low <= 0.4 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_difference_by_hand() -> None:
    ours, theirs = [True, True, False, True], [True, False, False, False]
    diff, interval = metrics.paired_difference(ours, theirs, np.arange(4), 4000, seed=0)
    assert diff == 0.5
    assert interval == (0.0, 1.0)
    same, nothing = metrics.paired_difference(ours, ours, np.arange(4), 100, seed=0)
    assert (same, nothing) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="same samples"):
        metrics.paired_difference(ours, theirs[:3], np.arange(4), 100, seed=0)


def test_mean_over_tasks_draws_a_shared_cluster_for_all_its_tasks() -> None:
    """Two tasks on the same clusters with the same answers are exactly one task; opposite answers cancel."""
    names = [f"e{n}" for n in range(6)]
    correct = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    one = metrics.mean_over_tasks({"a": TaskScores(correct, names)}, 2000, seed=0)
    two = metrics.mean_over_tasks(
        {"a": TaskScores(correct, names), "b": TaskScores(correct, names)}, 2000, seed=0
    )
    opposite = TaskScores([1 - value for value in correct], names)
    none = metrics.mean_over_tasks({"a": TaskScores(correct, names), "b": opposite}, 2000, seed=0)
    assert one == two
    assert none == (0.5, (0.5, 0.5))


def test_mean_over_tasks_by_hand() -> None:
    point, interval = metrics.mean_over_tasks(
        {"a": TaskScores([1, 0, 1, 1], ["x", "y", "x", "z"]), "b": TaskScores([0, 1], ["p", "q"])},
        500,
        seed=3,
    )
    assert point == (0.75 + 0.5) / 2
    assert 0 <= interval.low <= point <= interval.high <= 1


def test_rows_that_share_any_key_share_a_cluster() -> None:
    keys = [
        {"clip": "1", "actor": "a"},
        {"clip": "2", "actor": "a"},
        {"clip": "2"},
        {"clip": "3"},
        {},
        {"clip": ""},
    ]
    groups = metrics.linked_groups(keys, ["u0", "u1", "u2", "u3", "u4", "u5"])
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 4


def test_intervals_do_not_depend_on_the_order_of_the_rows() -> None:
    keys, values = ["b", "a", "c", "a"], [1.0, 0.0, 1.0, 1.0]
    order = [3, 1, 0, 2]
    first = metrics.bootstrap_interval(values, metrics.cluster_ids(keys), 300, seed=5)
    second = metrics.bootstrap_interval(
        [values[i] for i in order], metrics.cluster_ids([keys[i] for i in order]), 300, seed=5
    )
    assert first == second


answers = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(answers, st.integers(0, 9))
def test_intervals_hold_for_any_answers(rows: list[tuple[bool, bool, int]], seed: int) -> None:
    ours, theirs, clusters = ([row[place] for row in rows] for place in range(3))
    ids = metrics.cluster_ids(clusters)
    low, high = metrics.bootstrap_interval(ours, ids, 200, seed)
    assert 0 <= low <= high <= 1
    diff, (gain_low, gain_high) = metrics.paired_difference(ours, theirs, ids, 200, seed)
    back, (loss_low, loss_high) = metrics.paired_difference(theirs, ours, ids, 200, seed)
    assert diff == pytest.approx(-back)
    assert (gain_low, gain_high) == pytest.approx((-loss_high, -loss_low))
    if all(ours):
        assert (low, high) == (1, 1)


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
