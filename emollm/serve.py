"""A model behind an OpenAI-compatible endpoint: `emollm serve`. Chat completions, greedy, one request at a time.

Made for trying a model from other programs and for comparing; a server with batching (vLLM) is the tool for load. It
listens on loopback unless told otherwise, has no authentication, and takes pictures as data URLs only: it fetches nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from dataset_build.schema import PLACEHOLDERS, SUB_TASKS

if TYPE_CHECKING:
    from emollm.evaluate.replica import Replica

MAX_BODY_BYTES = 64 << 20
MAX_NEW_TOKENS = 1024
DEFAULT_NEW_TOKENS = 64
_ROLES = ("system", "user", "assistant")


class RequestError(ValueError):
    """A request that cannot be answered; the message goes to the client."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Answers requests with one replica. `name` is what clients call the model."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], name: str, replica: Replica) -> None:
        super().__init__(address, _Handler)
        self.name, self.replica = name, replica
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def complete(self, request: Any) -> dict[str, Any]:
        """The chat completion for the body of a request. Raises RequestError."""
        from emollm.evaluate.asking import GENERATE, Asking
        from emollm.evaluate.protocol import EvaluationError

        if not isinstance(request, dict):
            raise RequestError("the body is no JSON object")
        if request.get("model") not in (None, self.name):
            raise RequestError(f"model {request['model']!r} is not served here; {self.name!r} is", status=404)
        most = _new_tokens(request)
        sample = _sample(request, getattr(getattr(self.replica, "processor", None), "prompt", "direct"))
        with self.one_at_a_time:
            try:
                (prompt,) = self.replica.prompts([sample], Asking(GENERATE))
            except EvaluationError as error:
                raise RequestError(str(error)) from error
            (answer,) = self.replica.scorer(1, most).answers([prompt])
        said, asked = len(answer.token_ids), len(prompt.encoded.input_ids)
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return {
            "id": f"chatcmpl-{digest[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": answer.finish,
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": self.server.name, "object": "model", "created": 0, "owned_by": "local"}
            self._send(200, {"object": "list", "data": [model]})
        elif self.path == "/health":
            self._send(200, {"status": "ok"})
        else:
            self._send(404, _error(f"{self.path} is not here; there are /v1/models and /v1/chat/completions"))

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path != "/v1/chat/completions":
                raise RequestError(f"{self.path} is not here; chat completions are", status=404)
            try:
                request = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"the body is not JSON: {error}") from error
            self._send(200, self.server.complete(request))
        except RequestError as error:
            self._send(error.status, _error(str(error)))
        except Exception as error:  # the server goes on; the client learns only that it was not its fault
            print(f"serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._send(500, _error("the model could not answer; the server's log says why"))

    def _body(self) -> bytes:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            raise RequestError("a request needs a Content-Length", status=411) from None
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            raise RequestError(f"a request may have {MAX_BODY_BYTES >> 20} MiB", status=413)
        body = self.rfile.read(length)
        # A page in a browser cannot send this type to another host unasked.
        if self.headers.get_content_type() != "application/json":
            raise RequestError("the Content-Type must be application/json", status=415)
        return body

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass  # prompts and pictures are nobody's business; errors are printed above


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _new_tokens(request: dict[str, Any]) -> int:
    """How many tokens are wanted. Raises RequestError for settings that greedy decoding cannot follow."""
    if request.get("temperature") not in (None, 0):
        raise RequestError("this server answers greedily: temperature must be 0")
    if request.get("stream"):
        raise RequestError("this server does not stream: leave stream out")
    if request.get("n") not in (None, 1):
        raise RequestError("a greedy answer is always the same: n must be 1")
    most = request.get("max_completion_tokens") or request.get("max_tokens") or DEFAULT_NEW_TOKENS
    if not isinstance(most, int) or not 1 <= most <= MAX_NEW_TOKENS:
        raise RequestError(f"max_tokens must be a whole number from 1 to {MAX_NEW_TOKENS}, not {most!r}")
    return most


def _sample(request: dict[str, Any], prompt: str) -> dict[str, Any]:
    """The request as a row of EmoBench, as far as a model sees one."""
    sub_task = request.get("sub_task")
    if sub_task not in (None, *SUB_TASKS) or (sub_task is None and prompt == "emoprompt"):
        raise RequestError(
            f"sub_task: this model is asked with a scaffold per sub-task; say one of {', '.join(SUB_TASKS)}"
        )
    turns = request.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RequestError("messages: at least one is needed")
    media: list[dict[str, Any]] = []
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise RequestError(f"messages[{number}]: an object with a role of {', '.join(_ROLES)} is needed")
        content = turn.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise RequestError(f"messages[{number}].content: a text or a list of parts is needed")
        said = "".join(_part(part, f"messages[{number}].content[{n}]", media) for n, part in enumerate(parts))
        messages.append({"role": turn["role"], "content": said})
    return {"uid": "request", "sub_task": sub_task, "messages": messages, "options": [], "answer": None, "media": media}  # fmt: skip


def _part(part: Any, where: str, media: list[dict[str, Any]]) -> str:
    """A part of a message as text; a picture goes to `media`, its placeholder stands for it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        for placeholder in PLACEHOLDERS.values():
            if placeholder in part["text"]:
                raise RequestError(f"{where}: the text holds {placeholder}, which stands for a medium")
        return str(part["text"])
    if kind == "image_url":
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        media.append(_picture(url, where))
        return PLACEHOLDERS["image"]
    raise RequestError(f"{where}: a text or an image_url is needed, not {kind!r}")


def _picture(url: Any, where: str) -> dict[str, Any]:
    from dataset_build.media import open_picture

    head, comma, encoded = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise RequestError(f"{where}: only data:image/...;base64 URLs are taken; this server fetches nothing")
    try:
        data = base64.b64decode(encoded, validate=True)
        width, height = open_picture(data).size
    except (binascii.Error, ValueError, OSError) as error:
        raise RequestError(f"{where}: not a picture that can be read: {error}") from error
    return {"kind": "image", "data": [data], "width": width, "height": height}


def make_server(model: str, host: str = "127.0.0.1", port: int = 0, name: str | None = None) -> Server:
    """A server for a model folder (or hf:NAME), bound but not yet answering: call `serve_forever`."""
    from emollm.evaluate import models
    from emollm.evaluate.protocol import EvaluationError

    found = models.read_model(model)
    if found.folds is not None:
        raise EvaluationError(
            f"{model} holds one model per fold; serve one, for example {model}/fold-{found.folds[0]}"
        )
    replica: Replica
    if found.kind == models.TRANSFORMERS:
        from emollm.evaluate.foreign import load_foreign

        replica = load_foreign(found.path)
    else:
        from emollm.evaluate.replica import load_own

        replica = load_own(found.path, "single", None)
    try:
        return Server((host, port), name or found.name, replica)
    except OSError as error:
        raise EvaluationError(
            f"cannot listen on {host}:{port}: {error}; choose another with --port"
        ) from error


def serve(model: str, host: str, port: int, name: str | None) -> None:
    """Serve until interrupted."""
    server = make_server(model, host, port, name)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"serve: anyone who can reach {host} can use this model; there is no authentication", flush=True
        )
    print(f"serving {server.name} at {server.url} (Ctrl-C stops it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()
