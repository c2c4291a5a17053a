"""Chat completions of an OpenAI-compatible endpoint (vLLM, hosted ones, `emollm serve`): how all rooms send them.

A request that fails in a way that may pass (no connection, a time-out, half a response, status 408, 409, 425, 429 or 5xx)
is sent again, later each time, or when `Retry-After` says. The key goes into the header of the requests, nowhere else; where
a server quotes it, it is taken out of what is told.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import httpx

MAX_RESPONSE_BYTES = 4 << 20
PAUSES_S = (0.5, 30.0)  # before the second try, and the longest; doubled in between
_PASSING = frozenset({408, 409, 425, 429})
_REFUSES_ALL = frozenset({401, 403, 404, 405})
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Reply(NamedTuple):
    """What the model said; it ended by itself (`stop`), at the limit of tokens (`length`) or in a refusal (`refused`)."""

    text: str
    finish: str


class ChatError(Exception):
    """No reply to a request. `kind` says why without the endpoint's own words, which stand in the message.

    `passing`: it may come to another try; `hopeless`: no request will be answered; `tries`: how often it was sent.
    """

    def __init__(
        self,
        kind: str,
        said: str = "",
        *,
        passing: bool = False,
        hopeless: bool = False,
        after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{kind}: {said}" if said else kind)
        self.kind, self.passing, self.hopeless, self.after_s, self.tries = kind, passing, hopeless, after_s, 0


class ChatClient:
    """One endpoint; safe for several threads. Use as a context manager."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        key_name: str = "the key",
        timeout_s: float = 120.0,
        tries: int = 6,
        connections: int = 4,
    ) -> None:
        """`url`: what `/chat/completions` is put behind. `key_name`: what messages call the key.

        Raises ValueError where the key would travel unencrypted, or is none.
        """
        import httpx

        parts = urllib.parse.urlsplit(url)
        local = parts.hostname in _LOOPBACK
        if key and parts.scheme == "http" and not local:
            raise ValueError(f"endpoint {url}: {key_name} would travel unencrypted; use https, or unset it")
        if not all("!" <= letter <= "~" for letter in key):  # else the HTTP library's message would quote it
            raise ValueError(
                f"{key_name} holds a space, a line break or a letter that no key has; set it again"
            )
        self.timeout_s, self.tries = timeout_s, tries
        self.sent = 0  # requests, tries among them
        self._key = key
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
            trust_env=not local,
            limits=httpx.Limits(max_connections=connections),
        )
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send nothing more, and let go of the connections."""
        self.stop()
        self._client.close()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()

    def ask(self, body: dict[str, Any]) -> Reply:
        """The model's reply to the body of a request. Raises ChatError."""
        pause_s, longest_s = PAUSES_S
        attempt = 0
        while True:
            if self.stopped:
                raise ChatError("not asked, the run is stopping", hopeless=True)
            attempt += 1
            try:
                return self._send(body)
            except ChatError as error:
                error.tries = attempt
                if not error.passing or attempt == self.tries:
                    raise
                wait_s = min(longest_s, pause_s * 2 ** (attempt - 1)) * random.uniform(0.8, 1.2)
                self._stopped.wait(max(wait_s, min(error.after_s, 4 * longest_s)))

    def _send(self, body: dict[str, Any]) -> Reply:
        import httpx

        with self._lock:
            self.sent += 1
        deadline = time.monotonic() + self.timeout_s
        data = bytearray()
        try:
            with self._client.stream("POST", "chat/completions", json=body) as response:
                for block in response.iter_bytes():
                    data += block
                    if len(data) > MAX_RESPONSE_BYTES:
                        raise ChatError(f"a response of more than {MAX_RESPONSE_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise ChatError(f"no response within {self.timeout_s:g} s", passing=True)
                if response.status_code != 200:
                    raise _status_error(response, self._without_key(data))
        except httpx.HTTPError as error:  # its text may hold the address, never a header
            raise ChatError(f"{type(error).__name__}: {error}"[:200], passing=True) from error
        return read_reply(self._without_key(data))

    def _without_key(self, data: bytearray) -> bytes:
        """A body without the key, which some servers quote."""
        return bytes(data.replace(self._key.encode(), b"[key]") if self._key else data)


def read_reply(data: bytes) -> Reply:
    """The reply in the body of a chat completion. Raises ChatError for a body that is none."""
    try:
        choice = json.loads(data)["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason") or "stop"
        text, refusal = message.get("content"), message.get("refusal")
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = data[:80].decode("utf-8", "replace")
        raise ChatError("a response that is no chat completion", repr(shown), passing=True) from error
    if reason == "content_filter" or (refusal and not text):
        return Reply(text or refusal or "", "refused")
    return Reply(text or "", "length" if reason == "length" else "stop")


def _status_error(response: httpx.Response, data: bytes) -> ChatError:
    status = response.status_code
    return ChatError(
        f"HTTP status {status}",
        " ".join(data[:300].decode("utf-8", "replace").split()),
        passing=status in _PASSING or status >= 500,
        hopeless=status in _REFUSES_ALL,
        after_s=_retry_after(response.headers.get("retry-after")),
    )


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks to wait; it is a number or a date."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
