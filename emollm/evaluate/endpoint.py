"""Models behind an OpenAI-compatible endpoint (vLLM, hosted ones, `emollm serve`), asked by chat completions.

A sample is sent as it is shown to every model: its turns, with pictures as data URLs of the stored bytes where their
placeholders stand, the frames of a clip as so many pictures. Sound is not sent. Temperature is 0 and the seed fixed.

A request that fails in a way that may pass (no connection, a time-out, status 408, 409, 425, 429 or 5xx) is sent again,
later each time. What then still fails has failed for good, and the run stops: answers that came are kept, the same
command goes on from there. With `allow_failures` such a sample is answered by `endpoint_error` instead, which counts as
wrong; but an endpoint that fails `DOWN_AFTER` samples in a row is down, and one that refuses the key or does not know the
model refuses every sample: both stop the run all the same.
"""

from __future__ import annotations

import base64
import collections
import email.utils
import json
import math
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.media import picture_format
from dataset_build.provenance import sha256_of_bytes, sha256_of_json
from dataset_build.schema import PLACEHOLDERS
from emollm.evaluate import ablation
from emollm.evaluate.cache import RESPONSES_FOLDER, ResponseCache, response_key
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.score import Answer

if TYPE_CHECKING:
    import httpx

    from emollm.evaluate.plan import Shard
    from emollm.evaluate.recipe import EndpointConfig
    from emollm.evaluate.run import Job

