"""`emollm rationales --endpoint` against a real server process: what is asked, kept, counted, retried and resumed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_build import chat
from emollm.__main__ import main
from emollm.config import load_recipe, train_inputs_digest
from emollm.rationales import job, store
from emollm.train.build import training_prompt
from tests.emollm.rationales.steered import row, write, yes_no

ROOT = Path(__file__).resolve().parents[3]
KEY = "sk-very-secret-0123456789"


class Served:
    """A running teacher server."""

    def __init__(self, log: Path, die_after: int = 0) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fixtures.teacher_server", str(log), str(die_after)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    monkeypatch.setattr(chat, "PAUSES_S", (0.01, 0.01))
    running: list[Served] = []

    def start(die_after: int = 0) -> Served:
        running.append(Served(tmp_path / f"log-{len(running)}.jsonl", die_after))
        return running[-1]

    yield start
    for one in running:
        one.end()


def rationales(data: Path, url: str, *more: str) -> int:
    return main(["rationales", str(data), "--endpoint", url, "--teacher-model", "org/wise-1", *more])


def stored(data: Path, name: str = "org-wise-1") -> tuple[dict[str, dict], dict]:
    """(row by uid, manifest)"""
    manifest = json.loads((data / "rationales" / name / "rationales.json").read_text())
    rows = [one for path in manifest["files"] for one in store.read_shard(str(data), name, path)]
    return {one["uid"]: one for one in rows}, manifest


CASES = {
    "good": "", "named": "", "wrapped": "", "busy": "", "flaky": "",
    "wrong": "other_answer", "unsure": "unparsed", "label": "only_label", "empty": "empty", "long": "too_long",
    "cut": "too_long", "marker": "markers", "told": "mentions_label", "refuse": "refused", "filtered": "refused",
    "refuse_second": "refused", "http400": "endpoint_error", "http500": "endpoint_error", "garbage": "endpoint_error",
}  # fmt: skip


def test_every_sample_ends_accepted_or_rejected_with_its_reason(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    cases = list(CASES) * 2
    rows = [row(number, case) for number, case in enumerate(cases)] + [yes_no(n) for n in range(6)]
    silent = row(900)  # nothing but a sound: no teacher can take it
    silent["media"] = [{**silent["media"][0], "kind": "audio"}]
    silent["messages"][0]["content"] = silent["messages"][0]["content"].replace("<image>", "<audio>")
    data = write(tmp_path / "data", [*rows, silent])
    server = serve()
    arguments = ["--workers", "3", "--api-key-env", "TEACHER_KEY"]
    assert rationales(data, server.url, *arguments) == 0
    said = capfd.readouterr()
    found, manifest = stored(data)

    assert set(found) == {one["uid"] for one in [*rows, silent]}
    for number, case in enumerate(cases):
        one = found[f"drawn/all/{number:04d}"]
        assert (one["reason"], one["status"]) == (CASES[case], "rejected" if CASES[case] else "accepted"), (
            case
        )
        assert one["teacher"] == "org/wise-1"
        if not CASES[case]:
            assert one["second_answer"] == rows[number]["answer"]
            assert (
                "ground" in one["rationale"]
                and "Answer" not in one["rationale"]
                and "*" not in one["rationale"]
            )
    assert found["drawn/all/0900"]["reason"] == "unseen_media"
    assert manifest["asked"] == len(rows) + 1 == manifest["accepted"] + manifest["rejected"]
    counts = Counter(reason for reason in CASES.values() if reason)
    assert manifest["counts"]["drawn"]["emo_c"]["rejected"] == {
        **{reason: 2 * count for reason, count in counts.items()}, "unseen_media": 1,
    }  # fmt: skip
    assert manifest["counts"]["jests"]["humor"] == {"asked": 6, "accepted": 6, "rejected": {}}
    assert "drawn emo_c: 39 asked = 10 accepted + 29 rejected (6 endpoint_error" in said.out
    assert "other_answer: the second pass reaches another answer" in said.out

    requests = server.requests()
    firsts = [one for one in requests if one["first"]]
    assert all(one["path"] == "/v1/chat/completions" for one in requests)
    assert all(one["sizes"] in ([[32, 32]], [[32, 32]] * 2) for one in firsts), (
        "pictures, or both frames of a clip"
    )
    assert all(not one["sizes"] for one in requests if not one["first"]), "the second pass sees no media"
    assert all((one["body"]["temperature"], one["body"]["seed"]) == (0, 0) for one in requests)
    assert 1 < most_at_once(requests) <= 3
    assert {one["key"] for one in requests} == {f"Bearer {KEY}"}
    written = [path for path in data.rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in said.out + said.err and "sk-secret" not in said.out + said.err

    again = len(requests)
    assert rationales(data, server.url, *arguments) == 0
    assert "nothing changed" in capfd.readouterr().out and len(server.requests()) == again


def most_at_once(requests: list[dict[str, Any]]) -> int:
    ends = sorted([(one["began"], 1) for one in requests] + [(one["ended"], -1) for one in requests])
    now = most = 0
    for _, step in ends:
        now += step
        most = max(most, now)
    return most


def test_an_endpoint_that_dies_half_way_loses_nothing_that_was_paid_for(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(job, "SHARD_ROWS", 8)
    data = write(tmp_path / "data", [row(number) for number in range(30)])
    dying = serve(die_after=41)
    assert rationales(data, dying.url) == 1
    assert "failed many samples in a row" in capfd.readouterr().err
    assert dying.process.wait(10) == 9
    assert not (data / "rationales/org-wise-1/rationales.json").exists(), "unfinished: no manifest"
    done = store.shard_files(str(data), "org-wise-1")
    assert 1 <= len(done) < 4
    paid = len(dying.requests())
    other = serve()
    assert rationales(data, other.url) == 0
    assert f"{8 * len(done)} of 30 samples were asked by an earlier run" in capfd.readouterr().out
    assert len(other.requests()) == 60 - paid, "responses are kept, so none is asked for twice"
    killed = stored(data)
    assert {one["status"] for one in killed[0].values()} == {"accepted"}
    whole = write(tmp_path / "whole", [row(number) for number in range(30)])
    assert rationales(whole, other.url, "--workers", "5") == 0
    assert stored(whole)[1]["digest"] == killed[1]["digest"]
    assert stored(whole)[1]["files"] == killed[1]["files"]


def test_samples_that_the_endpoint_failed_are_asked_again_on_request(serve, tmp_path, capsys):
    data = write(tmp_path / "data", [row(0), row(1, "http500"), row(2)])
    first = serve()
    assert rationales(data, first.url) == 0
    assert stored(data)[1]["accepted"] == 2
    with pytest.MonkeyPatch.context() as patch:  # the endpoint is well again
        patch.setattr(chat.ChatClient, "_send", _answering_all(chat.ChatClient._send))
        assert rationales(data, first.url, "--retry-errors") == 0
    found, manifest = stored(data)
    assert manifest["accepted"] == 3 and found["drawn/all/0001"]["reason"] == ""


def _answering_all(once: Callable[..., Any]) -> Callable[..., Any]:
    def patched(self: Any, body: dict[str, Any]) -> Any:
        return once(self, json.loads(json.dumps(body).replace("case=http500", "case=good")))

    return patched


def test_a_wrong_key_stops_at_once_without_showing_what_the_endpoint_says(serve, tmp_path, capfd):
    data = write(tmp_path / "data", [row(number, "http401") for number in range(20)])
    server = serve()
    assert rationales(data, server.url, "--workers", "2") == 1
    said = capfd.readouterr()
    assert "answers HTTP status 401: check --endpoint, --teacher-model and the key" in said.err
    assert "sk-secret" not in said.out + said.err
    assert len(server.requests()) <= 3


def test_the_rationales_are_what_training_takes_and_are_in_its_digest(
    serve, tmp_path, tiny_overrides, capsys
):
    data = write(tmp_path / "data", [row(0), row(1), row(2, "wrong")])
    server = serve()
    overrides = [*tiny_overrides, f"data={data}", "prompt=emoprompt", "rationales=r"]
    recipe = load_recipe("smoke", overrides)
    digest = json.loads((data / "manifest.json").read_text())["digest"]
    with pytest.raises(store.RationalesError, match="there are no finished rationales 'r'; write them with"):
        train_inputs_digest(recipe, digest)
    assert rationales(data, server.url, "--name", "r", "--limit", "1") == 0
    one = train_inputs_digest(recipe, digest)
    assert rationales(data, server.url, "--name", "r") == 0
    assert train_inputs_digest(recipe, digest) != one
    assert set(training_prompt(recipe).rationales) == {"drawn/all/0000", "drawn/all/0001"}
    shard = data / "rationales/r" / next(iter(store.shard_files(str(data), "r")))
    rows = store.read_shard(str(data), "r", shard.name)
    store.write_shard(str(data), "r", shard.name, [{**other, "rationale": "changed"} for other in rows])
    with pytest.raises(store.RationalesError, match="not those that rationales.json was written for"):
        training_prompt(recipe)
    with pytest.raises(store.RationalesError, match="written for data with digest"):
        train_inputs_digest(recipe, "other")


@pytest.mark.slow  # passed in 30 s on a busy machine; what it adds is only where the files lie
def test_rationales_lie_beside_samples_in_s3_as_well(serve, s3_server, tmp_path, capsys):
    folder = write(tmp_path / "data", [row(number) for number in range(4)])
    data = f"{s3_server.bucket('rationales')}/data"
    s3_server.upload(folder, data)
    server = serve()
    for said in ("4 asked = 4 accepted + 0 rejected", "nothing changed"):
        command = ["rationales", data, "--endpoint", server.url, "--teacher-model", "m", "--name", "r"]
        assert main(command) == 0
        assert said in capsys.readouterr().out
    digest = json.loads((folder / "manifest.json").read_text())["digest"]
    assert set(store.accepted(data, "r", digest)) == {f"drawn/all/{number:04d}" for number in range(4)}


def test_a_name_taken_by_another_teacher_is_refused_until_forced(serve, tmp_path, capsys):
    data = write(tmp_path / "data", [row(0)])
    server = serve()
    assert rationales(data, server.url, "--name", "r") == 0
    more = write(tmp_path / "data", [row(0), row(1, "http401")])
    assert rationales(more, server.url, "--name", "r", "--force") == 1
    assert not (data / "rationales/r/rationales.json").exists(), "what is being written anew is unfinished"
    assert rationales(write(tmp_path / "data", [row(0)]), server.url, "--name", "r") == 0
    other = ["rationales", str(data), "--endpoint", server.url, "--teacher-model", "other", "--name", "r"]
    assert main(other) == 1
    assert "holds rationales of another teacher, data or version" in capsys.readouterr().err
    assert main([*other, "--force"]) == 0
    assert stored(data, "r")[1]["teacher"]["name"] == "other"


def test_fewer_samples_never_replace_more_unasked(serve, tmp_path, capsys):
    data = write(tmp_path / "data", [row(0), row(1), row(2)])
    server = serve()
    assert rationales(data, server.url, "--name", "r", "--limit", "2") == 0
    before = stored(data, "r")
    assert rationales(data, server.url, "--name", "r", "--limit", "1") == 1
    assert re.search(
        r"holds rationales of 1 samples that are not chosen now \(drawn/", capsys.readouterr().err
    )
    assert stored(data, "r") == before
    assert rationales(data, server.url, "--name", "r") == 0
    assert stored(data, "r")[1]["asked"] == 3
    assert rationales(data, server.url, "--name", "r", "--limit", "1", "--force") == 0
    assert stored(data, "r")[1]["asked"] == 1


def test_a_dry_run_asks_nobody_and_shows_what_would_be_asked(tmp_path, capsys):
    data = write(tmp_path / "data", [row(0), row(1), yes_no(3)])
    assert rationales(data, "http://127.0.0.1:9/v1", "--dry-run", "--sub-task", "emo_c") == 0
    said = capsys.readouterr().out
    assert "2 samples in 1 shards" in said and "drawn emo_c: 2" in said and "jests" not in said
    assert "| Right answer: joy" in said and "which has to give: joy" in said
    assert not (data / "rationales").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--endpoint", "http://h/v1"], 2, "--endpoint needs --teacher-model"),
        (["--endpoint", "http://me:sk-pasted@h/v1", "--teacher-model", "m"], 1, "no user, password or query"),
        (["--endpoint", "ftp://h", "--teacher-model", "m"], 1, "is no http.s. URL"),
        (["--endpoint", "http://h", "--teacher-model", "m", "--api-key-env", "sk-pasted"], 2, "give the name of"),
        (["--endpoint", "http://h", "--teacher-model", "m", "--api-key-env", "NOT_SET_X"], 2, "NOT_SET_X, which is not"),
        (["--endpoint", "http://h", "--teacher-model", "m", "--request", "[1]"], 2, "--request '.1.': give an object"),
        (["--endpoint", "http://h/v1", "--teacher-model", "m", "--api-key-env", "HELD_KEY"], 1, "key would travel unencrypted"),
        (["--teacher", "/nowhere/at/all"], 2, "--teacher /nowhere/at/all: no such folder"),
        (["--teacher", "m", "--api-key-env", "K"], 2, "go with --endpoint"),
        (["--teacher", "m", "--sub-task", "humour"], 2, "'humour' is not one of"),
        (["--teacher", "m", "--name", "../x"], 2, "letters, digits"),
        (["--teacher", "m", "--sub-task", "hate"], 1, "no samples of hate in train"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_and_secrets_never_shown(
    tmp_path, capsys, monkeypatch, arguments, code, message
):
    monkeypatch.setenv("HELD_KEY", "sk-pasted")
    data = write(tmp_path / "data", [row(0)])
    assert main(["rationales", str(data), *arguments]) == code
    said = capsys.readouterr().err
    assert re.search(message, said) and "sk-pasted" not in said and said.count("\n") == 1


def test_data_that_are_not_finished_are_refused(tmp_path, capsys):
    assert main(["rationales", str(tmp_path), "--teacher", "m"]) == 1
    assert "manifest.json: not there" in capsys.readouterr().err
