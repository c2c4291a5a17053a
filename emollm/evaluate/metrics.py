"""Scores and their uncertainty: accuracy, macro-F1, UAR, AUROC, clustered bootstrap intervals, paired differences.

Pure functions of numpy arrays. Every interval is a 95 % percentile bootstrap over *clusters*: samples that share a
group key (drawings of one emoji, clips of one speaker) are drawn together, since they are not independent
(Davison & Hinkley 1997, §3.8; Field & Welsh 2007). All draws come from one seeded generator, so a score and the
paired difference to a baseline are computed on the same resamples.

Shapes: N samples, G clusters, B bootstrap draws, C labels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

LEVEL = 0.95
# Draws are made in blocks of at most this many weights (B_block × G), which bounds memory at 32 MB.
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


def accuracy(correct_N: Sequence[bool]) -> float:
    """The share of correct answers. Raises ValueError without samples: there is no accuracy of nothing."""
    if len(correct_N) == 0:
        raise ValueError("accuracy of 0 samples is undefined; leave the sub-task out instead")
    return float(sum(map(bool, correct_N)) / len(correct_N))


def macro_f1(gold: Sequence[str], answers: Sequence[str]) -> float:
    """The mean F1 over the labels that occur as gold; an answer outside of them is a miss of its gold label.

    Equal to scikit-learn's `f1_score(average="macro", labels=sorted(set(gold)), zero_division=0)`.
    """
    from sklearn.metrics import f1_score

    return float(
        f1_score(list(gold), list(answers), labels=sorted(set(gold)), average="macro", zero_division=0)
    )


def unweighted_average_recall(gold: Sequence[str], answers: Sequence[str]) -> float:
    """UAR: the mean recall over the labels that occur as gold (also called balanced accuracy)."""
    from sklearn.metrics import recall_score

    labels = sorted(set(gold))
    return float(recall_score(list(gold), list(answers), labels=labels, average="macro", zero_division=0))


def auroc(is_positive_N: Sequence[bool], score_N: Sequence[float]) -> float | None:
    """The area under the ROC curve; None where only one class occurs."""
    if len(set(map(bool, is_positive_N))) < 2:
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(list(map(bool, is_positive_N)), list(score_N)))


def confusion(
    gold: Sequence[str], answers: Sequence[str], labels: Sequence[str], other: str
) -> list[list[int]]:
    """Counts[gold label][answer], with one more column for answers outside of `labels` (shown as `other`)."""
    column = {label: index for index, label in enumerate([*labels, other])}
    counts = [[0] * len(column) for _ in labels]
    for expected, got in zip(gold, answers, strict=True):
        counts[column[expected]][column.get(got, column[other])] += 1
    return counts


def bootstrap_means(values_SN: FloatArray, clusters_N: IntArray, draws: int, seed: int) -> FloatArray:
    """Bootstrap distribution (S, B) of the means of S statistics over the same N samples, clusters drawn with replacement.

    A draw takes G clusters out of G; the mean is over the samples it holds (a ratio of sums, since clusters differ
    in size).
    """
    import numpy as np

    values_SN = np.atleast_2d(np.asarray(values_SN, dtype=np.float64))
    if values_SN.shape[1] != len(clusters_N) or not len(clusters_N):
        raise ValueError(
            f"{values_SN.shape[1]} values for {len(clusters_N)} cluster ids; one each is needed, at least one"
        )
    n_clusters = int(clusters_N.max()) + 1
    sizes_G = np.bincount(clusters_N, minlength=n_clusters).astype(np.float64)
    sums_SG = np.stack([np.bincount(clusters_N, weights=row, minlength=n_clusters) for row in values_SN])
    weights = _cluster_weights(n_clusters, draws, seed)
    return np.concatenate([(sums_SG @ block_BG.T) / (block_BG @ sizes_G) for block_BG in weights], axis=1)


def _cluster_weights(n_clusters: int, draws: int, seed: int) -> list[FloatArray]:
    """How often each cluster is in each draw, as blocks (B_block, G)."""
    import numpy as np

    if draws < 1:
        raise ValueError(f"bootstrap samples must be at least 1, not {draws}")
    generator = np.random.default_rng(seed)
    block = max(1, min(draws, _MAX_WEIGHTS // max(1, n_clusters)))
    shares = np.full(n_clusters, 1.0 / n_clusters)
    sizes = [min(block, draws - start) for start in range(0, draws, block)]
    return [generator.multinomial(n_clusters, shares, size=size).astype(np.float64) for size in sizes]


def percentile_interval(distribution_B: FloatArray) -> Interval:
    """The central 95 % of a bootstrap distribution (percentile method, linear between order statistics)."""
    import numpy as np

    tail = (1 - LEVEL) / 2
    low, high = np.quantile(distribution_B, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(values_N: Sequence[float], clusters_N: IntArray, draws: int, seed: int) -> Interval:
    """The 95 % interval of the mean of `values_N`."""
    import numpy as np

    return percentile_interval(
        bootstrap_means(np.asarray(values_N, dtype=np.float64)[None], clusters_N, draws, seed)[0]
    )


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
    return float(gain_N.mean()), bootstrap_interval(gain_N.tolist(), clusters_N, draws, seed)


class TaskScores(NamedTuple):
    """Correctness (N) and cluster names (N) of one sub-task, for a mean over sub-tasks."""

    correct: Sequence[float]
    clusters: Sequence[str]


def mean_over_tasks(tasks: dict[str, TaskScores], draws: int, seed: int) -> tuple[float, Interval]:
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
        weights_BG = np.concatenate(_cluster_weights(len(clusters), draws, seed + number))
        place = {cluster: index for index, cluster in enumerate(clusters)}
        for name in names:
            pairs = [
                (place[c], v)
                for c, v in zip(tasks[name].clusters, tasks[name].correct, strict=True)
                if c in place
            ]
            index_N = np.array([index for index, _ in pairs])
            value_N = np.array([float(value) for _, value in pairs])
            sums[name] += weights_BG @ np.bincount(index_N, weights=value_N, minlength=len(clusters))
            sizes[name] += weights_BG @ np.bincount(index_N, minlength=len(clusters))
    distribution_B = np.mean([sums[name] / sizes[name] for name in tasks], axis=0)
    point = float(np.mean([np.mean(np.asarray(task.correct, dtype=np.float64)) for task in tasks.values()]))
    return point, percentile_interval(distribution_B)


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats of a JSON value rounded, so that a record does not carry noise of the last bits."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner, digits) for inner in value]
    return value
