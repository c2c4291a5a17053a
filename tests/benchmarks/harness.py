"""Two commands measured beside each other: alternately, on work that is checked to be equal, in pairs.

A side is a command. It runs as a process of its own (a peer in its own virtual environment) and prints as the last line
of its standard output one JSON object:

    {"seconds": 12.5, "units": 800.0, "work": {"rows": 800}, "notes": {"versions": {"datasets": "5.2.0"}}}

`seconds` is the timed work alone, without imports and without loading a model; `units` is what was done in them (rows,
tokens, samples); `work` is what must be equal between the sides, or nothing was compared; `notes` may hold what else is
worth keeping. Pairs run after a warm-up, and the order within a pair is swapped every time, so that neither a warming disk cache nor a
machine that gets busier favours one side. The ratio is formed within each pair; the median over the pairs is reported
with the smallest and the largest.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".local" / "bench"
SCHEMA_VERSION = 1

Size = Literal["smoke", "normal", "large"]
Better = Literal["more per second", "less"]
Work = Mapping[str, Any]
Report = dict[str, Any]


class BenchmarkError(Exception):
    """A side failed, printed no report, or the sides did not do the same work."""


@dataclass(frozen=True)
class Side:
    """One command of a comparison; `missing` says why it cannot run here and is reported in its place."""

    name: str
    argv: Sequence[str] = ()
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    missing: str | None = None
    timeout_s: float = 3600


@dataclass(frozen=True)
class Measure:
    """A second number taken from the same runs, as a peak of memory beside a time."""

    name: str
    unit: str
    target: float | Mapping[str, float] | None
    value: Callable[[Report], float]
    better: Better = "less"


def equal_work(**tolerances: float) -> Callable[[Work, Work], str | None]:
    """A check that wants every key equal; a key named here may differ by that much (absolute)."""

    def check(ours: Work, peer: Work) -> str | None:
        if set(ours) != set(peer):
            return f"one side reports {sorted(ours)}, the other {sorted(peer)}"
        for key, value in ours.items():
            if key in tolerances:
                if not abs(value - peer[key]) <= tolerances[key]:
                    return f"{key}: {value} and {peer[key]} differ by more than {tolerances[key]}"
            elif value != peer[key]:
                return f"{key}: {value} is not {peer[key]}"
        return None

    return check


@dataclass(frozen=True)
class Benchmark:
    """One comparison (or, where `sides` gives no peers, one number held against an absolute target).

    `target` is what the ratio ours / peer has to reach: at least that for "more per second", at most that for "less";
    a mapping gives one per peer. `sides(size, folder)` makes the input in `folder`, which is kept between runs, and
    returns our side and the peers'.
    """

    name: str
    title: str
    unit: str
    target: float | Mapping[str, float] | None
    sides: Callable[[Size, Path], tuple[Side, list[Side]]]
    check: Callable[[Work, Work], str | None] = field(default_factory=equal_work)
    better: Better = "more per second"
    also: tuple[Measure, ...] = ()

    def measures(self) -> tuple[Measure, ...]:
        per_second = self.better == "more per second"

        def value(report: Report) -> float:
            return report["units"] / report["seconds"] if per_second else report["seconds"] / report["units"]

        return (Measure(self.name, self.unit, self.target, value, self.better), *self.also)


def execute(side: Side) -> Report:
    """Run a side to its end and return its report. Raises BenchmarkError with the tail of its errors."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **(side.env or {})}
    # Where it is set every import compiles anew, in every worker: that is not what a user's machine does.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            list(side.argv),
            env=environment,
            cwd=side.cwd or PROJECT,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=side.timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{side.name}: no end after {side.timeout_s:g} s\n{_tail(errors)}") from None
        finally:
            _end_session(process)
        if code:
            raise BenchmarkError(
                f"{side.name}: `{' '.join(side.argv)}` ended with {code}\n{_tail(output)}\n{_tail(errors)}"
            )
        last = _tail(output, 1)
    try:
        report = json.loads(last)
        checked = {key: report[key] for key in ("seconds", "units", "work")}
        assert checked["seconds"] > 0 and checked["units"] > 0
    except (ValueError, KeyError, TypeError, AssertionError):
        raise BenchmarkError(
            f"{side.name}: its last line is no report of seconds, units and work: {last!r}"
        ) from None
    return {**checked, "notes": report.get("notes", {})}


