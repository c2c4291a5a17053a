"""`emollm compare`: what it says of two runs, by hand, and which runs it refuses; reading runs from disk."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from emollm.evaluate import cli_runs, compare, run_folder
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.run_folder import Run
from tests.emollm.evaluate import synthetic

ROWS = synthetic.rows(120)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("compared")
    return (
        synthetic.write_run(folder / "a", ROWS, 0.3, seed=1, name="weak"),
        synthetic.write_run(folder / "b", ROWS, 0.9, seed=2, name="strong"),
    )


@pytest.fixture(scope="module")
def runs(folders: tuple[Path, Path]) -> tuple[Run, Run]:
    return run_folder.read_run(str(folders[0])), run_folder.read_run(str(folders[1]))


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="emollm")
    cli_runs.add_subcommands(parser.add_subparsers(required=True))
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def test_differences_are_those_of_the_samples(runs: tuple[Run, Run]) -> None:
    comparison = compare.compare_runs(*runs)
    rows = [{row["uid"]: row for row in run.samples.to_pylist()} for run in runs]
    for name, it in comparison.sub_tasks.items():
        pairs = [
            (row["correct"], rows[1][uid]["correct"])
            for uid, row in rows[0].items()
            if row["sub_task"] == name
        ]
        assert it.n == len(pairs) == 30
        assert it.clusters == len({row["group"] for row in rows[0].values() if row["sub_task"] == name})
        assert (
            it.diff
            == pytest.approx(it.second - it.first)
            == pytest.approx((sum(b for _, b in pairs) - sum(a for a, _ in pairs)) / 30)
        )
        only = pairs.count((True, False)), pairs.count((False, True))
        assert (it.test.only_first, it.test.only_second) == only
        assert it.test.p == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
        assert it.ci95.low <= it.diff <= it.ci95.high
    overall = comparison.overall
    assert overall is not None and overall.diff == pytest.approx(
        sum(it.diff for it in comparison.sub_tasks.values()) / 4
    )
    for run, side in zip(runs, (overall.first, overall.second), strict=True):
        assert side == pytest.approx(run.results["overall"]["accuracy"], abs=1e-6)


def test_the_other_way_round_is_the_same_with_the_other_sign(runs: tuple[Run, Run]) -> None:
    forth, back = compare.compare_runs(*runs), compare.compare_runs(*reversed(runs))
    for name, it in forth.sub_tasks.items():
        other = back.sub_tasks[name]
        assert (other.diff, other.ci95.low, other.ci95.high) == pytest.approx(
            (-it.diff, -it.ci95.high, -it.ci95.low)
        )
        assert other.test.p == it.test.p
    same = compare.compare_runs(runs[0], runs[0])
    assert all(it.diff == 0 and it.ci95 == (0, 0) and it.test.p == 1 for it in same.sub_tasks.values())


def test_the_order_of_rows_on_disk_changes_nothing(runs: tuple[Run, Run]) -> None:
    shuffled = runs[1]._replace(
        samples=runs[1].samples.sort_by([("gap", "descending"), ("uid", "descending")])
    )
    assert compare.compare_runs(runs[0], shuffled) == compare.compare_runs(*runs)


def changed(run: Run, **values: Any) -> Run:
    return run._replace(results={**run.results, **values})


def test_runs_that_say_nothing_about_each_other_are_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    for other, message in (
        (changed(runs[1], data_digest="e" * 64), "scores of different data say nothing"),
        (changed(runs[1], split="val"), "evaluate both on one split"),
        (
            changed(runs[1], synonyms_version="1.0"),
            "scored by synonym table 2.0, .* by 1.0; run `emollm evaluate`",
        ),
        (
            runs[1]._replace(samples=runs[1].samples.slice(4)),
            r"1 only in .*\(first: .*compare with --sub-task",
        ),
    ):
        with pytest.raises(EvaluationError, match=message):
            compare.compare_runs(runs[0], other)
    # What both have is compared, and another synonym table is no obstacle where nothing open is compared.
    assert list(
        compare.compare_runs(runs[0], changed(runs[1], synonyms_version="1.0"), ["intent"]).sub_tasks
    ) == ["intent"]
    with pytest.raises(EvaluationError, match="no sample of hate"):
        compare.compare_runs(*runs, ["hate"])


def test_demonstrations_stay_out_of_the_mean(tmp_path: Path) -> None:
    rows = [replace(row, demonstration=row.sub_task == "sarcasm") for row in ROWS]
    a, b = (
        run_folder.read_run(str(synthetic.write_run(tmp_path / str(k), rows, 0.4, seed=k))) for k in (0, 1)
    )
    comparison = compare.compare_runs(a, b)
    assert comparison.sub_tasks["sarcasm"].demonstration
    assert comparison.overall is not None and comparison.overall.sub_tasks == ("emo_c", "emo_o", "intent")
    only = compare.compare_runs(a, b, ["sarcasm"])
    assert only.overall is None


def test_command_prints_the_table_and_writes_json(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("compare", *map(str, folders), "--json", str(tmp_path / "c.json")) == 0
    said = capsys.readouterr().out
    assert "A: weak" in said and "B: strong" in said and "mean of 4" in said and "<0.001" in said
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["sub_tasks"]["emo_c"]["test"]["only_second"] > 0 and len(written["overall"]["ci95"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "nowhere", "nowhere"], 1, "results.json is not there; run `emollm evaluate` first"),
        (["compare", "A", "B", "--sub-task", "emo_x"], 2, "--sub-task emo_x: not one of emo_c"),
        (["report", "nowhere"], 1, "results.json is not there"),
        (["report", "A", "B", "--lm-eval", "x"], 2, "--lm-eval takes one run"),
        (["report", "A", "--judge-model", "m"], 2, "--judge-endpoint and --judge-model belong together"),
        (["lmms-tasks", "nowhere", "x"], 1, "manifest.json is not there; build EmoBench first"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str],
    code: int,
    message: str,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"A": str(folders[0]), "B": str(folders[1])}
    assert call(*(places.get(word, word) for word in arguments)) == code
    assert message in capsys.readouterr().err


def test_side_by_side_page_from_the_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert call("report", *map(str, folders), "--out", str(tmp_path / "page.html")) == 0
    assert "Side by side" in (tmp_path / "page.html").read_text()


def test_a_broken_run_is_named_with_what_is_wrong(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    results = json.loads((copy / "results.json").read_text())

    def refused(message: str, **values: Any) -> None:
        (copy / "results.json").write_text(json.dumps({**results, **values}))
        with pytest.raises(EvaluationError, match=message):
            run_folder.read_run(str(copy))

    refused("format '2.0', this version reads 1.x", schema_version="2.0")
    refused("n: 'many' is not of type 'integer'", n="many")
    refused("Additional properties are not allowed", surprise=1)
    refused("sub_tasks.emo_c", sub_tasks={"emo_c": {"n": 3}})
    refused("120 rows, results.json beside it says 119", n=119)
    (copy / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json: not JSON"):
        run_folder.read_run(str(copy))
    (copy / "results.json").write_text(json.dumps(results))
    (copy / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match="samples.parquet: no Parquet"):
        run_folder.read_run(str(copy))
    (copy / "samples.parquet").unlink()
    with pytest.raises(EvaluationError, match="samples.parquet is not there"):
        run_folder.read_run(str(copy))
