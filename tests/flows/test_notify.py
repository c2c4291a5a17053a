"""The webhook is told once, in JSON, and whatever it does no flow fails and its address is seen nowhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Crashed, Failed

from flows import notify
from tests.fixtures.webhook import Webhook


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    monkeypatch.setenv(notify.VARIABLE, server.url)
    yield server
    server.stop()


def test_a_promotion_is_told_as_json(webhook: Webhook) -> None:
    assert notify.send("promoted", flow="retrain-emollm", registry="runs/r", message="better", url=None)
    (body,) = webhook.bodies
    assert body.pop("at").endswith("+00:00")
    assert body == {
        "event": "promoted",
        "text": "retrain-emollm: promoted: better",
        "flow": "retrain-emollm",
        "registry": "runs/r",
        "message": "better",
    }


def ended(state: Any, parent: str | None = None) -> None:
    run = SimpleNamespace(name="smoke", id="0000", parent_task_run_id=parent)
    notify.flow_ended_badly(SimpleNamespace(name="train-emollm"), run, state)


def test_a_flow_that_failed_is_told_once_by_the_outermost_run(webhook: Webhook) -> None:
    ended(Failed(message="job train-emollm-smoke-00 failed"), parent="task-of-retrain")
    assert webhook.bodies == []
    ended(Failed(message="job train-emollm-smoke-00 failed"))
    ended(Crashed(message="the process was killed"))
    assert [body["event"] for body in webhook.bodies] == ["failed", "crashed"]
    assert webhook.bodies[0]["message"] == "job train-emollm-smoke-00 failed"


def test_secrets_are_blanked_in_what_is_told(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    notify.send("failed", flow="f", message=f"the key wJalrXUtnFEMI of {notify.webhook_url()} was refused")
    assert webhook.bodies[0]["message"] == "the key *** of *** was refused"


@pytest.mark.parametrize("answer", [500, 302, None])
def test_a_webhook_that_refuses_redirects_or_is_away_fails_nothing_and_is_not_named(
    webhook: Webhook, answer: int | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setenv(notify.VARIABLE, f"http://127.0.0.1:9{webhook.path}")
    else:
        webhook.answer = answer
    monkeypatch.setattr(notify.log, "propagate", True)
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    with caplog.at_level(logging.DEBUG):
        assert not notify.send("failed", message="why")
    assert "the webhook did not take the event 'failed'" in caplog.text
    assert webhook.token not in caplog.text


def test_an_address_that_is_none_is_refused_without_being_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.VARIABLE, "file:///etc/a-token-that-must-not-be-seen")
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    assert not notify.send("failed", message="why")
    assert "https://" in caplog.text and "must-not-be-seen" not in caplog.text
