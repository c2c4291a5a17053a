"""The judge beside the synonym table: what it is asked, that it is asked once, and that it never becomes the score."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from emollm.evaluate import judge, report, run_folder
from emollm.evaluate.protocol import EvaluationError
from tests.emollm.evaluate import synthetic
from tests.emollm.evaluate.fake_endpoint import running, words_of

ROWS = synthetic.rows(60, tasks=("emo_o", "intent"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_run(tmp_path_factory.mktemp("judged") / "run", ROWS, 0.5)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def asked(body: dict[str, Any]) -> tuple[str, str]:
    gold, answer = re.findall(r'^(?:reference|answer): (".*")$', words_of(body), re.MULTILINE)
    return json.loads(gold), json.loads(answer)


def test_verdict_stands_beside_the_score_and_is_asked_for_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(judge.KEY_VARIABLE, "sesame")
    before = json.loads((run / "results.json").read_text())
    samples = [s for s in run_folder.read_run(str(run)).samples.to_pylist() if s["sub_task"] == "emo_o"]
    with running(lambda body, number: "Yes." if asked(body)[0][:2] == asked(body)[1][:2] else "no") as server:
        results = judge.judge_run(str(run), server.url, "oracle")
        pairs = {(s["gold"], s["answer"]) for s in samples if s["answer"]}
        assert sorted(map(asked, server.requests)) == sorted(pairs)
        assert {body["temperature"] for body in server.requests} == {0} and set(server.keys) == {
            "Bearer sesame"
        }
        judge.judge_run(str(run), server.url, "oracle")
        assert len(server.requests) == len(pairs)  # kept on disk
        judge.judge_run(str(run), server.url, "another")
        assert len(server.requests) == 2 * len(pairs)
    entry = results["sub_tasks"]["emo_o"]["judge"]
    agreed = [bool(s["answer"]) and s["gold"][:2] == s["answer"][:2] for s in samples]
    assert entry["model"] == "oracle" and entry["n"] == len(samples) == 30
    assert entry["accuracy"] == pytest.approx(sum(agreed) / 30, abs=1e-6)
    table = [s["correct"] for s in samples]
    assert entry["kappa"] == pytest.approx(cohen_kappa_score(agreed, table), abs=1e-6)
    after = json.loads((run / "results.json").read_text())
    assert after["sub_tasks"]["emo_o"].pop("judge")["model"] == "another"
    assert after == before and "sesame" not in (run / "results.json").read_text()


def test_report_names_the_judge_and_calls_it_no_score(run: Path) -> None:
    with running(lambda body, number: "maybe") as server:
        entry = judge.judge_run(str(run), server.url, "oracle")["sub_tasks"]["emo_o"]["judge"]
    assert entry["accuracy"] == 0.0 and entry["unclear"] > 0
    assert "judge oracle (not the score)" in Path(report.write_report(str(run))).read_text()


def test_an_endpoint_that_fails_leaves_the_results_as_they_were(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "results.json").read_bytes()
    with (
        running(lambda body, number: (401, {"error": "who are you"})) as server,
        pytest.raises(EvaluationError, match="401"),
    ):
        judge.judge_run(str(run), server.url, "oracle")
    with pytest.raises(EvaluationError, match="--judge-endpoint: .*not an http"):
        judge.judge_run(str(run), "ftp://x", "oracle")
    assert (run / "results.json").read_bytes() == before


def test_a_run_without_open_answers_has_nothing_to_judge(tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path / "run", synthetic.rows(8, tasks=("intent",)), 0.5)
    with pytest.raises(EvaluationError, match="no open answer"):
        judge.judge_run(str(folder), "http://127.0.0.1:9/v1", "oracle")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", True),
        (" Yes, it does.", True),
        ("NO", False),
        ("", None),
        ("maybe yes", None),
        ("**no**", False),
    ],
)
def test_only_a_plain_yes_or_no_is_a_verdict(text: str, verdict: bool | None) -> None:
    assert judge.read_verdict(text) is verdict


def test_kappa_by_hand() -> None:
    # 4 of 6 agree; chance: 3/6 * 3/6 + 3/6 * 3/6 = 1/2, so kappa = (4/6 - 1/2) / (1 - 1/2).
    assert judge.kappa(
        [True, True, True, False, False, False], [True, True, False, True, False, False]
    ) == pytest.approx(1 / 3)
    assert judge.kappa([True, True], [True, True]) is None
