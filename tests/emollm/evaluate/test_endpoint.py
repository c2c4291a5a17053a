"""Models behind an endpoint: what is sent, every kind of bad answer, failures, resuming, the cache."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataset_build import chat
from emollm.config import EvaluateRecipe
from emollm.evaluate import cli, endpoint
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.recipe import EndpointConfig
from emollm.evaluate.results import evaluate
from tests.emollm.evaluate.emobench import make_rows
from tests.emollm.evaluate.fake_endpoint import completion, running, words_of

INTENT_ROWS = 8


@pytest.fixture(autouse=True)
def no_pauses_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "PAUSES_S", (0.001, 0.002))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def recipe(url: str, allow_failures: bool = False, **settings: Any) -> EvaluateRecipe:
    return EvaluateRecipe(
        mode="generate", sub_tasks=("intent",), baselines=(), nearest_neighbour=False, bootstrap={"samples": 100},
        endpoint=EndpointConfig(url=url, **settings), allow_failures=allow_failures,
    )  # fmt: skip


def score(bench: Path, out: Path, settings: EvaluateRecipe) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    results = evaluate("openai:tiny", str(bench), str(out), settings)
    return results, pq.read_table(out / "samples.parquet").to_pylist()


def right_answer(rows: dict[str, str]) -> Any:
    """Says the right option, found by the question's picture."""
    return lambda body, number: rows[picture_of(body)]


def picture_of(body: dict[str, Any]) -> str:
    return next(
        part["image_url"]["url"]
        for message in body["messages"]
        for part in message["content"]
        if part["type"] == "image_url"
    )


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    return {
        endpoint.data_url(row["media"][0]["data"][0]): row["answer"]
        for row in make_rows()
        if row["sub_task"] == "intent"
    }


