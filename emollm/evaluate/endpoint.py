"""Models behind an OpenAI-compatible endpoint (vLLM, hosted ones, `emollm serve`), asked by chat completions.

A sample is sent as it is shown to every model: its turns, with pictures as data URLs of the stored bytes where their
placeholders stand, the frames of a clip as so many pictures. Sound is not sent. Temperature is 0 and the seed fixed.

How requests are sent, and sent again, is `dataset_build.chat`'s. What fails for good stops the run: answers that came are
kept, the same command goes on from there. With `allow_failures` such a sample is answered by `endpoint_error` instead, which
counts as wrong; but an endpoint that fails `DOWN_AFTER` samples in a row is down, and one that refuses the key or does not
know the model refuses every sample: both stop the run all the same.
"""

from __future__ import annotations

import base64
import collections
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.chat import ChatClient, ChatError
from dataset_build.media import picture_format
from dataset_build.provenance import sha256_of_bytes, sha256_of_json
from dataset_build.schema import PLACEHOLDERS
from emollm.evaluate import ablation
from emollm.evaluate.cache import RESPONSES_FOLDER, ResponseCache, response_key
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.score import Answer

if TYPE_CHECKING:
    from emollm.evaluate.plan import Shard
    from emollm.evaluate.recipe import EndpointConfig
    from emollm.evaluate.run import Job

DOWN_AFTER = 5
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))


class EndpointError(EvaluationError):
    """No answer to a request. `hopeless`: no request will be answered."""

    def __init__(self, text: str, hopeless: bool = False) -> None:
        super().__init__(text)
        self.hopeless = hopeless


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
        self.settings, self.model, self.allow_failures = settings, model, allow_failures
        self.digest = sha256_of_json({"model": model, "url": settings.url.rstrip("/")})
        self.cache = ResponseCache(cache_folder)
        self.kept = 0  # answers of this run, cached ones among them
        self.trouble: EndpointError | None = None  # what stopped the run
        try:
            self.client = ChatClient(
                settings.url,
                os.environ.get(settings.api_key_env, "").strip(),
                key_name=settings.api_key_env,
                timeout_s=settings.timeout_s,
                tries=settings.tries,
                connections=settings.concurrency,
            )
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        self._lock = threading.Lock()
        self._failed_in_a_row = 0

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def stop(self) -> None:
        """Send nothing more."""
        self.client.stop()

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
            stops = error.hopeless or down or not self.allow_failures or self.client.stopped
            if stops:
                self.trouble = self.trouble or error
        if stops:
            self.stop()
            raise error
        return Answer(None, "", [], [], math.inf, finish="error", error=str(error))

    def _ask(self, uid: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.client.ask(body)._asdict()
        except ChatError as error:
            raise EndpointError(
                f"{uid}: endpoint {self.settings.url}: {error} (try {error.tries} of {self.settings.tries})",
                hopeless=error.hopeless,
            ) from error


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
