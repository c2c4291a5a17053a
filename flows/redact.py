"""Keeps secrets out of logs, errors, artifacts and job metadata.

A secret is the value of an environment variable whose name says so (the address of a webhook is one, since it carries a
token), the content of Ray's token file, and the user part of a URL. They reach jobs through the cluster's own environment only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|API_KEY|ACCESS_KEY|AUTH_STRING|CREDENTIAL|WEBHOOK", re.IGNORECASE
)
_NOT_SECRET_NAME = re.compile(r"(_PATH|_FILE|(?<!WEBHOOK)_URL|_MODE|_DIR)$", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SHORTEST = 8  # shorter values ("1", "true") would blank out ordinary words


def secret_values() -> list[str]:
    """The secrets this process knows of, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NOT_SECRET_NAME.search(name) and len(value) >= _SHORTEST
    }
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if token_path and Path(token_path).is_file():
        found.add(Path(token_path).read_text().strip())
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def redactor() -> Callable[[str], str]:
    """A function that blanks this process's secrets out of a text."""
    secrets = secret_values()

    def redact(text: str) -> str:
        for value in secrets:
            text = text.replace(value, HIDDEN)
        return _URL_USER.sub(HIDDEN, text)

    return redact


def refuse_secrets(texts: Iterable[str], what: str) -> None:
    """Raise ValueError where a text holds a secret: job commands are stored in the cluster and shown in its page."""
    redact = redactor()
    for text in texts:
        if redact(text) != text:
            raise ValueError(
                f"{what} {redact(text)!r} holds a secret; leave it out and give it to the cluster through the "
                "environment (for example AWS_SECRET_ACCESS_KEY)"
            )