def test_a_sample_is_sent_as_text_and_data_urls_where_its_media_stand() -> None:
    rows = {row["uid"]: row for row in make_rows()}
    row = next(row for uid, row in rows.items() if uid.startswith("clips/"))
    body, digests = endpoint.request_body(row, "m", 7, EndpointConfig(url="http://x/v1", seed=3))
    (message,) = body["messages"]
    text, *frames = message["content"]
    assert text == {"type": "text", "text": row["messages"][0]["content"].removesuffix("<video>")}
    sent = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in frames]
    assert sent == row["media"][0]["data"] and len(digests) == len(sent) == 4
    assert frames[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert {name: body[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "m", "temperature": 0, "seed": 3, "max_tokens": 7,
    }  # fmt: skip


def test_keys_of_the_request_can_be_replaced_and_removed() -> None:
    settings = EndpointConfig(url="http://x/v1", request={"temperature": None, "max_tokens": None, "max_completion_tokens": 9})  # fmt: skip
    body, _ = endpoint.request_body(make_rows()[0], "m", 7, settings)
    assert "temperature" not in body and "max_tokens" not in body and body["max_completion_tokens"] == 9


def test_right_answers_are_right_and_each_question_is_sent_once(
    bench: Path, tmp_path: Path, answers: dict[str, str]
) -> None:
    with running(right_answer(answers)) as server:
        results, records = score(bench, tmp_path, recipe(server.url))
    assert results["sub_tasks"]["intent"]["accuracy"] == 1.0
    assert len(server.requests) == len(records) == INTENT_ROWS
    assert results["model"]["kind"] == "endpoint" and results["name"] == "tiny"
    assert all(record["generated"] and record["probability"] is None for record in records)


BAD: dict[str, Any] = {
    "": "empty",
    "...": "empty",
    "qwertz uiop": "unparsed",
    "I'm sorry, I can't help with that.": "refused",
    "I think that the person may want " + "to say something " * 400: "too_long",
}


def test_every_kind_of_bad_answer_is_counted_and_stays_in_the_denominator(
    bench: Path, tmp_path: Path, answers: dict[str, str]
) -> None:
    """Five bad texts, one cut off at the limit, one refused by a filter, one good one: 8 rows, 1 right."""
    order: dict[str, Any] = {}
    replies = [
        *BAD,
        (200, completion("The person wants to", "length")),
        (200, completion(None, "content_filter")),
        None,
    ]

    def answer(body: dict[str, Any], number: int) -> Any:
        url = picture_of(body)
        reply = order.setdefault(url, replies[len(order)])
        return answers[url] if reply is None else reply

    with running(answer) as server:
        results, records = score(bench, tmp_path, recipe(server.url, concurrency=1))
    entry = results["sub_tasks"]["intent"]
    assert entry["n"] == len(records) == INTENT_ROWS and entry["accuracy"] == pytest.approx(1 / 8)
    assert entry["invalid"] == {"empty": 2, "unparsed": 1, "refused": 2, "too_long": 2, "endpoint_error": 0}
    expected = Counter([*BAD.values(), "too_long", "refused", "ok"])
    assert Counter(record["status"] for record in records) == expected
    assert not any(record["correct"] for record in records if record["status"] != "ok")


def test_an_endpoint_that_dies_leaves_a_run_that_goes_on(
    bench: Path, tmp_path: Path, answers: dict[str, str]
) -> None:
    def answer(body: dict[str, Any], number: int) -> Any:
        return answers[picture_of(body)] if number <= 3 else (503, {"error": "gone"})

    with running(answer) as server:
        settings = recipe(server.url, concurrency=1, tries=2)
        with pytest.raises(EvaluationError) as stopped:
            score(bench, tmp_path, settings)
        assert not (tmp_path / "results.json").exists()
        message = str(stopped.value)
        assert re.search(r"gestures/all/g\d+: endpoint http.*status 503.*try 2 of 2", message)
        assert (
            "3 of the 8 questions that were left have an answer" in message and "--allow-failures" in message
        )
        sent = len(server.requests)
        server.answer = right_answer(answers)
        results, records = score(bench, tmp_path, settings)
        assert len(server.requests) - sent == INTENT_ROWS - 3  # what was answered is not asked again
    assert results["sub_tasks"]["intent"]["accuracy"] == 1.0 and len(records) == INTENT_ROWS


def test_one_failing_sample_is_counted_only_where_failures_are_allowed_and_tried_again_later(
    bench: Path, tmp_path: Path, answers: dict[str, str]
) -> None:
    asked = [row for row in make_rows() if row["sub_task"] == "intent" and row["split"] == "test"]
    bad = endpoint.data_url(asked[0]["media"][0]["data"][0])

    def answer(body: dict[str, Any], number: int) -> Any:
        url = picture_of(body)
        return (400, {"error": {"message": "this picture is not allowed"}}) if url == bad else answers[url]

    with running(answer) as server:
        with pytest.raises(EvaluationError, match="status 400.*not allowed"):
            score(bench, tmp_path, recipe(server.url))
        results, records = score(bench, tmp_path, recipe(server.url, allow_failures=True))
        (failed,) = [record for record in records if record["status"] == "endpoint_error"]
        assert results["sub_tasks"]["intent"]["invalid"]["endpoint_error"] == 1
        assert results["sub_tasks"]["intent"]["accuracy"] == pytest.approx(7 / 8) and not failed["correct"]
        server.answer = right_answer(answers)
        sent = len(server.requests)
        results, _ = score(bench, tmp_path, recipe(server.url))
        assert len(server.requests) - sent == 1
    assert results["sub_tasks"]["intent"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("status", "requests"), [(500, endpoint.DOWN_AFTER * 2), (401, 1), (404, 1)], ids=["down", "key", "model"]
)
def test_an_endpoint_that_answers_nothing_stops_the_run_even_where_failures_are_allowed(
    bench: Path, tmp_path: Path, status: int, requests: int
) -> None:
    with running(lambda body, number: (status, b"no")) as server:
        settings = recipe(server.url, allow_failures=True, tries=2, concurrency=1)
        with pytest.raises(EvaluationError, match=f"status {status}.*0 of the 8 questions"):
            score(bench, tmp_path, settings)
        assert len(server.requests) == requests


@pytest.mark.parametrize(
    "trouble", [(429, {}), (500, b""), (200, b"<html>"), (200, {"choices": []}), (200, {"choices": [{"message": {"content": 5}}]})]
)  # fmt: skip
def test_passing_trouble_is_outlasted(
    bench: Path, tmp_path: Path, answers: dict[str, str], trouble: Any
) -> None:
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any], number: int) -> Any:
        url = picture_of(body)
        seen[url] += 1
        return trouble if seen[url] <= 2 else answers[url]

    with running(answer) as server:
        results, _ = score(bench, tmp_path, recipe(server.url))
    assert results["sub_tasks"]["intent"]["accuracy"] == 1.0 and set(seen.values()) == {3}


