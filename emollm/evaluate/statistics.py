"""The uncertainty of scores: clustered bootstrap intervals, paired differences, and the exact McNemar test.

Every interval is a 95 % percentile bootstrap over *clusters*: samples that share a group key (drawings of one emoji, clips of
one video or speaker) or a medium are drawn together, since they are not independent (Davison & Hinkley 1997, section 3.8; Field &
Welsh 2007). A draw takes G clusters out of G with replacement and computes the score anew on the samples it holds, so a mean
is a ratio of sums. All statistics of one call are computed on the same draws, so differences between them are paired. A draw
on which a score is undefined (AUROC without a positive) is left out; where that is more than half of the draws there is no
interval. With one cluster every draw is the sample itself: the interval has no width, and says nothing.

Shapes: N samples, G clusters, B bootstrap draws (b of them in a block), L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]
    # How often each cluster is in each draw (b, G) -> the statistic of each draw (b), nan where it is undefined.
    Statistic = Callable[[FloatArray], FloatArray]

LEVEL = 0.95
# Draws are made in blocks of at most this many weights (b x G), which bounds memory at about 32 MB an array.
_MAX_WEIGHTS = 4_000_000


class Interval(NamedTuple):
    low: float
    high: float


def cluster_ids(keys: Sequence[Hashable]) -> IntArray:
    """`keys` as integers 0..G-1, numbered by sorted text of the key, so that the order of the rows has no influence."""
    import numpy as np

    number = {key: index for index, key in enumerate(sorted(set(keys), key=str))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def linked_groups(group_keys: Sequence[dict[str, str]], uids: Sequence[str]) -> list[str]:
    """One cluster name per row: rows that share any `key=value` pair, directly or through other rows, share a cluster.

    A row without group keys is a cluster of its own. The name is the smallest pair (or uid) of the cluster.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    anchors = []
    for keys, uid in zip(group_keys, uids, strict=True):
        pairs = sorted(f"{key}={value}" for key, value in keys.items() if value not in ("", None)) or [
            f"uid={uid}"
        ]
        anchors.append(pairs[0])
        for pair in pairs:
            first, second = sorted((root(pairs[0]), root(pair)))
            parent[second] = first
    return [root(anchor) for anchor in anchors]


