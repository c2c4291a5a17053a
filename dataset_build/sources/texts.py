"""Jokes and other short texts; shared by `jokes` and `sarcastic_jokes`.

ROOT/jokes.json                          [{"body": str, "tags": [str]}]       (one-liner-joke)
ROOT/{nyt,movie,amazon}.tsv              id, mean valence, text               (vaderSentiment, ICWSM 2014)
"""

from __future__ import annotations

import hashlib
import heapq
import html
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dataset_build.sources import readers

MIN_CHARS, MAX_CHARS = 25, 200
MAX_WORD_CHARS = 22  # what fits on a line of a card
# A TSV line longer than this is a broken file, not a sentence.
MAX_LINE_BYTES = 20_000

# Tags whose jokes live off insulting a group of people or off sex; their cards would be shown in reports.
OFFENSIVE_TAGS = frozenset(
    [
        "racist",
        "sex",
        "dirty",
        "rude",
        "insults",
        "flirty",
        "blonde",
        "black",
        "gay",
        "fat",
        "ugly",
        "hate",
        "women",
        "men",
        "stupid",
        "drug",
        "death",
        "christian",
        "God",
    ]
)
# Untagged jokes of the same sort. Whole words or stems at a word's start.
_COARSE = re.compile(
    r"\b(?:fuck|shit|bitch|whore|slut|nigg|rape|rapist|porn|penis|vagina|dick|boob|sex|tits?\b|cock\b|ass\b|asshole|"
    r"cunt|bastard|pussy|suicid|virgin|naked|nude|nudity|condom|contracepti|erecti|masturbat|jew|muslim|retard|hooker|"
    r"prostitut|stripper|orgasm|breast|blowjob|hitler|nazi|pedo|incest|fat\b|obese|sperm|semen|birth control|fart|crap\b|hell\b|damn)",
    re.IGNORECASE,
)
# What the font that Pillow carries can draw: ASCII and a few typographic marks.
_DRAWABLE = re.compile(r"[\x20-\x7e‘’“”…]*")


class Text(NamedTuple):
    """One text of a file. `error` says what is wrong with its row, if anything."""

    native_id: str
    body: str
    tags: frozenset[str] = frozenset()
    error: str = ""


def jokes(root: str) -> Iterator[Text]:
    for number, row in enumerate(readers.json_value(root, "jokes.json", list)):
        native_id = f"joke-{number}"
        body = row.get("body") if isinstance(row, dict) else None
        tags = row.get("tags") if isinstance(row, dict) else None
        if not isinstance(body, str) or not body.strip() or not isinstance(tags, list):
            yield Text(native_id, "", error=f"jokes.json entry {number}: needs a body (text) and tags (list)")
            continue
        yield Text(native_id, normalise(body), frozenset(str(tag) for tag in tags))


def sentences(root: str, name: str) -> Iterator[Text]:
    """The lines of `<name>.tsv`: id, mean valence, text."""
    for number, line in enumerate(readers.read(root, f"{name}.tsv").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{len(line)} bytes in one line")
            native_id, _, body = line.decode("utf-8").split("\t")
            if not native_id or not body.strip():
                raise ValueError("the id or the text is empty")
        except ValueError as error:
            yield Text(
                f"{name}-line-{number}",
                "",
                error=f"{name}.tsv line {number}: expected id, valence, text: {error}",
            )
        else:
            yield Text(f"{name}-{native_id}", normalise(body))


def normalise(text: str) -> str:
    """One line, entities resolved, long dashes shortened, '' as a quotation mark (the film reviews' spelling)."""
    plain = html.unescape(text).replace("''", '"').replace("–", "-").replace("—", "-")
    return " ".join(plain.split())


def rule_against(text: Text) -> str:
    """Why a well-formed text is left out, or ""."""
    offensive = sorted(text.tags & OFFENSIVE_TAGS)
    if offensive:
        return f"tagged {', '.join(offensive)}"
    if _COARSE.search(text.body):
        return "coarse words"
    if not MIN_CHARS <= len(text.body) <= MAX_CHARS:
        return f"{len(text.body)} characters; cards hold {MIN_CHARS} to {MAX_CHARS}"
    if any(len(word) > MAX_WORD_CHARS for word in text.body.split()):
        return f"a word of more than {MAX_WORD_CHARS} characters"
    if not _DRAWABLE.fullmatch(text.body):
        return "characters that the card's font cannot draw"
    return ""


def group_of(body: str) -> str:
    """The group key `text`: the same words, whatever the case and punctuation, are the same text."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", body.lower())).encode()).hexdigest()[:16]


def sample(uids: Iterable[str], size: int) -> set[str]:
    """`size` of the uids, chosen by their hash: the same ones whatever the order, with `size` in memory."""
    return set(heapq.nsmallest(size, uids, key=lambda uid: (hashlib.sha256(uid.encode()).digest(), uid)))