def test_responses_are_kept_under_model_prompt_and_media(tmp_path: Path) -> None:
    rows = [row for row in make_rows() if row["sub_task"] == "intent"][:2]
    rows[1]["messages"] = rows[0]["messages"]
    with running(lambda body, number: f"answer {number}") as server:

        def ask(row: dict[str, Any], model: str = "m", **settings: Any) -> str:
            config = EndpointConfig(url=server.url, **settings)
            with endpoint.Endpoint(config, model, str(tmp_path)) as asked:
                return str(asked.answer("u", row, 8).text)

        assert ask(rows[0]) == ask(rows[0]) == ask({**rows[0], "uid": "other"}) == "answer 1"
        assert ask(rows[1]) == "answer 2"  # the same words, another picture
        assert ask(rows[0], model="n") == "answer 3"
        assert ask(rows[0], seed=5) == "answer 4"
        other = {**rows[0], "messages": [{"role": "user", "content": "Now?\n<image>"}]}
        assert ask(other) == "answer 5"
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) == 5
        files[0].write_text('{"text": ')  # half a file is asked again
        assert (
            len({ask(rows[0]), ask(rows[1]), ask(rows[0], model="n"), ask(rows[0], seed=5), ask(other)}) == 5
        )
        assert len(server.requests) == 6


def test_the_key_comes_from_the_environment_and_never_reaches_a_file_or_an_open_line(
    bench: Path, tmp_path: Path, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-key")
    with running(right_answer(answers)) as server:
        score(bench, tmp_path, recipe(server.url, api_key_env="MY_KEY"))
    assert set(server.keys) == {"Bearer s3cret-key"}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"s3cret-key" not in path.read_bytes(), path
    with pytest.raises(EvaluationError, match="would travel unencrypted"):
        endpoint.Endpoint(
            EndpointConfig(url="http://example.org/v1", api_key_env="MY_KEY"), "m", str(tmp_path)
        )
    for status, said in ((400, {"error": "bad key s3cret-key" * 20}), (200, b"x" * 75 + b"s3cret-key")):
        quotes = (status, said)
        with running(lambda body, number, quotes=quotes: quotes) as server:
            settings = EndpointConfig(url=server.url, api_key_env="MY_KEY", tries=1)
            with (
                endpoint.Endpoint(settings, "m", str(tmp_path / "quoted")) as asked,
                pytest.raises(EvaluationError) as caught,
            ):
                asked.answer("u", {"messages": [{"role": "user", "content": "Q"}], "media": []}, 4)
        assert "[key" in str(caught.value) and "s3cr" not in str(caught.value)
    for broken in ("s3cret\nkey", "s3crét"):
        monkeypatch.setenv("MY_KEY", broken)
        with pytest.raises(EvaluationError, match="MY_KEY holds") as caught:
            endpoint.Endpoint(EndpointConfig(url=server.url, api_key_env="MY_KEY"), "m", str(tmp_path))
        assert "s3cr" not in str(caught.value)
    with pytest.raises(ValueError, match="no user, password"):
        EndpointConfig(url="https://user:password@example.org/v1")


def test_text_only_sends_no_picture(bench: Path, tmp_path: Path) -> None:
    with running(lambda body, number: "A") as server:
        settings = recipe(server.url).model_copy(update={"ablation": "text_only"})
        score(bench, tmp_path, settings)
    assert server.requests and all(
        isinstance(m["content"], str) for b in server.requests for m in b["messages"]
    )
    assert all("Options: (A)" in words_of(body) for body in server.requests)


def test_the_command_asks_an_endpoint_and_force_asks_again(
    bench: Path, tmp_path: Path, answers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    def call(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        cli.add_subcommands(parser.add_subparsers(required=True))
        parsed = parser.parse_args(arguments)
        return int(parsed.run(parsed))

    with running(right_answer(answers)) as server:
        command = [
            "evaluate", "--model", "openai:tiny", "--endpoint", server.url, "--data", str(bench), "--sub-task", "intent",
            "--out", str(tmp_path / "out"), "--set", "baselines=[]", "--set", "bootstrap.samples=100",
        ]  # fmt: skip
        assert call(*command, "--dry-run") == 0
        shown = capsys.readouterr().out
        assert "pass model: 8 questions, 0 of them answered already" in shown and server.url in shown
        assert "8 pictures and clips" in shown and not server.requests and not (tmp_path / "out").exists()
        assert call(*command) == 0 and len(server.requests) == 8
        assert json.loads((tmp_path / "out" / "results.json").read_text())["recipe"]["mode"] == "generate"
        assert call(*command, "--resume") == 0 and len(server.requests) == 8
        assert "nothing changed" in capsys.readouterr().out
        assert call(*command, "--force") == 0 and len(server.requests) == 16
    assert call(*command[:3], "--data", str(bench), "--out", str(tmp_path / "x")) == 1
    assert "--endpoint URL" in capsys.readouterr().err
    assert call(*command, "--mode", "likelihood") == 1
    assert "--mode generate" in capsys.readouterr().err
