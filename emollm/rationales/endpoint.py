"""A teacher behind an OpenAI-compatible endpoint: chat completions, pictures as data URLs, temperature 0 and a fixed seed.

Requests of a shard are sent from several threads. What may pass (429, 5xx, a broken connection, half a response) is sent
again after a growing pause, or the one that `Retry-After` asks for; a status that says the request itself is wrong is not.
An endpoint that has failed `_DOWN_AFTER` samples in a row counts as down, and the run stops there: the shards that are done
stay done. Every response is kept under the digest of (model, request with its media), so that the same question is never
sent twice.

The key comes from the environment and goes into the header of the requests, nowhere else. What an endpoint says in an error
is not shown either: some repeat the key.
"""

from __future__ import annotations

import base64
import io
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build.media import open_picture, picture_format
from dataset_build.provenance import sha256_of_json
from dataset_build.schema import PLACEHOLDERS
from emollm.evaluate.cache import ResponseCache
from emollm.evaluate.endpoint import EndpointError, read_response
from emollm.rationales import prompts, verify
from emollm.rationales.teacher import Said, TeacherError, Written, nothing_to_see, visible

if TYPE_CHECKING:
    import httpx

_MAX_TOKENS = {"write": 256, "check": 64}
_MAX_RESPONSE_BYTES = 1 << 20
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# Samples in a row; one whose request was refused as wrong (400: a policy, a limit) counts a tenth.
_DOWN_AFTER = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
_PLACES = re.compile("|".join(re.escape(token) for token in PLACEHOLDERS.values()))


class EndpointDownError(TeacherError):
    """The endpoint failed several samples in a row; what is finished stays, and the run can be started again."""


class Reply(NamedTuple):
    """A model's reply, which ended by itself (`stop`), at the limit of tokens (`length`) or in a refusal (`refused`);
    `trouble` says why there is none."""

    text: str = ""
    finish: str = "stop"
    trouble: str = ""


