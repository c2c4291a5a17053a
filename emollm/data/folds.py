"""What a row of a k-fold source is in a protocol: a test, a validation or a training row.

Protocol k tests the rows of fold k. Where EmoBench was built with `splits.fold_val`, it validates on fold
(k + 1) mod n of each source with n folds (the number may differ between sources); all other rows with a fold are
trained on. Rows without a fold keep the split of their folder in every protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def validating_folds(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The number of folds of each k-fold source of which a protocol validates on one; empty without `fold_val`."""
    if not manifest.get("recipe", {}).get("splits", {}).get("fold_val"):
        return {}
    facts = manifest.get("source_facts", {})
    return {source: int(fact["folds"]) for source, fact in facts.items() if fact.get("folds")}


def part(protocol: int, split: str, fold: int | None, n_folds: int | None) -> str:
    """`test`, `val` or `train`: what a row is in a protocol. `n_folds`: that of its source in `validating_folds`."""
    if fold is None:
        return split
    if fold == protocol:
        return "test"
    return "val" if n_folds and fold == (protocol + 1) % n_folds else "train"


def validating_protocol(fold: int, n_folds: int) -> int:
    """The protocol that validates on this fold."""
    return (fold - 1) % n_folds
