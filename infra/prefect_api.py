"""The few calls of Prefect's REST API that the local set-up needs, without importing Prefect (which takes seconds)."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any, NamedTuple

FINAL_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_BUSY_PATIENCE_S = 60.0
_OPEN_STATES = ("RUNNING", "PENDING", "CANCELLING")


class ApiError(ValueError):
    """The server refused a call, or did not answer it."""


class _BusyError(ApiError):
    """The server is up but cannot answer now."""


class LogLine(NamedTuple):
    timestamp: str
    level: int
    message: str


class PrefectApi:
    """Calls of the API at `url`, for example http://127.0.0.1:4200/api. Raises ApiError with the server's words.

    `auth_string` (user:password) is what the server was given as PREFECT_SERVER_API_AUTH_STRING.
    """

    def __init__(self, url: str, timeout_s: float = 20.0, *, auth_string: str = "") -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"}
        if auth_string:
            self._headers["Authorization"] = f"Basic {base64.b64encode(auth_string.encode()).decode()}"
        loopback = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")  # needs no proxy
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if loopback else []))

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to one call. A server that is busy (503, as SQLite under load gives) is asked again for a minute."""
        until, pause = time.monotonic() + _BUSY_PATIENCE_S, 0.5
        while True:
            try:
                return self._call_once(method, path, body)
            except _BusyError:
                if time.monotonic() + pause > until:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 8.0)

    def _call_once(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, self._headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            kind = _BusyError if error.code == 503 else ApiError
            if error.code == 401:
                detail += "; set PREFECT_API_AUTH_STRING to the server's user:password"
            raise kind(f"{method} {path}: the Prefect server answered {error.code}: {detail}") from error
        except OSError as error:
            raise ApiError(
                f"{method} {path}: the Prefect server at {self.url} does not answer: {error}"
            ) from error
        return json.loads(text) if text else None

    def has_online_worker(self, pool: str) -> bool:
        try:
            workers = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        except ApiError:
            return False
        return any(worker.get("status") == "ONLINE" for worker in workers)

    def deployment_id(self, name: str) -> str:
        """The id of the deployment FLOW/NAME."""
        return str(self.call("GET", f"/deployments/name/{urllib.parse.quote(name)}")["id"])

    def start(self, deployment_id: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """A new flow run of the deployment, scheduled for now. Asked again, the server makes no second one."""
        body = {
            "parameters": parameters,
            "state": {"type": "SCHEDULED"},
            "idempotency_key": uuid.uuid4().hex,
        }
        return dict(self.call("POST", f"/deployments/{deployment_id}/create_flow_run", body))

    def open_run_of(self, deployment_id: str) -> dict[str, Any] | None:
        """The oldest run of the deployment that is about to run or runs; None where there is none."""
        body = {
            "flow_runs": {
                "deployment_id": {"any_": [deployment_id]},
                "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}},
            },
            "sort": "START_TIME_ASC",
            "limit": 1,
        }
        runs = self.call("POST", "/flow_runs/filter", body)
        return dict(runs[0]) if runs else None

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/flow_runs/{run_id}"))

    def children(self, run_id: str) -> list[str]:
        """The ids of the flow runs that `run_id` called."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "limit": 200}
        return [str(run["id"]) for run in self.call("POST", "/flow_runs/filter", body)]

    def logs(self, run_ids: list[str], offset: int) -> list[LogLine]:
        """Log lines of the runs, oldest first, from number `offset` on; at most 200."""
        body = {
            "logs": {"flow_run_id": {"any_": run_ids}},
            "sort": "TIMESTAMP_ASC",
            "offset": offset,
            "limit": 200,
        }
        lines = self.call("POST", "/logs/filter", body)
        return [LogLine(line["timestamp"], line["level"], line["message"]) for line in lines]

    def set_state(self, run_id: str, state: str, message: str, force: bool = False) -> None:
        body = {"state": {"type": state, "name": state.capitalize(), "message": message}, "force": force}
        self.call("POST", f"/flow_runs/{run_id}/set_state", body)

    def put_automation(self, automation: dict[str, Any]) -> bool:
        """Create the automation, or replace the one of the same name; True where it is new."""
        same_name = {"automations": {"name": {"any_": [automation["name"]]}}}
        found = self.call("POST", "/automations/filter", same_name)
        if not found:
            self.call("POST", "/automations/", automation)
            return True
        self.call("PUT", f"/automations/{found[0]['id']}", automation)
        return False

    def sweep_dead_runs(self, everything: bool) -> list[str]:
        """Mark open runs whose process is gone as crashed and free their concurrency slots; returns their names.

        Call it while no worker runs, since then no run of a deployment can be running, nor a run that one of those
        called. `everything`: also runs that were started without a worker, which is right where the server itself
        was away.
        """
        body = {"flow_runs": {"state": {"type": {"any_": list(_OPEN_STATES)}}}, "limit": 200}
        opened = {str(run["id"]): run for run in self.call("POST", "/flow_runs/filter", body)}
        dead = dict(opened) if everything else self._runs_of_workers(opened)
        for run_id in dead:
            message = "The local services were stopped while it ran; start it again to go on."
            self.set_state(run_id, "CRASHED", message, force=True)
        for limit in self.call("POST", "/v2/concurrency_limits/filter", {}):
            if limit["active_slots"]:
                self.call("PATCH", f"/v2/concurrency_limits/{limit['id']}", {"active_slots": 0})
        return [str(run["name"]) for run in dead.values()]

    def _runs_of_workers(self, opened: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of the open runs (by id) that belong to a deployment, and the open runs that they called."""
        found: dict[str, dict[str, Any]] = {}
        waiting = [run_id for run_id, run in opened.items() if run.get("deployment_id")]
        while waiting:
            run_id = waiting.pop()
            if run_id not in found:
                found[run_id] = opened[run_id]
                waiting += [child for child in self.children(run_id) if child in opened]
        return found
