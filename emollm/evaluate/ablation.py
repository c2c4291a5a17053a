"""Samples with a part of them withheld: without media, without words, or without either (the content-free input).

A message of EmoBench is, line by line: the instruction, the options, what was said before, the utterance or caption, the
words in the picture, a hint at which picture is meant, the media. The instruction, the options and the hint stay in
every ablation: without them nothing is asked. `TEXT_ONLY` takes the media, `IMAGE_ONLY` the words that came with them
(sound is a medium, and stays), `CONTENT_FREE` takes both and puts N/A where the words were.
"""

from __future__ import annotations

import re
from typing import Any

from dataset_build.schema import PLACEHOLDERS

NONE, TEXT_ONLY, IMAGE_ONLY, CONTENT_FREE = "none", "text_only", "image_only", "content_free"
CONTENT_FREE_TEXT = 'Text: "N/A"'

_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))
_WORDS = re.compile(r'Before:$|(?:Text|Said|Text in the picture|.{1,60} says): "')
_HINT = re.compile(r"The (?:first|last) picture is the part of the (?:first|last) that is asked about\.$")


def ablated(sample: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy of a row (a dict with the columns of `sample_schema()`) with a part of it withheld."""
    if what == NONE:
        return sample
    keep_media, keep_words = what == IMAGE_ONLY, what == TEXT_ONLY
    messages = []
    for turn in sample["messages"]:
        content = turn["content"]
        if turn["role"] == "user":
            if not keep_words:
                content = _without_words(content, CONTENT_FREE_TEXT if what == CONTENT_FREE else None)
            if not keep_media:
                content = _PLACEHOLDER.sub("", content).rstrip()
        messages.append({**turn, "content": content})
    return {**sample, "messages": messages, "media": sample["media"] if keep_media else []}


def _without_words(content: str, instead: str | None) -> str:
    """A message without the lines between the options and the hint or media; `instead` stands in their place."""
    lines = content.split("\n")
    end = len(lines)
    while end > 1 and (not _PLACEHOLDER.sub("", lines[end - 1]).strip() or _HINT.match(lines[end - 1])):
        end -= 1
    start = next((number for number in range(1, end) if _WORDS.match(lines[number])), end)
    return "\n".join([*lines[:start], *([instead] if instead else []), *lines[end:]])
