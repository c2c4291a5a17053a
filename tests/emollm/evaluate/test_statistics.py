"""Intervals and tests by hand, by enumeration, by slow recomputation, against scipy, and what holds whatever the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from emollm.evaluate import metrics, statistics
from emollm.evaluate.statistics import TaskScores


def test_bootstrap_converges_to_the_exact_distribution_of_three_clusters() -> None:
    """All 27 draws of 3 clusters out of 3, by hand, against the simulated quantiles and mean."""
    values, clusters = [1.0, 1.0, 0.0, 1.0, 0.0], np.array([0, 0, 1, 1, 2])
    sums, sizes = [2.0, 1.0, 0.0], [2.0, 2.0, 1.0]
    exact = [
        sum(sums[c] for c in draw) / sum(sizes[c] for c in draw)
        for draw in itertools.product(range(3), repeat=3)
    ]
    mean = statistics.mean_of(values, clusters, 3)
    simulated = statistics.distributions({"mean": mean}, 3, 200_000, seed=0)["mean"]
    assert simulated.mean() == pytest.approx(np.mean(exact), abs=2e-3)
    for value in sorted(set(exact)):
        share = np.mean(np.isclose(simulated, value))
        assert share == pytest.approx(np.mean(np.isclose(exact, value)), abs=4e-3)


def test_cluster_of_copies_is_as_uncertain_as_one_sample() -> None:
    once = statistics.bootstrap_interval([1, 0, 1, 0], np.arange(4), 4000, seed=0)
    copied = statistics.bootstrap_interval([1, 0, 1, 0] * 50, np.tile(np.arange(4), 50), 4000, seed=0)
    naive = statistics.bootstrap_interval([1, 0, 1, 0] * 50, np.arange(200), 4000, seed=0)
    assert copied == once
    assert naive.high - naive.low < 0.2 < once.high - once.low


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        correct = generator.random(80) < 0.4
        low, high = statistics.bootstrap_interval(correct, np.arange(80), 400, seed)
        covered += low <= 0.4 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_difference_by_hand() -> None:
    ours, theirs = [True, True, False, True], [True, False, False, False]
    diff, interval = statistics.paired_difference(ours, theirs, np.arange(4), 4000, seed=0)
    assert diff == 0.5
    assert interval == (0.0, 1.0)
    same, nothing = statistics.paired_difference(ours, ours, np.arange(4), 100, seed=0)
    assert (same, nothing) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="same samples"):
        statistics.paired_difference(ours, theirs[:3], np.arange(4), 100, seed=0)


def test_mean_over_tasks_draws_a_shared_cluster_for_all_its_tasks() -> None:
    """Two tasks on the same clusters with the same answers are exactly one task; opposite answers cancel."""
    names = [f"e{n}" for n in range(6)]
    correct = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    one = statistics.mean_over_tasks({"a": TaskScores(correct, names)}, 2000, seed=0)
    two = statistics.mean_over_tasks(
        {"a": TaskScores(correct, names), "b": TaskScores(correct, names)}, 2000, seed=0
    )
    opposite = TaskScores([1 - value for value in correct], names)
    none = statistics.mean_over_tasks({"a": TaskScores(correct, names), "b": opposite}, 2000, seed=0)
    assert one == two
    assert none == (0.5, (0.5, 0.5))


def test_mean_over_tasks_by_hand() -> None:
    point, interval = statistics.mean_over_tasks(
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
    groups = statistics.linked_groups(keys, ["u0", "u1", "u2", "u3", "u4", "u5"])
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 4


def test_intervals_do_not_depend_on_the_order_of_the_rows() -> None:
    keys, values = ["b", "a", "c", "a"], [1.0, 0.0, 1.0, 1.0]
    order = [3, 1, 0, 2]
    first = statistics.bootstrap_interval(values, statistics.cluster_ids(keys), 300, seed=5)
    second = statistics.bootstrap_interval(
        [values[i] for i in order], statistics.cluster_ids([keys[i] for i in order]), 300, seed=5
    )
    assert first == second


answers = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(answers, st.integers(0, 9))
def test_intervals_hold_for_any_answers(rows: list[tuple[bool, bool, int]], seed: int) -> None:
    ours, theirs, clusters = ([row[place] for row in rows] for place in range(3))
    ids = statistics.cluster_ids(clusters)
    low, high = statistics.bootstrap_interval(ours, ids, 200, seed)
    assert 0 <= low <= high <= 1
    diff, (gain_low, gain_high) = statistics.paired_difference(ours, theirs, ids, 200, seed)
    back, (loss_low, loss_high) = statistics.paired_difference(theirs, ours, ids, 200, seed)
    assert diff == pytest.approx(-back)
    assert (gain_low, gain_high) == pytest.approx((-loss_high, -loss_low))
    if all(ours):
        assert (low, high) == (1, 1)


def test_mcnemar_by_hand() -> None:
    """5 against 1 samples: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64."""
    ours = [True] * 5 + [False] + [True] * 3 + [False] * 4
    theirs = [False] * 5 + [True] + [True] * 3 + [False] * 4
    assert statistics.mcnemar(ours, theirs) == (5, 1, pytest.approx(14 / 64))
    assert statistics.mcnemar([True, False], [False, True]).p == 1.0
    assert statistics.mcnemar([True], [True]) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="same samples"):
        statistics.mcnemar([True], [])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_scipy(first: int, second: int) -> None:
    ours = [True] * first + [False] * second
    test = statistics.mcnemar(ours, [not right for right in ours])
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert test.p == pytest.approx(expected, rel=1e-9)
    assert test.p == statistics.mcnemar([not right for right in ours], ours).p


def test_mcnemar_of_many_samples_neither_overflows_nor_underflows() -> None:
    many = statistics.mcnemar([True] * 25_200 + [False] * 24_800, [False] * 25_200 + [True] * 24_800)
    assert many.p == pytest.approx(scipy.stats.binomtest(25_200, 50_000).pvalue, rel=1e-6)
    assert statistics.mcnemar([True] * 5000, [False] * 5000).p == 0.0


def _slowly(score: object, clusters: np.ndarray, draws: int, seed: int) -> list[float]:
    """The same draws, each score computed anew on the rows they hold."""
    rows_of = [np.flatnonzero(clusters == cluster) for cluster in range(clusters.max() + 1)]
    found = []
    for weights in np.concatenate(list(statistics._draws(len(rows_of), draws, seed))):
        rows = np.concatenate([np.tile(rows_of[c], int(times)) for c, times in enumerate(weights) if times])
        found.append(score(rows))  # type: ignore[operator]
    return found


@pytest.mark.parametrize("seed", range(2))
def test_every_statistic_is_the_score_itself_on_the_drawn_rows(seed: int) -> None:
    """Macro-F1, UAR, AUROC, ECE and the mean, with labels that are missing from some draws and probabilities that tie."""
    generator = np.random.default_rng(seed)
    clusters = np.sort(generator.integers(0, 7, size=40))
    clusters = np.unique(clusters, return_inverse=True)[1]
    gold = generator.choice(["a", "b", "c", "d"], size=40, p=[0.6, 0.3, 0.05, 0.05])
    said = np.where(generator.random(40) < 0.5, gold, generator.choice(["a", "b", "c", "(other)"], size=40))
    sure = generator.integers(1, 9, size=40) / 8
    yes, right, n = gold == "a", gold == said, int(clusters.max()) + 1
    bins = [metrics.calibration_bin(p) for p in sure]
    fast = statistics.distributions(
        {
            **statistics.label_statistics(list(gold), list(said), clusters, n),
            "auroc": statistics.auroc_of(list(yes), list(sure), clusters),
            "ece": statistics.calibration_error_of(list(right), bins, list(sure), clusters, n),
            "mean": statistics.mean_of(list(right), clusters, n),
        },
        n, 30, seed,
    )  # fmt: skip
    slow = {
        "macro_f1": lambda rows: metrics.macro_f1(gold[rows], said[rows]),
        "uar": lambda rows: metrics.unweighted_average_recall(gold[rows], said[rows]),
        "auroc": lambda rows: metrics.auroc(yes[rows], sure[rows]),
        "ece": lambda rows: metrics.expected_calibration_error(metrics.calibration(right[rows], sure[rows])),
        "mean": lambda rows: right[rows].mean(),
    }
    for name, score in slow.items():
        expected = [np.nan if value is None else value for value in _slowly(score, clusters, 30, seed)]
        np.testing.assert_allclose(fast[name], expected, atol=1e-12, err_msg=name)


def test_interval_of_independent_samples_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).random(60) < 0.7
    ours = statistics.bootstrap_interval(values, np.arange(60), 20_000, seed=0)
    theirs = scipy.stats.bootstrap(
        (values.astype(float),), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.012)  # one step of the mean is 1/60


def test_a_score_that_most_draws_leave_undefined_has_no_interval() -> None:
    rare = [True] + [False] * 9  # drawn in 1 - (9/10)^10 = 65 % of the draws
    auroc = statistics.auroc_of(rare, np.arange(10.0), np.arange(10))
    drawn = statistics.distributions({"auroc": auroc}, 10, 4000, 0)["auroc"]
    assert np.isnan(drawn).mean() == pytest.approx(0.9**10, abs=0.03)
    assert statistics.percentile_interval(drawn) is not None
    assert statistics.percentile_interval(np.array([0.5, np.nan, np.nan])) is None
    assert statistics.percentile_interval(np.array([])) is None


def test_one_cluster_has_an_interval_without_width() -> None:
    assert statistics.bootstrap_interval([1, 0], np.array([0, 0]), 100, seed=0) == (0.5, 0.5)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by making draws in blocks; every draw is whole, and their number is exact."""
    whole = statistics.bootstrap_interval([1, 0, 0, 1, 1], np.arange(5), 333, seed=2)
    monkeypatch.setattr(statistics, "_MAX_WEIGHTS", 50)
    assert [len(block) for block in statistics._draws(5, 23, 0)] == [10, 10, 3]
    assert all((block.sum(axis=1) == 5).all() for block in statistics._draws(5, 23, 0))
    assert statistics.bootstrap_interval([1, 0, 0, 1, 1], np.arange(5), 333, seed=2) == whole
