"""Tells a webhook when a flow fails or crashes and when the champion changes.

The URL is that of EMOBENCH_WEBHOOK_URL, or of the Prefect secret block `emobench-webhook-url`; without either nothing is
sent. It is a secret (such addresses carry a token) and appears nowhere. The body is one JSON object: `event` (failed,
crashed, promoted, rolled_back), `text` (a line for people, which Slack and Mattermost show), `at`, and what is known of
`flow`, `flow_run`, `url`, `message`, `registry`. A webhook that does not answer is logged and never fails a flow.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

from flows.redact import redactor

VARIABLE = "EMOBENCH_WEBHOOK_URL"
BLOCK = "emobench-webhook-url"
_TIMEOUT_S = 10.0
_LONGEST_MESSAGE = 2000

log = logging.getLogger("prefect.emobench.notify")  # below `prefect`: its handlers show it in the run's log


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A webhook that redirects is not the one that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(event: str, **details: Any) -> bool:
    """Post the event; True where the webhook took it. Never raises."""
    url = ""
    try:
        url = webhook_url()
        if not url:
            return False
        if not url.startswith(("https://", "http://")):
            raise ValueError("the webhook's address does not start with https:// or http://")
        redact = redactor()
        known = {name: redact(str(value))[:_LONGEST_MESSAGE] for name, value in details.items() if value}
        subject = known.get("flow") or known.get("registry") or "emobench"
        text = f"{subject}: {event}" + (f": {known['message']}" if "message" in known else "")
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        body = json.dumps({"event": event, "text": text, "at": at, **known}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.build_opener(_NoRedirect()).open(request, timeout=_TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        log.warning("the webhook did not take the event %r: it answered %s", event, error.code)
    except Exception as error:  # the flow's work is not worth less for it
        reason = redactor()(str(error))
        shown = reason.replace(url, "its address") if url else reason
        log.warning("the webhook did not take the event %r: %s (%s)", event, shown, type(error).__name__)
    return False


def webhook_url() -> str:
    """The address to tell, or "" where none is set."""
    url = os.environ.get(VARIABLE, "").strip()
    if url:
        return url
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:  # asking would start a server
        return ""
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(BLOCK).get()).strip()  # type: ignore[union-attr]
    except ValueError:  # there is no such block
        return ""


def flow_ended_badly(flow: Any, flow_run: Any, state: Any) -> None:
    """State hook (on_failure, on_crashed): tell, but not for a flow that another one called, which will tell itself."""
    if getattr(flow_run, "parent_task_run_id", None) is not None:
        return
    event = "crashed" if state.is_crashed() else "failed"
    send(event, flow=flow.name, flow_run=flow_run.name, url=_page(flow_run), message=state.message)


def _page(flow_run: Any) -> str:
    from prefect.settings import get_current_settings

    page = get_current_settings().ui_url
    return f"{str(page).rstrip('/')}/runs/flow-run/{flow_run.id}" if page else ""
