"""Is a folder the data set it should be? Rows against the published counts, media files against the rows, in seconds.

Works for every source through its adapter: annotations are read whole, every medium that a row names is looked up,
and the first bytes of an even sample of the files (or of all) are read. Nothing is decoded: a file that only breaks
while it is decoded is found by the build.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dataset_build import audio, decoder, ledger, media, quality, roots, schema, sources, storage
from dataset_build.errors import UsageError
from dataset_build.progress import Progress, data_size
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources.base import Adapter

# How many files are opened without `full`; of a remote root, where each costs a request.
SAMPLE, REMOTE_SAMPLE = 2_000, 50
_EXAMPLES = 5
_HEAD_BYTES = 4096
# What unlisted files are counted among; annotations, archives and notes are nobody's media.
_MEDIA_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm",
    ".flv", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv", ".wav", ".mp3", ".flac", ".m4a", ".ogg", ".aac",
)  # fmt: skip


@dataclass
class Tally:
    """How many of something, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, times: int = 1) -> None:
        self.count += times
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class Use:
    """A media file as rows name it: the first reference, that row's uid, and how many records need the file."""

    ref: MediaRef
    uid: str
    records: int = 0


@dataclass
class Checked:
    """What was found. `faults` are records that a build would reject, by reason; `left_out` rows left out by the source's
    own rule. `expected` holds published rows, `found` rows of the annotation (one a row, however many sub-tasks it
    serves), both by split, "all" for the sum."""

    source: str
    root: str
    expected: dict[str, int]
    found: Counter[str] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)  # by sub-task
    files_named: int = 0
    files_there: int = 0
    n_bytes: int = 0
    files_opened: int = 0
    faults: dict[str, Tally] = field(default_factory=dict)
    left_out: Tally = field(default_factory=Tally)
    unlisted: Tally = field(default_factory=Tally)

    @property
    def short(self) -> dict[str, tuple[int, int]]:
        """Splits with fewer rows than were published: (expected, found)."""
        return {name: (n, self.found[name]) for name, n in self.expected.items() if self.found[name] < n}

    @property
    def more(self) -> dict[str, tuple[int, int]]:
        """Splits with more rows than were published."""
        return {name: (n, self.found[name]) for name, n in self.expected.items() if self.found[name] > n}

    @property
    def fine(self) -> bool:
        """Whether every published row is there and a build would keep all that the source's rule does not leave out."""
        return not self.faults and not self.short and self.found["all"] > 0

    def as_json(self) -> dict[str, Any]:
        def tally(one: Tally) -> dict[str, Any]:
            return {"count": one.count, "examples": one.examples}

        return {
            "source": self.source,
            "root": self.root,
            "fine": self.fine,
            "rows": {
                name: {"expected": self.expected.get(name), "found": self.found[name]}
                for name in _splits(self)
            },
            "records": dict(self.items),
            "media": {
                "named": self.files_named,
                "there": self.files_there,
                "bytes": self.n_bytes,
                "opened": self.files_opened,
            },
            "faults": {reason: tally(one) for reason, one in sorted(self.faults.items())},
            "left_out_by_rule": tally(self.left_out),
            "unlisted": tally(self.unlisted),
        }


def check(name: str, root: str, options: Any, full: bool = False) -> Checked:
    """Look at the folder (or `s3://` prefix) of a source. Progress goes to standard error.

    Raises UsageError where the root is not there, BuildError where it holds no annotation of the source.
    """
    adapter = sources.adapter(name)
    if not storage.exists(root):
        raise UsageError(f"{root}: there is no such folder; {name} needs: {adapter.DOWNLOAD}")
    found = Checked(name, root, dict(adapter.EXPECTED))
    with contextlib.redirect_stdout(sys.stderr), storage.snapshot(root) as taken:
        refs = _read(found, adapter, root, options)
        there = _look_up(found, root, taken, refs)
        most = REMOTE_SAMPLE if storage.is_remote(root) else SAMPLE
        _open(found, root, _evenly(there, len(there) if full else most), refs)
        named = {posixpath.normpath(path) for path in refs}
        for path in storage.list_files(root):
            if path not in named and _is_media(path):
                found.unlisted.add(quality.escaped(path))
    if not any(
        split in found.found for split in schema.SPLITS
    ):  # not split in this way: only the sum compares
        found.expected = {split: n for split, n in found.expected.items() if split == "all"} or (
            {"all": sum(found.expected.values())} if found.expected else {}
        )
    return found