DOWN_AFTER = 5
MAX_RESPONSE_BYTES = 4 << 20
_PAUSES_S = (0.5, 30.0)  # before the second try, and the longest; doubled in between
_PASSING = frozenset({408, 409, 425, 429})
_REFUSES_ALL = frozenset({401, 403, 404, 405})
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointError(EvaluationError):
    """No answer to a request. `passing`: it may come to another try; `hopeless`: no request will be answered."""

    def __init__(
        self, text: str, passing: bool = False, hopeless: bool = False, after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.passing, self.hopeless, self.after_s = passing, hopeless, after_s


def answer_shards(shards: Sequence[Shard], job: Job) -> Iterator[int]:
    """Ask all questions of the shards and write their answers; yields 1 for every question that is answered.

    Raises EvaluationError where the endpoint fails; see the module's docstring.
    """
    from emollm.evaluate.run import answers_path, read_samples, write_answers

    assert job.endpoint is not None
    endpoint = Endpoint(job.endpoint, job.model, storage.join(job.out, RESPONSES_FOLDER), job.allow_failures)
    waiting: collections.deque[tuple[Shard, list[Future[Answer]]]] = collections.deque()
    ahead = 1 + math.ceil(2 * job.endpoint.concurrency / max(1, len(shards[0].questions)))
    total = sum(len(shard.questions) for shard in shards)
    with endpoint, ThreadPoolExecutor(job.endpoint.concurrency) as pool:
        try:
            rest = iter(shards)
            while True:
                while len(waiting) < ahead and (shard := next(rest, None)) is not None:
                    asking = job.asks(shard)
                    futures = [
                        pool.submit(
                            endpoint.answer,
                            sample["uid"],
                            ablation.ablated(sample, asking.ablation),
                            asking.max_new_tokens,
                        )
                        for sample in read_samples(job.data, shard)
                    ]
                    waiting.append((shard, futures))
                if not waiting:
                    return
                shard, futures = waiting.popleft()
                answers = []
                for future in futures:
                    answers.append(future.result())
                    yield 1
                write_answers(answers_path(job.out, shard), shard, answers)
        except EndpointError as error:
            error = endpoint.trouble or error  # of several, the one that came first
            pool.shutdown(wait=True, cancel_futures=True)
            raise EvaluationError(
                f"{error}. {endpoint.kept} of the {total} questions that were left have an answer, which is kept: start "
                f"the same command again to go on" + _advice(error, job.allow_failures)
            ) from error
        except BaseException:  # Ctrl-C: what is waiting is not sent any more
            endpoint.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _advice(error: EndpointError, allowed: bool) -> str:
    if error.hopeless or allowed:
        return ""
    return ", or with --allow-failures to count such a sample as endpoint_error"


class Endpoint:
    """One model at one endpoint, with its response cache; safe for several threads."""

    def __init__(
        self, settings: EndpointConfig, model: str, cache_folder: str, allow_failures: bool = False
    ) -> None:
        """Raises EvaluationError where the key would travel unencrypted, or is none."""
        import httpx

        self.settings, self.model, self.allow_failures = settings, model, allow_failures
        self.digest = sha256_of_json({"model": model, "url": settings.url.rstrip("/")})
        self.cache = ResponseCache(cache_folder)
        self.kept = 0  # answers of this run, cached ones among them
        self.trouble: EndpointError | None = None  # what stopped the run
        parts = urllib.parse.urlsplit(settings.url)
        local = parts.hostname in _LOOPBACK
        key = os.environ.get(settings.api_key_env, "").strip()
        if key and parts.scheme == "http" and not local:
            raise EvaluationError(
                f"endpoint {settings.url}: {settings.api_key_env} is set and would travel unencrypted; use https, or unset it"
            )
        if not all("!" <= letter <= "~" for letter in key):  # else the HTTP library's message would quote it
            raise EvaluationError(
                f"{settings.api_key_env} holds a space, a line break or a letter that no key has; set it again"
            )
        self._key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(
            base_url=f"{settings.url.rstrip('/')}/",
            headers=headers,
            timeout=settings.timeout_s,
            trust_env=not local,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._stopped = threading.Event()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()

    def answer(self, uid: str, sample: dict[str, Any], max_new_tokens: int) -> Answer:
        """The model's answer to a sample, from the cache where it has one. Raises EndpointError."""
        body, media_sha256 = request_body(sample, self.model, max_new_tokens, self.settings, with_media=False)
        key = response_key(self.digest, body, media_sha256)
        response = self.cache.get(key)
        if response is None:
            body, _ = request_body(sample, self.model, max_new_tokens, self.settings)
            try:
                response = self._ask(uid, body)
            except EndpointError as error:
                return self._failed(error)
            self.cache.put(key, response)
        with self._lock:
            self._failed_in_a_row = 0
            self.kept += 1
        return Answer(None, response["text"], [], [], math.inf, finish=response["finish"])

    def _failed(self, error: EndpointError) -> Answer:
        """The answer that stands for a request that failed for good, or the error again where it stops the run."""
        with self._lock:
            self._failed_in_a_row += 1
            down = self._failed_in_a_row >= DOWN_AFTER
            stops = error.hopeless or down or not self.allow_failures or self._stopped.is_set()
            if stops:
                self.trouble = self.trouble or error
        if stops:
            self.stop()
            raise error
        return Answer(None, "", [], [], math.inf, finish="error", error=str(error))

    def _ask(self, uid: str, body: dict[str, Any]) -> dict[str, Any]:
        pause_s, longest_s = _PAUSES_S
        for attempt in range(1, self.settings.tries + 1):
            if self._stopped.is_set():
                raise EndpointError(f"{uid}: not asked", hopeless=True)
            try:
                return self._send(body)
            except EndpointError as error:
                if not error.passing or attempt == self.settings.tries:
                    raise EndpointError(
                        f"{uid}: endpoint {self.settings.url}: {error} (try {attempt} of {self.settings.tries})",
                        hopeless=error.hopeless,
                    ) from error
                wait_s = min(longest_s, pause_s * 2 ** (attempt - 1)) * random.uniform(0.8, 1.2)
                self._stopped.wait(max(wait_s, min(error.after_s or 0.0, 4 * longest_s)))
        raise AssertionError("not reached")

    def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        deadline = time.monotonic() + self.settings.timeout_s
        data = bytearray()
        try:
            with self.client.stream("POST", "chat/completions", json=body) as response:
                for block in response.iter_bytes():
                    data += block
                    if len(data) > MAX_RESPONSE_BYTES:
                        raise EndpointError(f"a response of more than {MAX_RESPONSE_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise EndpointError(f"no response within {self.settings.timeout_s:g} s", passing=True)
                if response.status_code != 200:
                    raise _status_error(response, self._without_key(data))
        except httpx.HTTPError as error:  # its text may hold the address, never a header
            raise EndpointError(f"{type(error).__name__}: {error}"[:200], passing=True) from error
        return read_response(self._without_key(data))

    def _without_key(self, data: bytearray) -> bytes:
        """A body without the key, which some servers quote: messages and the cache are made of it."""
        return bytes(data.replace(self._key.encode(), b"[key]") if self._key else data)


def request_body(
    sample: dict[str, Any],
    model: str,
    max_new_tokens: int,
    settings: EndpointConfig,
    with_media: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """(body of the chat completion request for a sample, digests of its pictures in order).

    Without media a picture stands as its place only: what the cache's key is made of.
    """
    left = [medium for medium in sample["media"] or [] if medium["kind"] != "audio"]
    digests: list[str] = []
    messages = [
        {"role": turn["role"], "content": _content(turn["content"], left, digests, with_media)}
        for turn in sample["messages"]
    ]
    if left:
        raise EvaluationError(f"{sample['uid']}: {len(left)} media have no placeholder in the messages")
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "temperature": 0,
        "seed": settings.seed,
        "max_tokens": max_new_tokens,
    }
    body |= settings.request
    return {name: value for name, value in body.items() if value is not None}, digests


def _content(
    text: str, left: list[dict[str, Any]], digests: list[str], with_media: bool
) -> str | list[dict[str, Any]]:
    """A turn's content: its text, or typed parts where it shows pictures."""
    parts: list[dict[str, Any]] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        if said := text[position : match.start()]:
            parts.append({"type": "text", "text": said})
        position = match.end()
        if match.group() == PLACEHOLDERS["audio"]:
            continue
        if not left:
            raise EvaluationError(f"a {match.group()} placeholder has no medium")
        medium = left.pop(0)
        for data in medium["data"][:1] if medium["kind"] == "image" else medium["data"]:
            digests.append(sha256_of_bytes(data))
            parts.append({"type": "image_url", "image_url": {"url": data_url(data) if with_media else ""}})
    if said := text[position:]:
        parts.append({"type": "text", "text": said})
    pictures = any(part["type"] == "image_url" for part in parts)
    return parts if pictures else "".join(part["text"] for part in parts)


def data_url(picture: bytes) -> str:
    """Encoded picture bytes as a data URL."""
    kind = (picture_format(picture[:16]) or "jpeg").lower()
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def read_response(data: bytes) -> dict[str, Any]:
    """`{text, finish}` of a chat completion. Raises EndpointError for a body that is none."""
    try:
        choice = json.loads(data)["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason") or "stop"
        text, refusal = message.get("content"), message.get("refusal")
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = data[:80].decode("utf-8", "replace")
        raise EndpointError(f"a response that is no chat completion: {shown!r}", passing=True) from error
    if reason == "content_filter" or (refusal and not text):
        return {"text": text or refusal or "", "finish": "refused"}
    return {"text": text or "", "finish": "length" if reason == "length" else "stop"}


def _status_error(response: httpx.Response, data: bytes) -> EndpointError:
    status = response.status_code
    said = " ".join(data[:300].decode("utf-8", "replace").split())
    return EndpointError(
        f"status {status}: {said}" if said else f"status {status}",
        passing=status in _PASSING or status >= 500,
        hopeless=status in _REFUSES_ALL,
        after_s=_retry_after(response.headers.get("retry-after")),
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait; it is a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