def _draws(n_clusters: int, draws: int, seed: int) -> Iterator[FloatArray]:
    """How often each cluster is in each draw, in blocks (b, G)."""
    import numpy as np

    if draws < 1:
        raise ValueError(f"bootstrap samples must be at least 1, not {draws}")
    generator = np.random.default_rng(seed)
    block = max(1, min(draws, _MAX_WEIGHTS // max(1, n_clusters)))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        chosen_bG = generator.integers(0, n_clusters, size=(size, n_clusters))
        chosen_bG += n_clusters * np.arange(size)[:, None]
        counts = np.bincount(chosen_bG.ravel(), minlength=size * n_clusters)
        yield counts.reshape(size, n_clusters).astype(np.float64)


def distributions(
    statistics: Mapping[str, Statistic], n_clusters: int, draws: int, seed: int
) -> dict[str, FloatArray]:
    """The bootstrap distribution (B) of each statistic, all on the same draws."""
    import numpy as np

    found: dict[str, list[FloatArray]] = {name: [] for name in statistics}
    for weights_bG in _draws(n_clusters, draws, seed):
        for name, statistic in statistics.items():
            found[name].append(statistic(weights_bG))
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def percentile_interval(distribution_B: FloatArray) -> Interval | None:
    """The central 95 % of a bootstrap distribution (percentile method, linear between order statistics).

    Undefined draws (nan) are left out; None where they are more than half.
    """
    import numpy as np

    defined = distribution_B[~np.isnan(distribution_B)]
    if 2 * len(defined) < len(distribution_B) or not len(defined):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _per_cluster(values_NK: FloatArray, clusters_N: IntArray, n_clusters: int) -> FloatArray:
    """Sums (G, K) of the rows of each cluster."""
    import numpy as np

    return np.stack(
        [np.bincount(clusters_N, weights=column, minlength=n_clusters) for column in values_NK.T], 1
    )


def mean_of(values_N: Sequence[float] | FloatArray, clusters_N: IntArray, n_clusters: int) -> Statistic:
    """The mean of `values_N`."""
    import numpy as np

    values = np.asarray(values_N, dtype=np.float64)
    if len(values) != len(clusters_N) or not len(values):
        raise ValueError(
            f"{len(values)} values for {len(clusters_N)} cluster ids; one each is needed, at least one"
        )
    sums_G2 = _per_cluster(np.stack([values, np.ones_like(values)], 1), clusters_N, n_clusters)

    def mean(weights_bG: FloatArray) -> FloatArray:
        drawn = weights_bG @ sums_G2
        return _divided(drawn[:, 0], drawn[:, 1])

    return mean


def _divided(above: FloatArray, below: FloatArray) -> FloatArray:
    """`above / below`, nan where that is 0 / 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        result: FloatArray = above / below
    return result


def label_statistics(
    gold: Sequence[str], answers: Sequence[str], clusters_N: IntArray, n_clusters: int
) -> dict[str, Statistic]:
    """`macro_f1` and `uar`: in each draw over the labels that are gold in it, as the scores themselves are defined."""
    import numpy as np

    labels = sorted(set(gold))
    index = {label: number for number, label in enumerate(labels)}
    n = len(labels)
    counts_NK = np.zeros((len(gold), 3 * n))  # gold, said, hit per label
    for row, (right, said) in enumerate(zip(gold, answers, strict=True)):
        counts_NK[row, index[right]] = 1
        if said in index:
            counts_NK[row, n + index[said]] = 1
        if said == right:
            counts_NK[row, 2 * n + index[right]] = 1
    sums_GK = _per_cluster(counts_NK, clusters_N, n_clusters)

    def average(weights_bG: FloatArray, of_labels: Callable[..., FloatArray]) -> FloatArray:
        drawn = weights_bG @ sums_GK
        gold_bL, said_bL, hit_bL = drawn[:, :n], drawn[:, n : 2 * n], drawn[:, 2 * n :]
        values_bL = np.where(gold_bL > 0, of_labels(gold_bL, said_bL, hit_bL), 0.0)
        return values_bL.sum(axis=1) / (gold_bL > 0).sum(axis=1)

    return {
        "macro_f1": lambda weights: average(weights, lambda gold, said, hit: _divided(2 * hit, gold + said)),
        "uar": lambda weights: average(weights, lambda gold, said, hit: _divided(hit, gold)),
    }


def auroc_of(is_positive_N: Sequence[bool], score_N: Sequence[float], clusters_N: IntArray) -> Statistic:
    """The area under the ROC curve: the share of (positive, negative) pairs in order, ties counting half."""
    import numpy as np

    scores, place_N = np.unique(np.asarray(score_N, dtype=np.float64), return_inverse=True)
    order = np.argsort(place_N, kind="stable")
    starts = np.searchsorted(place_N[order], np.arange(len(scores)))
    positive = np.asarray(is_positive_N, dtype=bool)[order]
    cluster = clusters_N[order]

    def area(weights_bG: FloatArray) -> FloatArray:
        found = []
        step = max(1, _MAX_WEIGHTS // max(1, len(cluster)))
        for first in range(0, len(weights_bG), step):
            weights_bN = weights_bG[first : first + step][:, cluster]
            positive_bU = np.add.reduceat(weights_bN * positive, starts, axis=1)
            negative_bU = np.add.reduceat(weights_bN * ~positive, starts, axis=1)
            below_bU = np.cumsum(negative_bU, axis=1) - negative_bU / 2
            pairs = positive_bU.sum(axis=1) * negative_bU.sum(axis=1)
            found.append(_divided((positive_bU * below_bU).sum(axis=1), pairs))
        return np.concatenate(found)

    return area


def calibration_error_of(
    correct_N: Sequence[bool],
    bin_N: Sequence[int],
    confidence_N: Sequence[float],
    clusters_N: IntArray,
    n_clusters: int,
) -> Statistic:
    """ECE over fixed bins (`metrics.calibration_bin`). It cannot be negative, so draws lie somewhat above the estimate."""
    import numpy as np

    bins = max(bin_N) + 1
    excess_NK = np.zeros((len(bin_N), bins))
    excess_NK[np.arange(len(bin_N)), bin_N] = np.asarray(correct_N, dtype=np.float64) - np.asarray(
        confidence_N
    )
    sums_GK = _per_cluster(excess_NK, clusters_N, n_clusters)
    sizes_G = np.bincount(clusters_N, minlength=n_clusters).astype(np.float64)
    return lambda weights_bG: _divided(np.abs(weights_bG @ sums_GK).sum(axis=1), weights_bG @ sizes_G)


def bootstrap_interval(
    values_N: Sequence[float] | FloatArray, clusters_N: IntArray, draws: int, seed: int
) -> Interval:
    """The 95 % interval of the mean of `values_N`."""
    if not len(clusters_N):
        raise ValueError("an interval needs at least one value")
    n_clusters = int(clusters_N.max()) + 1
    mean = mean_of(values_N, clusters_N, n_clusters)
    interval = percentile_interval(distributions({"mean": mean}, n_clusters, draws, seed)["mean"])
    assert interval is not None  # a draw of clusters is never empty
    return interval


def paired_difference(
    ours_N: Sequence[bool], theirs_N: Sequence[bool], clusters_N: IntArray, draws: int, seed: int
) -> tuple[float, Interval]:
    """Accuracy of `ours` minus accuracy of `theirs` on the same samples, and its paired 95 % bootstrap interval."""
    import numpy as np

    if len(ours_N) != len(theirs_N):
        raise ValueError(
            f"a paired difference needs the same samples on both sides, not {len(ours_N)} and {len(theirs_N)}"
        )
    gain_N = np.asarray(ours_N, dtype=np.float64) - np.asarray(theirs_N, dtype=np.float64)
    return float(gain_N.mean()), bootstrap_interval(gain_N, clusters_N, draws, seed)


class McNemar(NamedTuple):
    """`only_first`, `only_second`: samples that one side alone got right. `p`: two-sided."""

    only_first: int
    only_second: int
    p: float


def mcnemar(ours_N: Sequence[bool], theirs_N: Sequence[bool]) -> McNemar:
    """The exact McNemar test: are samples that one side alone gets right equally often ours and theirs?

    Twice the smaller binomial tail (n = such samples, 1/2), at most 1; 1 where there is none. Computed in whole numbers, so
    no approximation enters. It takes samples as independent: where clusters hold several, read the paired interval.
    """
    if len(ours_N) != len(theirs_N):
        raise ValueError(
            f"McNemar's test needs the same samples on both sides, not {len(ours_N)} and {len(theirs_N)}"
        )
    pairs = [(bool(first), bool(second)) for first, second in zip(ours_N, theirs_N, strict=True)]
    first, second = pairs.count((True, False)), pairs.count((False, True))
    n, term, tail = first + second, 1, 0
    for k in range(min(first, second) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return McNemar(first, second, min(1.0, 2 * tail / 2**n))


class TaskScores(NamedTuple):
    """Correctness (N) and cluster names (N) of one sub-task, for a mean over sub-tasks."""

    correct: Sequence[float]
    clusters: Sequence[str]


def mean_over_tasks(tasks: Mapping[str, TaskScores], draws: int, seed: int) -> tuple[float, Interval]:
    """The arithmetic mean of sub-task accuracies and its 95 % interval.

    A cluster that serves several sub-tasks (one emoji asked in Emo-C and in Emo-O) is drawn for all of them at once.
    Clusters are drawn within strata of equal task membership, so that every draw holds samples of every sub-task.
    """
    import numpy as np

    membership: dict[str, set[str]] = {}
    for name, task in tasks.items():
        for cluster in task.clusters:
            membership.setdefault(cluster, set()).add(name)
    strata: dict[tuple[str, ...], list[str]] = {}
    for cluster in sorted(membership):
        strata.setdefault(tuple(sorted(membership[cluster])), []).append(cluster)
    sums = {name: np.zeros(draws) for name in tasks}
    sizes = {name: np.zeros(draws) for name in tasks}
    for number, (names, clusters) in enumerate(sorted(strata.items())):
        place = {cluster: index for index, cluster in enumerate(clusters)}
        of_task = {}
        for name in names:
            pairs = [
                (place[c], float(v))
                for c, v in zip(tasks[name].clusters, tasks[name].correct, strict=True)
                if c in place
            ]
            index_N = np.array([index for index, _ in pairs])
            of_task[name] = _per_cluster(np.array([(v, 1.0) for _, v in pairs]), index_N, len(clusters))
        start = 0
        for weights_bG in _draws(len(clusters), draws, seed + number):
            part = slice(start, start + len(weights_bG))
            start = part.stop
            for name, sums_G2 in of_task.items():
                drawn = weights_bG @ sums_G2
                sums[name][part] += drawn[:, 0]
                sizes[name][part] += drawn[:, 1]
    distribution_B = np.mean([sums[name] / sizes[name] for name in tasks], axis=0)
    point = float(np.mean([np.mean(np.asarray(task.correct, dtype=np.float64)) for task in tasks.values()]))
    interval = percentile_interval(distribution_B)
    assert interval is not None  # every draw holds samples of every sub-task
    return point, interval
