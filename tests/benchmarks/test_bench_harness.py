"""The harness of the benchmarks: what it refuses to compare, in which order it runs, and what it writes down."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import harness
from tests.benchmarks.harness import Benchmark, BenchmarkError, Measure, Side


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(harness, "CACHE", tmp_path)
    monkeypatch.setattr(harness, "_busy_percent", lambda: 0.0)
    return tmp_path


def side(name: str, seconds: float, log: Path, work: dict[str, Any] | None = None) -> Side:
    """A command that notes its name in `log` and reports these seconds for 10 units."""
    report = {"seconds": seconds, "units": 10, "work": work or {"rows": 10}, "notes": {"peak": seconds}}
    code = f"open({str(log)!r}, 'a').write({name!r} + ' '); print('a word of its own'); print({json.dumps(report)!r})"
    return Side(name, [sys.executable, "-S", "-c", code])


def compare(ours: Side, *peers: Side, **more: Any) -> Benchmark:
    return Benchmark(
        "b", "a comparison", "units/s", more.pop("target", 2.0), lambda *_: (ours, list(peers)), **more
    )


def measure(benchmark: Benchmark, pairs: int = 1, **more: Any) -> list[dict[str, Any]]:
    said: list[str] = []
    records = harness.run(benchmark, "smoke", pairs, more.pop("out", None), say=said.append, **more)
    return [*records, {"said": said}]


def test_sides_run_alternately_after_a_warm_up_and_swap_places_in_every_pair(tmp_path):
    log = tmp_path / "log"
    measure(compare(side("a", 1, log), side("b", 3, log)), pairs=3)
    assert log.read_text().split() == ["a", "b", *"ab", *"ba", *"ab"]


def test_the_ratio_says_how_many_times_more_ours_does_in_a_second(tmp_path):
    benchmark = compare(side("a", 1, tmp_path / "log"), side("b", 3, tmp_path / "log"))
    record = measure(benchmark, pairs=2)[0]
    assert record["median_ours"] == 10 and record["median_peer"] == pytest.approx(10 / 3)
    assert record["ratio"] == record["ratio_min"] == record["ratio_max"] == pytest.approx(3)
    assert record["reached"] is True and record["equal_work"] is True


def test_where_less_is_better_the_ratio_has_to_stay_below_the_target(tmp_path):
    log = tmp_path / "log"
    peak = Measure("b-peak", "GiB", 0.2, lambda run: run["notes"]["peak"])
    benchmark = compare(side("a", 1, log), side("b", 4, log), better="less", target=0.25, also=(peak,))
    time, memory, _ = measure(benchmark)
    assert (time["ratio"], time["reached"]) == (0.25, True)
    assert (memory["name"], memory["ratio"], memory["reached"]) == ("b-peak", 0.25, False)


def test_without_a_peer_the_value_itself_is_held_against_the_target(tmp_path):
    alone = compare(side("a", 1, tmp_path / "log"), better="less", target=0.05)
    record = measure(alone)[0]
    assert record["median_ours"] == 0.1 and record["ratio"] is None and record["reached"] is False


def test_a_pair_that_did_not_do_the_same_work_is_no_comparison(tmp_path):
    log = tmp_path / "log"
    benchmark = compare(side("a", 1, log), side("b", 1, log, {"rows": 9}))
    with pytest.raises(BenchmarkError, match="b: a and b: rows: 10 is not 9"):
        measure(benchmark)


@pytest.mark.parametrize(
    ("peer", "trouble"),
    [
        ({"rows": 10, "loss": 1.04}, None),
        ({"rows": 10, "loss": 1.2}, "loss: 1.0 and 1.2 differ by more than 0.1"),
        ({"rows": 10, "loss": float("nan")}, "loss: 1.0 and nan differ by more than 0.1"),
        ({"rows": 11, "loss": 1.0}, "rows: 10 is not 11"),
        ({"rows": 10}, "one side reports ['loss', 'rows'], the other ['rows']"),
    ],
)
def test_numbers_may_differ_only_by_the_tolerance_of_their_own_name(peer, trouble):
    assert harness.equal_work(loss=0.1)({"rows": 10, "loss": 1.0}, peer) == trouble


def test_a_side_that_fails_shows_what_it_said(tmp_path):
    broken = Side("b", [sys.executable, "-c", "raise SystemExit('no such picture')"])
    with pytest.raises(BenchmarkError, match="(?s)b: .* ended with 1.*no such picture"):
        measure(compare(side("a", 1, tmp_path / "log"), broken))


@pytest.mark.parametrize(
    "last", ["done", '{"seconds": 1, "units": 2}', '{"seconds": 0, "units": 2, "work": {}}']
)
def test_a_last_line_without_seconds_units_and_work_is_refused(last):
    with pytest.raises(BenchmarkError, match="its last line is no report"):
        harness.execute(Side("b", [sys.executable, "-S", "-c", f"print({last!r})"]))


@pytest.mark.parametrize("own_session", [False, True])  # as servers have
def test_a_side_that_does_not_end_is_ended_with_what_it_started(tmp_path, own_session):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = (
        f"import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session={own_session}); time.sleep(60)"
    )
    with pytest.raises(BenchmarkError, match="b: no end after 0.5 s"):
        harness.execute(Side("b", [sys.executable, "-S", "-c", code], timeout_s=0.5))

    time.sleep(2)
    assert not mark.exists()


def test_a_peer_that_is_not_there_is_reported_and_never_passed_over(tmp_path):
    gone = Side("gone", missing="it does not install")
    benchmark = compare(side("a", 1, tmp_path / "log"), gone)
    record, said = measure(benchmark)
    assert record["missing"] == "it does not install" and record["reached"] is None
    assert any("peer not available: gone: it does not install" in line for line in said["said"])
    assert "not available: it does not install" in harness.table([record])


def test_peers_that_were_not_asked_for_do_not_run_and_are_reported(tmp_path):
    log = tmp_path / "log"
    benchmark = compare(side("a", 1, log), side("b", 1, log), side("c", 1, log))
    first, second, _ = measure(benchmark, only=["c"])
    assert log.read_text().split() == ["a", "c"]
    assert first["missing"] == "left out: not among the peers asked for" and second["ratio"] == 1
    with pytest.raises(BenchmarkError, match="no peer is called 'd'; there are b, c"):
        measure(benchmark, only=["c", "d"])


def test_records_are_added_to_those_of_earlier_runs_and_name_no_host(tmp_path):
    import platform

    out = tmp_path / "benchmarks.json"
    benchmark = compare(side("a", 1, tmp_path / "log"), side("b", 3, tmp_path / "log"))
    for _ in range(2):
        measure(benchmark, out=out)
    text = out.read_text()
    records = json.loads(text)["benchmarks"]
    assert len(records) == 2 and records[0]["machine"]["cores"] >= 1 and records[0]["values_peer"] == [10 / 3]
    assert not platform.node() or platform.node() not in text
    row = harness.table([{**records[0], "size": "normal"}]).splitlines()[2]
    assert row == "| b | units/s | 10 | b | 3.333 | 3 (3–3) | ≥ 2 | yes |"
    assert records[0]["size"] == "smoke" and harness.table(records).splitlines()[2].endswith("| ≥ 2 | – |")


def test_every_benchmark_module_is_on_the_list_and_every_name_is_its_own():
    folder = Path(command.__file__).parent
    written = {
        f"tests.benchmarks.{path.stem}" for path in folder.glob("*.py") if "\nBENCHMARKS" in path.read_text()
    }
    assert set(command.MODULES.values()) == written
    names = [benchmark.name for name in command.MODULES for benchmark in command.load(name)]
    assert len(set(names)) == len(names)