def _read(found: Checked, adapter: Adapter, root: str, options: Any) -> dict[str, Use]:
    """Count rows and rejects; returns the media that the good rows name, by path."""
    refs: dict[str, Use] = {}
    seen: set[bytes] = set()
    total = adapter.EXPECTED.get("all") or sum(adapter.EXPECTED.values())
    with Progress(f"reading {found.source}", total, "rows") as progress:
        for item, is_new_row in _rows(adapter.read(root, options)):
            found.items[item.sub_task] += 1
            if is_new_row:
                found.found["all"] += 1
                if item.split in schema.SPLITS:
                    found.found[item.split] += 1
                progress.advance()
            digest = hashlib.blake2b(item.uid.encode("utf-8", "replace"), digest_size=12).digest()
            if digest in seen:
                _fault(found, "duplicate_id", f"{item.uid}: an earlier row has this id")
                continue
            seen.add(digest)
            outcome = item if isinstance(item, Reject) else quality.check(item)
            if outcome is None and isinstance(item, Record):
                for ref in {ref.path: ref for ref in item.media if ref.pixels is None}.values():
                    refs.setdefault(ref.path, Use(ref, item.uid)).records += 1
            elif outcome is not None and outcome.reason in schema.REASONS_OUTSIDE_BUDGET:
                found.left_out.add(f"{outcome.uid}: {outcome.detail}")
            elif outcome is not None:
                _fault(found, outcome.reason, f"{outcome.uid}: {outcome.detail}")
        progress.total = progress.done
    return refs


def _rows(items: Iterable[Record | Reject]) -> Iterator[tuple[Record | Reject, bool]]:
    """Every item, and whether it begins a new row: the items of one row follow each other, one a sub-task."""
    last = ""
    served: set[str] = set()
    for item in items:
        row = item.uid.removesuffix(f":{item.sub_task}")
        is_new = row != last or item.sub_task in served
        if is_new:
            last, served = row, set()
        served.add(item.sub_task)
        yield item, is_new


def _look_up(found: Checked, root: str, taken: storage.Snapshot | None, refs: dict[str, Use]) -> list[str]:
    """Which of the named files are there and not empty; the others become faults."""
    there = []
    found.files_named = len(refs)
    place = taken or media.Folder(root)
    with Progress("looking up", len(refs), "files") as progress:
        for path, use in refs.items():
            fingerprint = roots.fingerprint(place, use.ref)
            progress.advance()
            if isinstance(fingerprint, str):
                _fault(found, fingerprint, f"{use.uid}: {path}", use.records)
                continue
            found.files_there += 1
            found.n_bytes += fingerprint[0]
            if fingerprint[0] == 0:
                _fault(found, "empty_file", f"{use.uid}: {path}", use.records)
            else:
                there.append(path)
    return there


def _is_media(path: str) -> bool:
    """By its name; what archivers and file managers leave beside files (`__MACOSX`, `._x.jpg`) is none."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    return not hidden and posixpath.splitext(path)[1].lower() in _MEDIA_SUFFIXES


def _evenly(paths: list[str], most: int) -> list[str]:
    """At most `most` of the paths, evenly spread, the first and the last among them."""
    if len(paths) <= most:
        return paths
    step = (len(paths) - 1) / (most - 1)
    return [paths[round(number * step)] for number in range(most)]


def _open(found: Checked, root: str, paths: list[str], refs: dict[str, Use]) -> None:
    with Progress("opening", len(paths), "files") as progress:
        for path in paths:
            use = refs[path]
            found.files_opened += 1
            progress.advance()
            try:
                problem = _wrong_head(use.ref.kind, _head(root, path))
            except media.MediaError as error:
                _fault(found, error.reason, f"{use.uid}: {error}", use.records)
                continue
            except OSError as error:
                problem = f"cannot be read ({error.strerror or error})"
            if problem:
                _fault(found, "not_media", f"{use.uid}: {path}: {problem}", use.records)


def _head(root: str, path: str) -> bytes:
    if storage.is_remote(root):
        with storage.open_read(storage.join(root, roots.object_name(path))) as stream:
            return stream.read(_HEAD_BYTES)
    with open(media.resolve(root, path), "rb") as stream:
        return stream.read(_HEAD_BYTES)


def _wrong_head(kind: schema.MediaKind, head: bytes) -> str:
    """What is wrong with the first bytes of a file that should be this kind of medium; "" if nothing is."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a git-lfs pointer; run `git lfs pull` in the source"
    formats = {"image": media.picture_format, "video": decoder.container_format, "audio": audio.sound_format}
    return "" if formats[kind](head) else f"no {kind} begins with {head[:16]!r}"


