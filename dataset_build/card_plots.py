"""The plots of the dataset card, from its counts."""

from __future__ import annotations

from collections import Counter, defaultdict

from dataset_build import plots, schema
from dataset_build.card_counts import Stats
from dataset_build.labels import SUB_TASK_NAMES


def draw(stats: Stats) -> dict[str, bytes]:
    """PNG bytes by file name."""
    by_task: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    by_source: dict[str, Counter[str]] = defaultdict(Counter)
    for (sub_task, source, label, split), n in sorted(stats.labels.items()):
        by_task[SUB_TASK_NAMES[sub_task]][label][split] += n
        by_source[source][split] += n
    tasks = {title: by_task[title] for title in SUB_TASK_NAMES.values() if title in by_task}
    rejects: dict[str, Counter[str]] = defaultdict(Counter)
    for (source, reason), n in stats.faults.items():
        rejects[source][reason] += n
    for (source, _rule), n in (stats.rules + stats.unclear).items():
        rejects[source]["source_rule"] += n
    reasons = [name for name in schema.REJECT_REASONS if any(row[name] for row in rejects.values())]
    ordered = dict(sorted(by_source.items(), key=lambda item: (-item[1].total(), item[0])))
    return {
        "labels.png": plots.panels("Samples by label", tasks, schema.SPLITS, "samples"),
        "sources.png": plots.dots("Samples by source and split", ordered, schema.SPLITS, "samples"),
        "sizes.png": plots.ranges(
            "Longer side of the stored pictures and frames", dict(sorted(stats.sides.items())), "pixels"
        ),
        "rejects.png": plots.matrix(
            "Records left out, by source and reason", dict(sorted(rejects.items())), reasons, "records"
        ),
    }
