"""What a build would do: annotations are read and media files are looked at (size and time), nothing is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from dataset_build import decide, leakage, ledger, plan, schema
from dataset_build.plan import Fingerprint
from dataset_build.progress import data_size
from dataset_build.recipe import BuildRecipe, MediaSettings
from dataset_build.schema import MediaRef, Record, Reject

# For the estimate of the output: bytes per pixel of a JPEG at high quality without chroma subsampling, bytes of a
# second of 16 kHz mono sound in 16 bits, seconds of a clip whose range the annotation does not give, and what the
# columns of a row take without its media.
_BYTES_PER_PIXEL = 0.5
_BYTES_PER_SECOND = 32_000
_USUAL_CLIP_S = 4.0
_ROW_BYTES = 600

# Where rows count whose split is drawn only by the build.
UNDRAWN = {"folds": "in folds", "shares": "to draw"}


@dataclass
class Tally:
    """One source and split. `files` counts each media file once, `n_bytes` is their size on disk; `absent` is the
    number of records with a medium that cannot be used; `estimate` is about what the samples will take."""

    records: int = 0
    rejects: int = 0  # rows with faults, already seen in the annotation
    by_rule: int = 0  # rows that the source's own rule leaves out
    files: int = 0
    n_bytes: int = 0
    absent: int = 0
    estimate: int = 0
    seen: set[bytes] = field(default_factory=set, repr=False)  # digests of the file names


def run(recipe: BuildRecipe) -> dict[str, dict[str, Tally]]:
    """Read, count, print a table; returns the counts per source and split.

    Raises BuildError for a forbidden pair of sources or a folder that is not the source.
    """
    allowed = leakage.check_pairs([spec.name for spec in recipe.sources], recipe.leakage.allow_pairs)
    facts = decide.facts(recipe)
    tallies: dict[str, dict[str, Tally]] = {spec.name: {} for spec in recipe.sources}

    def tally(source: str, split: str | None) -> Tally:
        mode = facts[source].mode
        name = UNDRAWN[mode] if mode in UNDRAWN else ledger.split_of_reject(split)
        return tallies[source].setdefault(name, Tally())

    def watch(record: Record, fingerprints: list[Fingerprint]) -> None:
        _count(tally(record.source, record.split), record, fingerprints, recipe.media)

    made = plan.make(recipe, None, watch=watch)
    for reject in made.rejects:
        _count_reject(tally(reject.source, reject.split), reject)
    for warning in leakage.warnings(allowed):
        print(f"warning: {warning}")
    print(table(tallies), flush=True)
    for line in over_budget(tallies, recipe.reject_budget):
        print(f"warning: {line}")
    print(
        f"To {recipe.out}: {len(made.shards)} shards of at most {recipe.shard_rows} rows. The output is an estimate from file sizes and the "
        "media settings: look-alikes and broken files are found only by the build. Sources without val rows get some "
        f"carved from train by group ({recipe.splits.val_share:.0%}).",
        flush=True,
    )
    return tallies


def over_budget(tallies: dict[str, dict[str, Tally]], budget: float) -> Iterator[str]:
    """The sources that a build would refuse for what is known already: faulty rows and absent media."""
    for source, splits in tallies.items():
        lost = sum(one.rejects + one.absent for one in splits.values())
        rows = sum(one.records - one.by_rule for one in splits.values())
        if lost > budget * rows:
            yield (
                f"the build would fail: {source} loses {lost:,} of {rows:,} rows, the recipe's reject_budget is "
                f"{budget:.2%}; `python -m dataset_build check {source} ROOT` names them"
            )


def table(tallies: dict[str, dict[str, Tally]]) -> str:
    """The counts as text."""
    head = [
        "source",
        "split",
        "records",
        "faulty",
        "by rule",
        "files",
        "on disk",
        "no medium",
        "output, about",
    ]
    rows, total = [head], Tally()
    for source, splits in tallies.items():
        for split in sorted(splits, key=lambda name: (*schema.SPLITS, *UNDRAWN.values()).index(name)):
            one = splits[split]
            rows.append(_line(source, split, one))
            for name in ("records", "rejects", "by_rule", "files", "n_bytes", "absent", "estimate"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
    return ledger.aligned([*rows, _line("all", "", total)], right_from=2)


def _line(source: str, split: str, one: Tally) -> list[str]:
    counts = (f"{number:,}" for number in (one.records, one.rejects, one.by_rule, one.files))
    return [source, split, *counts, data_size(one.n_bytes), f"{one.absent:,}", data_size(one.estimate)]


def _count(one: Tally, record: Record, fingerprints: list[Fingerprint], settings: MediaSettings) -> None:
    one.records += 1
    one.absent += any(
        isinstance(found, str) or (ref.pixels is None and found[0] == 0)
        for ref, found in zip(record.media, fingerprints)
    )
    one.estimate += _ROW_BYTES
    if not record.media:
        one.estimate += int(
            settings.max_side_px**2 * _BYTES_PER_PIXEL / 4
        )  # a text becomes a card of few colours
    for ref, found in zip(record.media, fingerprints):
        if isinstance(found, str):
            continue
        size = found[0] if isinstance(found[0], int) else 0
        digest = hashlib.blake2b(ref.path.encode(), digest_size=12).digest()
        if digest not in one.seen:
            one.seen.add(digest)
            one.files += 1
            one.n_bytes += size
        one.estimate += int(_estimate(ref, size, settings))


def _estimate(ref: MediaRef, size: int, settings: MediaSettings) -> float:
    if ref.kind == "image":
        return min(size, settings.max_side_px**2 * _BYTES_PER_PIXEL)
    seconds = _USUAL_CLIP_S if ref.end_s is None else max(0.0, ref.end_s - (ref.start_s or 0.0))
    sound = seconds * _BYTES_PER_SECOND
    frames = (
        settings.video_frames * settings.frame_side_px**2 * _BYTES_PER_PIXEL if ref.kind == "video" else 0
    )
    return frames + sound


def _count_reject(one: Tally, reject: Reject) -> None:
    one.records += 1
    if reject.reason in schema.REASONS_OUTSIDE_BUDGET:
        one.by_rule += 1
    else:
        one.rejects += 1
