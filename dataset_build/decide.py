"""The global decision of a build: where each row goes and which rows give way, on hash columns alone; and its record.

The order matters: groups are tied first, then every row gets its place, then twins are judged by where they lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import dedup, leakage, sources, splits
from dataset_build.index import Index, SourceFacts
from dataset_build.recipe import BuildRecipe
from dataset_build.sources import base

if TYPE_CHECKING:
    import numpy as np


class Decision(NamedTuple):
    """What was decided: the place of each row, the rows that give way, the groups that were tied, contradictions."""

    places: splits.Places
    removed: dict[int, dedup.Removal]
    ties: list[dedup.Tie]
    conflicts: list[dedup.Conflict]


def facts(recipe: BuildRecipe) -> dict[str, SourceFacts]:
    """The facts of the recipe's sources, each split as its options say."""
    found = {}
    for spec in recipe.sources:
        adapter = sources.adapter(spec.name)
        mode = base.split_mode(adapter, recipe.source_options(spec))
        found[spec.name] = SourceFacts(mode, adapter.GROUP_KEY, adapter.PICTURES)
    return found


def decide(recipe: BuildRecipe, index: Index) -> Decision:
    """Ties between groups, then the place of every row, then the rows that give way to a twin."""
    ties = dedup.ties(index, _of_drawn_folds(index), recipe.dedup.near_bits)
    shares = splits.Shares(
        recipe.splits.folds,
        recipe.splits.test_share,
        recipe.splits.val_share,
        recipe.seed,
        recipe.splits.fold_val,
    )
    places = splits.assign(index, shares, _group_codes(index, ties))
    overlaps = leakage.text_overlaps([spec.name for spec in recipe.sources])
    rules = dedup.Rules(recipe.dedup.near_bits, recipe.dedup.within_split_near, overlaps)
    removed, conflicts = dedup.verdicts(index, places, rules)
    return Decision(places, removed, ties, conflicts)


def kept(index: Index, decision: Decision) -> np.ndarray:
    """The numbers of the rows that stay, ascending."""
    import numpy as np

    stays = np.ones(len(index), bool)
    stays[list(decision.removed)] = False
    return np.flatnonzero(stays)


def duplicate_rows(index: Index, decision: Decision) -> list[dict[str, Any]]:
    """The rows of duplicates.parquet, in the order of their uids."""
    rows = [
        {
            "uid": index.uid(removal.row),
            "source": index.source_of(removal.row),
            "split": decision.places.of(removal.row).split,
            "sub_task": index.sub_task_of(removal.row),
            "twin_uid": index.uid(removal.twin),
            "twin_split": decision.places.of(removal.twin).split,
            "rule": removal.rule,
        }
        for removal in decision.removed.values()
    ]
    return sorted(rows, key=lambda row: row["uid"])


def leakage_report(recipe: BuildRecipe, index: Index, decision: Decision) -> dict[str, Any]:
    """The content of leakage.json.

    `removed`: rows that gave way to a twin in another split, with both uids and the rule. `tied_groups`: groups that
    share a fold because of a twin. `conflicting_labels`: rows of one split with the same bytes and text but two labels;
    both are kept. `straddling_groups`: groups that a source's own split tears apart. `reported_only`: texts that a
    source repeats across its splits. `shared_shows`: held-out rows whose show another source trains on. `notes`: what
    the register knows of these sources. `allowed_pairs`: forbidden pairs that the recipe accepts.
    """
    names = [spec.name for spec in recipe.sources]
    across = {index.uid(row) for row, removal in decision.removed.items() if removal.across_splits}
    allowed = leakage.check_pairs(names, recipe.leakage.allow_pairs)
    return {
        "near_bits": recipe.dedup.near_bits,
        "removed": [row for row in duplicate_rows(index, decision) if row["uid"] in across],
        "tied_groups": [
            {"group_key": tie.group_key, "groups": tie.groups, "uids": tie.uids, "rule": tie.rule}
            for tie in decision.ties
        ],
        "conflicting_labels": sorted(
            (_conflict(index, decision, conflict) for conflict in decision.conflicts),
            key=lambda entry: entry["uids"],
        ),
        "straddling_groups": splits.straddling(index, decision.places),
        "reported_only": leakage.repeated_texts(index, decision.places),
        "shared_shows": leakage.shared_shows(index, decision.places),
        "notes": leakage.notes(names),
        "allowed_pairs": leakage.warnings(allowed),
    }


def _conflict(index: Index, decision: Decision, conflict: dedup.Conflict) -> dict[str, Any]:
    pair = sorted((conflict.row, conflict.twin), key=lambda row: index.uid_rank[row])
    return {
        "uids": [index.uid(row) for row in pair],
        "labels": [index.labels[index.label[row]].partition("/")[2] for row in pair],
        "sub_task": index.sub_task_of(conflict.row),
        "split": decision.places.of(conflict.row).split,
        "fold": decision.places.of(conflict.row).fold,
    }


def _of_drawn_folds(index: Index) -> np.ndarray:
    """The rows of k-fold sources that publish no folds of their own."""
    import numpy as np

    names = [name for name in index.source_names if index.facts[name].mode == "folds"]
    drawn = [name for name in names if not (index.fold[index.rows_of([name])] >= 0).any()]
    return index.rows_of(drawn).astype(np.int32)


def _group_codes(index: Index, ties: list[dedup.Tie]) -> dict[int, int]:
    """Tied groups as codes: each group → the smallest it is tied to."""
    tied = dedup.tied_groups(ties)
    wanted = {name for _, name in tied}
    codes: dict[tuple[str, str], int] = {}
    for code, name in enumerate(index.group_names.to_pylist()):
        if name in wanted:
            codes.setdefault((index.group_keys[code], name), code)
    return {codes[group]: codes[group[0], smallest] for group, smallest in tied.items()}
