"""Responses of an endpoint, kept so that no question is paid for twice.

The key is a digest of the model (its name and endpoint), the prompt and its settings, and the media's own digests. Only
responses are kept, never failures: those are asked again.
"""

from __future__ import annotations

from typing import Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_json

RESPONSES_FOLDER = "responses"


class ResponseCache:
    """JSON files named by their key, in folders of the key's first two digits."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, Any] | None:
        """The response that was kept, or None; half a file counts as none."""
        path = self._path(key)
        if not storage.exists(path):
            return None
        try:
            content = storage.read_json(path)
        except ValueError:
            return None
        return content if isinstance(content, dict) and isinstance(content.get("text"), str) else None

    def put(self, key: str, response: dict[str, Any]) -> None:
        storage.write_json(self._path(key), response)

    def _path(self, key: str) -> str:
        return storage.join(self.folder, key[:2], f"{key}.json")


def response_key(model_digest: str, body: dict[str, Any], media_sha256: list[str]) -> str:
    """`body` is the request without its media."""
    return sha256_of_json([model_digest, body, media_sha256])
