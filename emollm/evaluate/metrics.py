"""Scores of answers against gold labels: accuracy, macro-F1, UAR and WAR, AUROC, calibration, and what is taken for what.

Pure functions without uncertainty; intervals and tests are in `statistics`. Definitions for the cases that textbooks leave
open: a macro average runs over the labels that occur as gold in the samples at hand, so a label without a sample neither
adds a 0 nor a 1; an answer outside of these labels (invalid answers too) is a miss of its gold label and no false alarm of
another; AUROC is None with one class only, and a tie between a positive and a negative counts half; no score is defined for
0 samples.

Shapes: N samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

# Equal widths over 0 to 1, a bin holding its upper bound; as in Guo et al. 2017, "On calibration of modern neural networks".
CALIBRATION_BINS = 15


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
    """UAR: the mean recall over the labels that occur as gold (also called balanced accuracy).

    The weighted average recall (WAR), where a label weighs as often as it is gold, is the accuracy.
    """
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


class LabelScore(NamedTuple):
    """`precision` is None where the label was never the answer."""

    n: int
    recall: float
    precision: float | None
    f1: float


def by_label(gold: Sequence[str], answers: Sequence[str]) -> dict[str, LabelScore]:
    """For each label that occurs as gold: samples, recall, precision, F1; sorted by name."""
    n, said, hits = (
        Counter(gold),
        Counter(answers),
        Counter(g for g, a in zip(gold, answers, strict=True) if g == a),
    )
    return {
        label: LabelScore(
            n[label],
            hits[label] / n[label],
            hits[label] / said[label] if said[label] else None,
            2 * hits[label] / (n[label] + said[label]),
        )
        for label in sorted(n)
    }


class Bin(NamedTuple):
    """Answers whose probability is above `low` and at most `high`; the means are None where there is none."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def calibration_bin(confidence: float, bins: int = CALIBRATION_BINS) -> int:
    """The bin of a probability: bin k holds k/bins < p <= (k+1)/bins, and the first one 0 as well."""
    if not 0 <= confidence <= 1 + 1e-9:  # also refuses nan
        raise ValueError(f"confidence {confidence} is no probability; give a number from 0 to 1")
    return min(bins - 1, max(0, math.ceil(confidence * bins - 1e-9) - 1))


def calibration(
    correct_N: Sequence[bool], confidence_N: Sequence[float], bins: int = CALIBRATION_BINS
) -> list[Bin]:
    """How often answers of each probability are right."""
    members: list[list[int]] = [[] for _ in range(bins)]
    for number, confidence in enumerate(confidence_N):
        members[calibration_bin(confidence, bins)].append(number)
    return [
        Bin(
            k / bins,
            (k + 1) / bins,
            len(inside),
            math.fsum(confidence_N[i] for i in inside) / len(inside) if inside else None,
            sum(bool(correct_N[i]) for i in inside) / len(inside) if inside else None,
        )
        for k, inside in enumerate(members)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: |accuracy - mean confidence| of the bins, weighted by their samples. Raises ValueError without samples."""
    total = sum(part.n for part in bins)
    if not total:
        raise ValueError("the calibration error of 0 samples is undefined")
    gaps = [part.n * abs(part.accuracy - part.confidence) for part in bins
            if part.accuracy is not None and part.confidence is not None]  # fmt: skip
    return math.fsum(gaps) / total


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats of a JSON value rounded, so that a record does not carry noise of the last bits."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner, digits) for inner in value]
    return value