def _fault(found: Checked, reason: str, detail: str, records: int = 1) -> None:
    found.faults.setdefault(reason, Tally()).add(quality.escaped(detail)[:300], records)


def report(found: Checked) -> str:
    """What a person reads."""
    adapter = sources.adapter(found.source)
    parts = [f"{adapter.TITLE} ({found.source})\n{found.root}", _row_table(found)]
    opened = "all of them" if found.files_opened == found.files_there else "an even sample; --full opens all"
    if found.files_named:
        absent = found.files_named - found.files_there
        parts.append(
            f"media: {found.files_named:,} files named, {found.files_there:,} there ({data_size(found.n_bytes)}), "
            f"{absent:,} not" + (f"; {found.files_opened:,} opened ({opened})" if found.files_opened else "")
        )
    else:
        parts.append("media: none named; the rows hold what the build needs")
    if found.unlisted.count:
        parts.append(
            f"unlisted: {found.unlisted.count:,} media files that no row names (no fault), such as\n"
            + _indented(found.unlisted)
        )
    if found.left_out.count:
        parts.append(
            f"left out by the source's own rule: {found.left_out.count:,} (no fault), such as\n"
            + _indented(found.left_out)
        )
    for reason, tally in sorted(found.faults.items()):
        parts.append(f"{reason}: {tally.count:,} ({schema.REJECT_REASONS[reason]})\n" + _indented(tally))
    parts.append(_verdict(found))
    return "\n\n".join(parts)


def _splits(found: Checked) -> list[str]:
    return [name for name in (*schema.SPLITS, "all") if name in found.found or name in found.expected]


def _row_table(found: Checked) -> str:
    rows = [["rows", "published", "found", ""]]
    for name in _splits(found):
        published = found.expected.get(name)
        short = name in found.short
        note = "" if published is None else f"{published - found.found[name]:,} short" if short else ""
        note = f"{found.found[name] - published:,} more" if published and name in found.more else note
        rows.append([name, "?" if published is None else f"{published:,}", f"{found.found[name]:,}", note])
    served = ", ".join(f"{sub_task} {count:,}" for sub_task, count in found.items.items())
    return ledger.aligned(rows, right_from=1) + (f"\nrecords by sub-task: {served}" if served else "")


def _verdict(found: Checked) -> str:
    lines = []
    if found.more:
        lines.append("More rows than were published: another release than this adapter was written for?")
    if found.fine:
        return "\n".join([*lines, "No problem found."])
    problems = [f"{tally.count:,} {reason}" for reason, tally in sorted(found.faults.items())]
    problems += [
        f"{n - n_found:,} rows of {name} are not there" for name, (n, n_found) in found.short.items()
    ]
    if not found.found["all"]:
        problems.append("the annotation holds no row")
    share = sum(tally.count for tally in found.faults.values()) / max(1, found.items.total())
    lines.append(f"Problems: {', '.join(problems)}.")
    if found.faults:
        lines.append(
            f"A build would reject {share:.2%} of the records; a recipe's reject_budget says how much it may."
        )
    return "\n".join(lines)


def _indented(tally: Tally) -> str:
    more = (
        [f"  … and {tally.count - len(tally.examples):,} more"] if tally.count > len(tally.examples) else []
    )
    return "\n".join([*(f"  {example}" for example in tally.examples), *more])
