"""Open answers (Emo-O) → canonical emotion groups by a fixed, versioned table; never a judge that is sampled.

Steps: normalise the text → look for refusals → look up phrases and words, by lemma where the word itself is not in the
table → group. An answer that names words of two different groups, or that negates what it names ("not happy"), is
`unparsed`; so is one without any word of the table, and its words are listed for whoever extends `synonyms.yaml`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLE_PATH = Path(__file__).resolve().parent / "synonyms.yaml"

OK = "ok"
EMPTY = "empty"  # nothing but space or punctuation
UNPARSED = "unparsed"  # no word of the table, a negated one, or words of different groups
REFUSED = "refused"  # the model says that it cannot or will not answer
STATUSES = (OK, EMPTY, UNPARSED, REFUSED)

_REFUSALS = re.compile(
    r"\b(i (?:can ?not|can't|cant|am unable|am not able|won't|will not)|i'm (?:sorry|unable|not able)|sorry|as an ai)\b"
)
_NEGATIONS = frozenset(
    {"not", "no", "never", "without", "isn't", "isnt", "don't", "dont", "doesn't", "doesnt", "hardly"}
)
# Suffixes that English puts on the adjective, noun or verb of an emotion, with what stands there in the base form.
_SUFFIXES = (
    ("iness", "y"), ("ness", ""), ("fully", "ful"), ("fulness", "ful"), ("ingly", "ing"), ("edly", "ed"), ("ily", "y"),
    ("ly", ""), ("iest", "y"), ("ier", "y"), ("ied", "y"), ("ies", "y"), ("est", ""), ("est", "e"), ("er", ""), ("er", "e"),
    ("ment", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"), ("es", ""), ("s", ""), ("ful", ""), ("ish", ""),
)  # fmt: skip
_SHORTEST_STEM = 3


class Table(NamedTuple):
    """`group_of` maps a word or phrase to its group; `wheel_of` a group to its primary emotion, or None."""

    version: str
    group_of: dict[str, str]
    wheel_of: dict[str, str | None]


class Parsed(NamedTuple):
    """What an open answer says: `group` is None unless status is ok. `word` is the table's word that was found."""

    status: str
    group: str | None
    word: str | None
    unknown: tuple[str, ...] = ()


@functools.cache
def load_table(path: Path = TABLE_PATH) -> Table:
    """The synonym table. Raises ValueError where a word stands in two groups or a value has the wrong type."""
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    group_of: dict[str, str] = {}
    wheel_of: dict[str, str | None] = {}
    for group, entry in raw["groups"].items():
        wheel_of[group] = None if entry["wheel"] == "none" else entry["wheel"]
        for word in entry["words"]:
            if not isinstance(word, str) or word != normalise(word):
                raise ValueError(
                    f"{path}: group {group}: {word!r} is not a normalised word; quote it, in lower case"
                )
            if word in group_of:
                raise ValueError(
                    f"{path}: {word!r} stands in {group_of[word]} and in {group}; keep it in one group"
                )
            group_of[word] = group
    return Table(str(raw["version"]), group_of, wheel_of)


def normalise(text: str) -> str:
    """Lower case, compatibility forms folded, punctuation (but inner apostrophes and hyphens) and extra space removed."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("_", " ")
    kept = re.sub(r"[^\w\s'-]", " ", folded)
    return " ".join(word for word in (part.strip("'-") for part in kept.split()) if word)


def lemmas(word: str) -> Iterator[str]:
    """`word` and the base forms it can be an inflection of, most likely first."""
    yield word
    for suffix, base in _SUFFIXES:
        stem = word.removesuffix(suffix)
        if stem == word or len(stem) < _SHORTEST_STEM:
            continue
        yield stem + base
        if suffix in ("ed", "ing", "er", "est") and len(stem) > _SHORTEST_STEM and stem[-1] == stem[-2]:
            yield stem[:-1]


def lookup(word: str, table: Table) -> str | None:
    """The table's entry that `word` is a form of, or None."""
    return next((lemma for lemma in lemmas(word) if lemma in table.group_of), None)


def parse(text: str, table: Table | None = None) -> Parsed:
    """The emotion group that an open answer names."""
    table = table or load_table()
    plain = normalise(text)
    if not plain:
        return Parsed(EMPTY, None, None)
    joined = plain.replace("-", "")
    for whole in (plain, joined):
        if whole in table.group_of:
            return Parsed(OK, table.group_of[whole], whole)
    if _REFUSALS.search(plain):
        return Parsed(REFUSED, None, None)
    found, negated, unknown = _scan(plain.replace("-", " ").split(), table)
    groups = {table.group_of[word] for word in found}
    if negated or len(groups) != 1:
        return Parsed(UNPARSED, None, None, () if groups else tuple(unknown))
    return Parsed(OK, groups.pop(), found[0])


def _scan(words: list[str], table: Table) -> tuple[list[str], bool, list[str]]:
    """(table entries in order, whether one of them is negated, words that are not in the table)."""
    found: list[str] = []
    unknown: list[str] = []
    negated = False
    position = 0
    while position < len(words):
        pair = " ".join(words[position : position + 2])
        if " " in pair and pair in table.group_of:
            found.append(pair)
            position += 2
            continue
        entry = lookup(words[position], table)
        if entry is None:
            unknown.append(words[position])
        else:
            found.append(entry)
            negated = negated or bool(_NEGATIONS & set(words[max(0, position - 2) : position]))
        position += 1
    return found, negated, unknown


class OpenScore(NamedTuple):
    """How one open answer compares with its gold labels."""

    status: str
    group: str | None
    exact: bool
    same_group: bool
    same_wheel: bool
    unknown: tuple[str, ...]


def compare(text: str, gold: tuple[str, ...], table: Table | None = None) -> OpenScore:
    """`text` against the gold labels (any of them counts).

    Exact: the same word, or a form of it. Group: a word of the same group. Wheel: the same primary emotion on the
    wheel; groups without one (neutral, sickness) match themselves only. Raises ValueError where a gold label is not in the
    table: without it no synonym could ever count.
    """
    table = table or load_table()
    words = [normalise(label) for label in gold]
    for label, word in zip(gold, words, strict=True):
        if word not in table.group_of:
            raise ValueError(f"gold label {label!r} is not in {TABLE_PATH.name}; add it to a group there")
    parsed = parse(text, table)
    groups = {table.group_of[word] for word in words}
    same_group = parsed.group in groups
    wheels = {table.wheel_of[group] for group in groups} - {None}
    same_wheel = same_group or (parsed.group is not None and table.wheel_of[parsed.group] in wheels)
    exact = parsed.status == OK and (parsed.word in words or normalise(text) in words)
    return OpenScore(parsed.status, parsed.group, exact, same_group, same_wheel, parsed.unknown)
