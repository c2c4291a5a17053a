"""The small Prefect client: a busy server is asked again, a refusal is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.prefect_api import ApiError, PrefectApi


class Server(ThreadingHTTPServer):
    answers: list[int]
    bodies: list[dict]
    runs: dict[str, tuple[str | None, str | None]]
    crashed: list[str]
    freed: list[str]


class OpenRuns(BaseHTTPRequestHandler):
    """Answers as a Prefect server does that holds `server.runs` (id → deployment_id, parent) and one taken slot."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/set_state"):
            assert body["force"] and body["state"]["type"] == "CRASHED"
            self.server.crashed.append(self.path.split("/")[2])
            self._reply({})
        elif self.path == "/v2/concurrency_limits/filter":
            self._reply([{"id": "limit", "active_slots": 1}])
        else:
            parents = body["flow_runs"].get("parent_flow_run_id", {}).get("any_")
            self._reply(
                [
                    {"id": run_id, "name": f"name-{run_id}", "deployment_id": deployment}
                    for run_id, (deployment, parent) in self.server.runs.items()
                    if parents is None or parent in parents
                ]
            )

    def do_PATCH(self) -> None:
        self.server.freed.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply({})

    def _reply(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        code = self.server.answers.pop(0)
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b'{"id": "one"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answers, server.bodies, server.crashed, server.freed = [], [], [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_busy_server_is_asked_again_with_the_same_key_so_that_one_run_starts(server: Server) -> None:
    server.answers = [503, 503, 201]
    api = PrefectApi(f"http://127.0.0.1:{server.server_port}")
    assert api.start("deployment", {"recipe": "smoke"}) == {"id": "one"}
    keys = {body["idempotency_key"] for body in server.bodies}
    assert len(server.bodies) == 3
    assert len(keys) == 1


def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.answers = [422]
    with pytest.raises(ApiError, match="422"):
        PrefectApi(f"http://127.0.0.1:{server.server_port}").start("deployment", {})
    assert len(server.bodies) == 1


def test_without_a_worker_its_runs_and_what_they_called_are_crashed_but_no_run_by_hand(
    server: Server,
) -> None:
    server.RequestHandlerClass = OpenRuns
    server.runs = {
        "retrain": ("deployment", None),
        "train": (None, "retrain"),
        "by-hand": (None, None),
        "called-by-hand": (None, "by-hand"),
    }
    api = PrefectApi(f"http://127.0.0.1:{server.server_port}")
    assert api.sweep_dead_runs(everything=False) == ["name-retrain", "name-train"]
    assert server.crashed == ["retrain", "train"]
    assert server.freed == ["/v2/concurrency_limits/limit"]

    server.crashed.clear()
    api.sweep_dead_runs(everything=True)
    assert sorted(server.crashed) == sorted(server.runs)