def _tail(file: TextIO, lines: int = 25) -> str:
    file.seek(0)
    return "\n".join(file.read().rstrip().splitlines()[-lines:])


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a side that still runs with all that came from it; else what it left behind (Ray's daemons, decoders).

    It has a session of its own, so nothing else is hit. Servers that it started have theirs: they are found among its
    children while it runs, and where it ends by itself it has to end them itself.
    """
    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            started = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def run(
    benchmark: Benchmark,
    size: Size,
    pairs: int,
    out: Path | None,
    only: Collection[str] | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> list[Report]:
    """Measure one benchmark; returns and (with `out`) appends one record per measure and peer.

    Without peers there is one record per measure, its value held against the target itself. A peer that is missing, or
    not in `only`, has a record that says why. Raises BenchmarkError where a side fails, the work of a pair is not
    equal, or `only` names a peer that this benchmark does not have.
    """
    folder = CACHE / benchmark.name / size
    folder.mkdir(parents=True, exist_ok=True)
    ours, peers = benchmark.sides(size, folder)
    alone = not peers
    if only is not None:
        peers = _chosen(peers, only)
    present = [peer for peer in peers if peer.missing is None]
    for peer in peers:
        if peer.missing is not None:
            say(f"{benchmark.name}: peer not available: {peer.name}: {peer.missing}")
    sides = [ours, *present]
    if pairs > 1:
        for side in sides:
            say(f"{benchmark.name}: warm-up of {side.name}")
            execute(side)
    runs: dict[str, list[Report]] = {side.name: [] for side in sides}
    busy = []
    for number in range(pairs):
        busy.append(_busy_percent())
        for side in sides if number % 2 == 0 else reversed(sides):
            runs[side.name].append(execute(side))
            say(f"{benchmark.name}: {number + 1}/{pairs} {side.name}: {runs[side.name][-1]['seconds']:.3f} s")
        for peer in present:
            trouble = benchmark.check(runs[ours.name][-1]["work"], runs[peer.name][-1]["work"])
            if trouble:
                raise BenchmarkError(f"{benchmark.name}: {ours.name} and {peer.name}: {trouble}")
    about = {
        "title": benchmark.title,
        "size": size,
        "pairs": pairs,
        "busy_percent_before": busy,
        "machine": machine(),
        "versions": {"python": platform.python_version()},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    records = []
    for measure in benchmark.measures():
        mine = [measure.value(report) for report in runs[ours.name]]
        if alone:
            records.append(about | _record(measure, ours.name, mine, runs[ours.name]))
        for peer in peers:
            theirs = [measure.value(report) for report in runs.get(peer.name, [])]
            record = _record(measure, ours.name, mine, runs[ours.name], peer, theirs)
            if theirs:
                record["peer_runs"] = runs[peer.name]
            records.append(about | record)
    if out is not None:
        append(out, records)
    return records


def _chosen(peers: Sequence[Side], only: Collection[str]) -> list[Side]:
    """The peers, those not in `only` as missing. Raises BenchmarkError for a name that none has."""
    unknown = set(only) - {peer.name for peer in peers}
    if unknown:
        names = ", ".join(peer.name for peer in peers)
        raise BenchmarkError(f"no peer is called {min(unknown)!r}; there are {names or 'none'}")
    left_out = "left out: not among the peers asked for"
    return [peer if peer.name in only else Side(peer.name, missing=left_out) for peer in peers]


def _record(
    measure: Measure,
    ours: str,
    mine: list[float],
    my_runs: list[Report],
    peer: Side | None = None,
    theirs: Sequence[float] = (),
) -> Report:
    target = measure.target
    if isinstance(target, Mapping):
        target = target.get(peer.name) if peer else None
    record: Report = {
        "name": measure.name,
        "unit": measure.unit,
        "better": measure.better,
        "ours": ours,
        "median_ours": statistics.median(mine),
        "values_ours": mine,
        "ours_runs": my_runs,
        "target": target,
        "equal_work": None,
        "ratio": None,
    }
    held: float | None = None
    if peer is None:
        held = record["median_ours"]
    else:
        record["peer"] = peer.name
        if peer.missing is not None:
            record["missing"] = peer.missing
        else:
            ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
            held = statistics.median(ratios)
            record |= {
                "median_peer": statistics.median(theirs),
                "values_peer": list(theirs),
                "ratio": held,
                "ratios": ratios,
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "equal_work": True,
            }
    if target is None or held is None:
        record["reached"] = None
    else:
        record["reached"] = held >= target if measure.better == "more per second" else held <= target
    return record


def _busy_percent() -> float:
    """How busy the processors are with other work, in the second before a pair."""
    return float(psutil.cpu_percent(interval=1.0))


def machine() -> dict[str, Any]:
    """What the machine is: processor, cores, memory, GPU. No name of a host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = named[0] if named else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.system(),
    }


def _gpu() -> str | None:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else None


def commit() -> str | None:
    """The commit measured, with `+changes` where tracked files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def append(out: Path, records: Sequence[Report]) -> None:
    """Add records to `out`, which stays whole where this process is ended in between."""
    if out.exists():
        whole = json.loads(out.read_text())
    else:
        whole = {"schema_version": SCHEMA_VERSION, "benchmarks": []}
    whole["benchmarks"] += records
    beside = out.with_name(out.name + ".part")
    beside.write_text(json.dumps(whole, indent=1) + "\n")
    beside.replace(out)


def table(records: Sequence[Report]) -> str:
    """Markdown: medians, the median ratio with its smallest and largest, the target and whether it was reached."""
    lines = [
        "| benchmark | unit | ours | peer | its median | ratio (min–max) | target | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        sign = "≥" if record["better"] == "more per second" else "≤"
        target = "–" if record["target"] is None else f"{sign} {record['target']:g}"
        # The toy size says that the sides run, not how fast.
        reached = (
            "–" if record["size"] == "smoke" else {True: "yes", False: "no", None: "–"}[record["reached"]]
        )
        if record.get("missing"):
            ratio, median = f"not available: {record['missing']}", "–"
        elif record["ratio"] is None:
            ratio, median = "–", "–"
        else:
            ratio = f"{record['ratio']:.3g} ({record['ratio_min']:.3g}–{record['ratio_max']:.3g})"
            median = f"{record['median_peer']:.4g}"
        lines.append(
            f"| {record['name']} | {record['unit']} | {record['median_ours']:.4g} | {record.get('peer', '–')} "
            f"| {median} | {ratio} | {target} | {reached} |"
        )
    return "\n".join(lines)
