"""A teacher behind an OpenAI-compatible endpoint: chat completions, pictures as data URLs, temperature 0 and a fixed seed.

Requests of a shard are sent from several threads; how, and how often, is `dataset_build.chat`'s. An endpoint that has failed
`_DOWN_AFTER` samples in a row counts as down, and the run stops there: the shards that are done stay done. Every response is
kept under the digest of (model, request with its media), so that the same question is never sent twice.

What an endpoint says in an error is not shown: some repeat the key.
"""

from __future__ import annotations

import base64
import io
import re
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from dataset_build.chat import ChatClient, ChatError
from dataset_build.media import open_picture, picture_format
from dataset_build.provenance import sha256_of_json
from dataset_build.schema import PLACEHOLDERS
from emollm.evaluate.cache import ResponseCache
from emollm.rationales import prompts, verify
from emollm.rationales.teacher import Said, TeacherError, Written, nothing_to_see, visible

_MAX_TOKENS = {"write": 256, "check": 64}
# Samples in a row; one whose request was refused as wrong (400: a policy, a limit) counts a tenth.
_DOWN_AFTER = 5
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
        self.model = model
        self.cache = ResponseCache(cache)
        self.request = dict(request or {})
        try:
            self.client = ChatClient(
                checked_url(url), key, timeout_s=timeout_s, tries=tries, connections=workers
            )
        except ValueError as error:
            raise TeacherError(str(error)) from error
        self.pool = ThreadPoolExecutor(workers)
        self._stop: TeacherError | None = None
        self._failed = 0.0
        self._lock = threading.Lock()

    @property
    def sent(self) -> int:
        """Requests so far."""
        return self.client.sent

    def __enter__(self) -> EndpointTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop()  # on Ctrl-C, what waits is not sent any more
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
        try:
            found = self.client.ask(body)
        except ChatError as error:
            self._failure(error)
            return Reply(trouble=error.kind)
        with self._lock:
            self._failed = 0.0
        self.cache.put(key, found._asdict())
        return Reply(*found)

    def _failure(self, error: ChatError) -> None:
        """Count a request that failed for good, and stop the run where the others will fail as well."""
        with self._lock:
            if self._stop is not None:
                return
            self._failed += 1.0 if error.passing else 0.1
            if error.hopeless:
                self._stop = TeacherError(
                    f"the endpoint answers {error.kind}: check --endpoint, --teacher-model and the key in the environment"
                )
            elif self._failed >= _DOWN_AFTER:
                self._stop = EndpointDownError(
                    f"the endpoint failed many samples in a row, last with {error.kind}; finished shards are kept, start "
                    "the same command again to go on"
                )
            else:
                return
        self.client.stop()


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
