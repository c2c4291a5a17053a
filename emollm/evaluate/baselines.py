"""What the model is compared with: the majority answer, and a linear probe on the frozen vision tower.

The two other baselines are passes of models (`emollm.evaluate.plan`): `text_only` (the same trained model, media withheld)
and `untrained` (the model at step 0, with media). A style baseline for the demonstration cards (punctuation counts, tf-idf)
needs the card's text, which a Sample does not carry: its picture does. In a trial such counts alone reached .76 to .998,
which the report says beside those sub-tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emollm.evaluate.protocol import EvaluationError, Row, is_training_row, protocol_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Inverse regularisation strengths of the probe on standardised features, and how the best of them is found.
PROBE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
PROBE_INNER_FOLDS = 4


def majority_answers(rows: Sequence[Row], asked: Sequence[Row]) -> list[str]:
    """For each asked row the most frequent answer among the rows its model was trained on, same source and sub-task.

    A source that has no training rows of its own takes the sub-task's; of equally frequent answers the first by name
    counts. Raises EvaluationError where a sub-task has no training row at all.
    """
    by_source: dict[tuple[int, str, str], Counter[str]] = {}
    by_task: dict[tuple[int, str], Counter[str]] = {}
    for protocol in sorted({protocol_of(row) for row in asked}):
        for row in rows:
            if is_training_row(row, protocol):
                by_source.setdefault((protocol, row.source, row.sub_task), Counter())[row.answer] += 1
                by_task.setdefault((protocol, row.sub_task), Counter())[row.answer] += 1
    answers = []
    for row in asked:
        protocol = protocol_of(row)
        counts = by_source.get((protocol, row.source, row.sub_task)) or by_task.get((protocol, row.sub_task))
        if not counts:
            raise EvaluationError(
                f"{row.uid}: protocol {protocol} has no training row of {row.sub_task}, so there is no majority answer; "
                "leave the majority baseline out of the recipe"
            )
        answers.append(min(counts, key=lambda label: (-counts[label], label)))
    return answers


def linear_probe_answers(
    rows: Sequence[Row],
    asked: Sequence[Row],
    feature_of: Mapping[str, NDArray[np.float32]],
    group_of: Mapping[str, str],
) -> list[str]:
    """For each asked row the answer of a logistic regression on mean features of the frozen vision tower.

    One regression per protocol and sub-task, fitted on the rows that protocol trains on; its regularisation is chosen there
    too, by cross-validation over groups. `feature_of` maps a medium's sha256 to its feature vector (D), `group_of` a uid
    to its group. It shows what the pictures alone give to the simplest reader, and so where the data, not the model, is the
    ceiling. Raises EvaluationError where there is nothing to learn from.
    """
    import numpy as np

    found: dict[str, str] = {}
    for protocol, sub_task in sorted({(protocol_of(row), row.sub_task) for row in asked}):
        train = sorted(
            (row for row in rows if row.sub_task == sub_task and is_training_row(row, protocol)),
            key=lambda row: row.uid,
        )
        test = [row for row in asked if (protocol_of(row), row.sub_task) == (protocol, sub_task)]
        n_labels = len({row.answer for row in train})
        if n_labels < 2:
            raise EvaluationError(
                f"{sub_task}, protocol {protocol}: {n_labels} label(s) to train a linear probe on; set linear_probe=false"
            )
        features_ND = np.stack([feature_of[row.media_keys[0]] for row in train])
        probe = _fitted_probe(
            features_ND, [row.answer for row in train], [group_of[row.uid] for row in train]
        )
        said = probe.predict(np.stack([feature_of[row.media_keys[0]] for row in test]))
        found.update(zip((row.uid for row in test), map(str, said), strict=True))
    return [found[row.uid] for row in asked]


def _fitted_probe(features_ND: NDArray[np.float32], answers: list[str], groups: list[str]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_STRENGTHS[1], max_iter=2000))
    inner = min(PROBE_INNER_FOLDS, len(set(groups)))
    if inner < 2:
        return probe.fit(features_ND, answers)
    grid = {"logisticregression__C": list(PROBE_STRENGTHS)}
    return GridSearchCV(probe, grid, cv=GroupKFold(inner)).fit(features_ND, answers, groups=groups)
