"""`emollm evaluate` and `emollm report`: exit codes, messages, overrides, and the run that finds nothing to do."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emollm.evaluate import cli, run
from tests.emollm.evaluate.conftest import in_this_process


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="emollm")
    cli.add_subcommands(parser.add_subparsers(required=True))
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


@pytest.fixture
def finished(evaluation: Path, bench: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
             monkeypatch: pytest.MonkeyPatch) -> list[str]:  # fmt: skip
    """The arguments of an evaluation that was run once already."""
    monkeypatch.setattr(run, "_on_ray", in_this_process)
    shutil.copytree(evaluation / "answers", tmp_path / "out" / "answers")
    arguments = ["evaluate", "--model", str(model_dir), "--data", str(bench), "--out", str(tmp_path / "out"),
                 "--set", "bootstrap.samples=200"]  # fmt: skip
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    assert "Emo-C" in shown and "no openly licensed sample" in shown and "report.html" in shown
    assert "nothing changed" not in shown
    return arguments


def test_second_run_changes_nothing(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "score_shards", None)  # calling it would raise
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert call(*finished) == 0
    shown = capsys.readouterr().out
    assert "nothing changed" in shown and "Emo-C" in shown
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["samples.parquet", "report.html", "results.json"])
def test_a_damaged_result_is_made_again(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "samples.parquet":
        (tmp_path / "out" / name).write_bytes(b"damaged")
    else:
        (tmp_path / "out" / name).unlink()
    assert call(*finished) == 0
    assert "nothing changed" not in capsys.readouterr().out
    assert len((tmp_path / "out" / name).read_bytes()) > 1000


def test_workers_are_no_reason_to_score_again_but_other_values_are(
    finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*finished, "--set", "workers=1") == 0
    assert "nothing changed" in capsys.readouterr().out
    assert call(*finished, "--limit", "2") == 0
    assert "nothing changed" not in capsys.readouterr().out


def test_report_is_made_again_from_the_run_folder(finished: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").rename(tmp_path / "evaluation")
    (tmp_path / "evaluation" / "report.html").unlink()
    assert call("report", str(tmp_path)) == 0
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate"], 2, "--model is missing"),
        (["evaluate", "--model", "nowhere", "--data", "nowhere"], 1, "neither training.json nor config.json"),
        (["evaluate", "--model", "m", "--set", "splitt=test"], 2, "not a key of the evaluate section"),
        (["evaluate", "--model", "m", "--set", "evaluate.splitt=test"], 2, "did you mean 'split'"),
        (["evaluate", "--model", "m", "--sub-task", "emo_x"], 2, "did you mean 'emo_"),
        (["evaluate", "--model", "m", "--set", "bootstrap.samples=1"], 2, "bootstrap.samples"),
        (["evaluate", "--model", "openai:m", "--data", "nowhere"], 1, "--endpoint URL"),
        (
            ["evaluate", "--model", "openai:m", "--endpoint", "ftp://x", "--data", "d"],
            2,
            "not an http(s) URL",
        ),
        (["evaluate", "--model", "openai:m", "--endpoint", "http://h:99999/v1"], 2, "not an http(s) URL"),
        (["evaluate", "--model", "openai:m", "--endpoint", "http://[h/v1"], 2, "not an http(s) URL"),
        (["evaluate", "--model", "hf:", "--data", "d"], 1, "names no model"),
        (["evaluate", "--model", "hf:./nowhere", "--data", "d"], 1, "no such folder"),
        (["evaluate", "--model", "hf:./nowhere"], 2, "--data is missing"),
        (["evaluate", "--model", "m", "--calibrate", "--mode", "generate"], 2, "calibrate divides"),
        (["evaluate", "--model", "m", "--set", "endpoint.tries=0"], 2, "endpoint.tries"),
        (["report", "nowhere"], 1, "results.json is not there"),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said


def test_a_password_in_a_url_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("https://me:hunter2@h/v1", "ftp://me:hunter2@h", "https://h/v1?key=hunter2"):
        assert call("evaluate", "--model", "openai:m", "--data", "d", "--endpoint", url) == 2
        said = capsys.readouterr().err
        assert "no user, password or query" in said and "hunter2" not in said


def test_a_dry_run_says_what_is_left_to_ask_and_writes_nothing(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "score_shards", None)  # calling it would raise
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    answers = sorted((tmp_path / "out" / "answers").iterdir())
    assert call(*finished, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "122 samples" in shown and "pass untrained: 122 questions, 122 of them answered already" in shown
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    answers[0].unlink()
    assert call(*finished, "--dry-run") == 0
    assert (
        capsys.readouterr().out.count("122 of them answered already")
        < shown.count("122 of them answered already") + 1
    )


def test_a_sample_the_model_cannot_take_is_named(
    bench: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A picture that went bad after the build: the error names the row, and nothing is left that looks finished."""
    from tests.emollm.evaluate.emobench import make_rows, write_emobench

    monkeypatch.setattr(run, "_on_ray", in_this_process)
    rows = make_rows()
    rows[0]["media"][0]["data"] = [b"not a picture"]
    data = write_emobench(tmp_path / "emobench", rows)
    shutil.copytree(model_dir, tmp_path / "model")
    training = json.loads((model_dir / "training.json").read_text())
    training["data_digest"] = json.loads((data / "manifest.json").read_text())["digest"]
    (tmp_path / "model" / "training.json").write_text(json.dumps(training))
    assert call("evaluate", "--model", str(tmp_path / "model"), "--data", str(data), "--limit", "100") == 1
    assert rows[0]["uid"] in capsys.readouterr().err
    assert not list(tmp_path.rglob("results.json"))


def test_parsers_import_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from emollm.evaluate import cli; cli.add_subcommands(argparse.ArgumentParser().add_subparsers());"
        "print([m for m in ('torch', 'ray', 'numpy', 'pyarrow', 'pydantic', 'jinja2', 'rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