def checked_url(url: str) -> str:
    """A base URL that may stand in logs. Raises TeacherError, without showing what may be a secret."""
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise TeacherError(
            "--endpoint: no user, password or query in the URL; the key comes from --api-key-env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TeacherError(f"--endpoint {url!r} is no http(s) URL, for example http://127.0.0.1:8000/v1")
    return f"{url.rstrip('/')}/"


class EndpointTeacher:
    """`write` and `check` (see `teacher.Teacher`) by requests to an endpoint. Use as a context manager."""

    sees = True

    def __init__(
        self,
        url: str,
        model: str,
        cache: str,
        *,
        key: str = "",
        workers: int = 4,
        tries: int = 6,
        timeout_s: float = 120.0,
        request: dict[str, Any] | None = None,
    ) -> None:
        """`cache`: where responses are kept. `request`: keys to add to the body or replace there; null removes one."""
        import httpx

        self.model, self.tries, self.timeout_s = model, tries, timeout_s
        self.cache = ResponseCache(cache)
        self.request = dict(request or {})
        base = checked_url(url)
        parts = urllib.parse.urlsplit(base)
        local = parts.hostname in LOOPBACK
        if key and parts.scheme == "http" and not local:
            raise TeacherError(f"--endpoint {url}: the key would travel unencrypted; use https")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client: httpx.Client = httpx.Client(
            base_url=base, headers=headers, timeout=timeout_s, trust_env=not local
        )
        self.pool = ThreadPoolExecutor(workers)
        self.sent = 0
        self._stop: TeacherError | None = None
        self._closing = threading.Event()
        self._failed = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> EndpointTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()  # on Ctrl-C, what waits is not sent any more
        self.pool.shutdown(cancel_futures=True)
        self.client.close()

    def write(self, samples: Sequence[dict[str, Any]]) -> list[Written]:
        return self._each(self._write, [(sample,) for sample in samples])

    def check(self, samples: Sequence[dict[str, Any]], masked: Sequence[str]) -> list[Said]:
        return self._each(self._check, list(zip(samples, masked, strict=True)))

    def _each(self, ask: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        found = list(self.pool.map(lambda one: ask(*one), arguments))
        if self._stop is not None:
            raise self._stop
        return found

    def _write(self, sample: dict[str, Any]) -> Written:
        if nothing_to_see(sample, True):
            kinds = ", ".join(sorted({medium["kind"] for medium in sample["media"]}))
            return Written(reason="unseen_media", detail=kinds)
        try:
            content = parts_of(prompts.written(sample), sample)
        except ValueError as error:
            return Written(reason="not_put", detail=str(error)[:300])
        reply = self._reply(content, "write")
        if reply.trouble:
            return Written(reason="endpoint_error", detail=reply.trouble)
        if reply.finish == "refused":
            return Written(reply.text, reason="refused", detail="first pass")
        return Written(reply.text, reply.finish == "length")

    def _check(self, sample: dict[str, Any], masked: str) -> Said:
        reply = self._reply(prompts.checked(sample, masked), "check")
        if reply.trouble:
            return Said("", "endpoint_error", f"second pass: {reply.trouble}")
        if reply.finish == "refused":
            return Said(reply.text, "refused", "second pass")
        return Said(*verify.second_answer(sample, reply.text, reply.finish == "length"))

    # --- one request --------------------------------------------------------------------------------------------------

    def body(self, content: Any, pass_name: str) -> dict[str, Any]:
        """The request: nothing in it depends on time or place."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": _MAX_TOKENS[pass_name],
            **self.request,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _reply(self, content: Any, pass_name: str) -> Reply:
        body = self.body(content, pass_name)
        key = sha256_of_json(body)
        if (kept := self.cache.get(key)) is not None:
            return Reply(kept["text"], kept["finish"])
        reply, passing = self._sent(body)
        with self._lock:
            self._failed += (1.0 if passing else 0.1) if reply.trouble else -self._failed
            if self._failed >= _DOWN_AFTER and self._stop is None:
                self._stop = EndpointDownError(
                    f"the endpoint failed many samples in a row, last with {reply.trouble}; finished shards are kept, start "
                    f"the same command again to go on"
                )
        if not reply.trouble:
            self.cache.put(key, {"text": reply.text, "finish": reply.finish})
        return reply

    def _sent(self, body: dict[str, Any]) -> tuple[Reply, bool]:
        """(reply, whether its trouble is one that passes)."""
        reply, again, pause = Reply(trouble="nothing sent"), True, 0.0
        for attempt in range(self.tries):
            if attempt:
                self._closing.wait(pause)
            if self._stop is not None or self._closing.is_set():
                return Reply(trouble="the run is stopping"), True
            reply, again, asked_pause = self._once(body)
            if not again:
                break
            pause = min(_LONGEST_PAUSE_S, max(asked_pause, _PAUSE_S * 2**attempt))
        return reply, again

    def _once(self, body: dict[str, Any]) -> tuple[Reply, bool, float]:
        """(reply, whether to try again, seconds that the endpoint asks to wait)."""
        import httpx

        deadline = time.monotonic() + self.timeout_s
        data = bytearray()
        with self._lock:
            self.sent += 1
        try:
            with self.client.stream("POST", "chat/completions", json=body) as response:
                for block in response.iter_bytes():
                    data += block
                    if len(data) > _MAX_RESPONSE_BYTES or time.monotonic() > deadline:
                        return Reply(trouble="a response that is too long or too slow"), True, 0.0
        except httpx.HTTPError as error:  # its text may hold the address, never a header
            return Reply(trouble=f"{type(error).__name__}: {error}"[:200]), True, 0.0
        status = response.status_code
        if status == 200:
            try:
                found = read_response(bytes(data))
            except EndpointError:  # its text holds what came
                return Reply(trouble="a response that is no chat completion"), True, 0.0
            return Reply(found["text"], found["finish"]), False, 0.0
        trouble = f"HTTP status {status}"
        if status in (401, 403, 404):
            self._stop = TeacherError(
                f"the endpoint answers {trouble}: check --endpoint, --teacher-model and the key in the environment"
            )
        wait = response.headers.get("Retry-After", "")
        return (
            Reply(trouble=trouble),
            status in (408, 409, 429) or status >= 500,
            float(wait) if wait.isdigit() else 0.0,
        )


def parts_of(text: str, sample: dict[str, Any]) -> Any:
    """A text with media placeholders as the content of a turn: plain text, or typed parts with the pictures as data URLs.

    A clip is its frames in order; sound is left out. Raises ValueError where placeholders and media differ or a picture
    cannot be read.
    """
    left = list(sample["media"] or [])
    parts: list[dict[str, Any]] = []

    def say(words: str) -> None:
        if words.strip():
            parts.append({"type": "text", "text": words.strip("\n")})

    position = 0
    for match in _PLACES.finditer(text):
        say(text[position : match.start()])
        position = match.end()
        if not left or PLACEHOLDERS[left[0]["kind"]] != match[0]:
            raise ValueError(f"{sample['uid']}: the {match[0]} placeholders and the media differ")
        medium = left.pop(0)
        if medium["kind"] == "audio":
            continue
        if medium["kind"] == "video":
            say(f"(the next {len(medium['data'])} pictures are frames of one clip, in order)")
        for data in medium["data"][: 1 if medium["kind"] == "image" else None]:
            parts.append({"type": "image_url", "image_url": {"url": data_url(data)}})
    if left:
        raise ValueError(f"{sample['uid']}: {len(left)} media have no placeholder")
    say(text[position:])
    if not visible(sample):
        return "\n".join(part["text"] for part in parts)
    return parts


def data_url(data: bytes) -> str:
    """A picture as a data URL; formats that endpoints may not know are sent as PNG. Raises ValueError (MediaError)."""
    mime = _MIME.get(picture_format(data[:16]) or "")
    if mime is None:
        stream = io.BytesIO()
        open_picture(data).save(stream, "PNG")
        mime, data = "image/png", stream.getvalue()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
