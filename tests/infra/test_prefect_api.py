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
    server.answers, server.bodies = [], []
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
