"""Open answers (Emo-O) → emotion groups by a fixed, versioned table; never a judge that is sampled.

Steps: normalise the text → look for refusals → find the table's phrases and words, by lemma where a form is not listed →
group → primary emotion on the wheel. An answer stands for what its words have in common: words of one branch of groups
("joyful excitement") count as the widest of them, so naming more than one feeling never scores better than naming the right
one. An answer whose words have no group in common, or that negates what it names ("not happy"), is `unparsed`; so is one
without any word of the table, and its words are listed for whoever extends `synonyms.yaml`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from emollm.evaluate import parse as parse_choice

TABLE_PATH = Path(__file__).resolve().parent / "synonyms.yaml"

OK = "ok"
EMPTY = "empty"  # nothing but space or punctuation
UNPARSED = "unparsed"  # no word of the table, a negated one, or words of different groups
REFUSED = "refused"  # the model says that it cannot or will not answer
STATUSES = (OK, EMPTY, UNPARSED, REFUSED)

WHEEL = ("joy", "trust", "fear", "surprise", "sadness", "disgust", "anger", "anticipation")

# Words that say nothing about a feeling: they are no gap of the table.
_FUNCTION_WORDS = frozenset(
    (
        "a", "an", "the", "this", "that", "these", "those", "it", "its", "i", "he", "she", "they", "his", "her",
        "their", "there", "who", "is", "are", "was", "be", "am", "seems", "seem", "looks", "look", "looking",
        "appears", "appear", "appearing", "of", "in", "on", "at", "to", "with", "from", "for", "by", "and", "or",
        "but", "very", "quite", "rather", "so", "as", "like", "some", "about", "feel", "feels", "feeling", "feelings",
        "emotion", "emotions", "emotional", "mood", "expression", "expressing", "expresses", "person", "people",
        "man", "woman", "face", "image", "picture", "photo", "shows", "showing", "shown", "conveys", "conveying",
        "sure",
    )
)  # fmt: skip
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
_LONGEST_PHRASE = 3  # words


class Table(NamedTuple):
    """The synonym table. Words and phrases are keys as `_key` writes them.

    `group_of` and `lemma_of` map every form to its group and to its lemma; `parent_of` a group to the wider group it is a
    kind of, `wheel_of` to its primary emotion, each or None. `weak` words have everyday meanings besides.
    """

    version: str
    group_of: dict[str, str]
    lemma_of: dict[str, str]
    parent_of: dict[str, str | None]
    wheel_of: dict[str, str | None]
    weak: frozenset[str] = frozenset()

    def branch(self, group: str) -> list[str]:
        """`group` and the wider groups it is a kind of, the widest last."""
        found: list[str] = []
        at: str | None = group
        while at is not None:
            found.append(at)
            at = self.parent_of[at]
        return found

    def in_common(self, groups: Iterable[str]) -> str | None:
        """The narrowest group that all of `groups` are, or are kinds of; None where there is none."""
        branches = [self.branch(group) for group in groups]
        return next((group for group in branches[0] if all(group in other for other in branches[1:])), None)

    def counted_as(self, group: str, vocabulary: Collection[str]) -> str:
        """`group`, or the narrowest wider group of it that is in `vocabulary`; `group` itself where none is."""
        return next((wider for wider in self.branch(group) if wider in vocabulary), group)


class Parsed(NamedTuple):
    """What an open answer says: `group` is None unless status is ok. `lemmas` are those of the table that it names."""

    status: str
    group: str | None
    lemmas: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@functools.cache
def load_table(path: Path = TABLE_PATH) -> Table:
    """The synonym table.

    Raises ValueError where a word stands twice, is not normalised, or a parent, a primary emotion or a weak word is unknown.
    """
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    table = Table(str(raw["version"]), {}, {}, {}, {}, frozenset(raw.get("weak", ())))
    for group, entry in raw["groups"].items():
        _add_group(table, group, entry, path)
    for group, parent in table.parent_of.items():
        if parent is not None and table.parent_of.get(parent, group) is not None:
            raise ValueError(
                f"{path}: group {group}: parent {parent!r} is not a group without a parent; name one of those"
            )
    if unknown := sorted(table.weak - set(table.group_of)):
        raise ValueError(f"{path}: weak: {unknown[0]!r} is in no group; remove it or add it to one")
    return table


def _add_group(table: Table, group: str, entry: dict[str, Any], path: Path) -> None:
    if entry["wheel"] not in (*WHEEL, "none"):
        raise ValueError(
            f"{path}: group {group}: wheel {entry['wheel']!r}; one of {', '.join(WHEEL)} or none"
        )
    table.wheel_of[group] = None if entry["wheel"] == "none" else entry["wheel"]
    table.parent_of[group] = entry.get("parent")
    for lemma, forms in entry["lemmas"].items():
        for form in (lemma, *forms):
            if not isinstance(form, str) or form != normalise(form):
                raise ValueError(
                    f"{path}: group {group}: {form!r} is not a normalised word; quote it, in lower case"
                )
            key = _key(form)
            if key in table.group_of:
                raise ValueError(
                    f"{path}: {form!r} stands in {table.group_of[key]} and in {group}; keep it in one place"
                )
            table.group_of[key], table.lemma_of[key] = group, _key(lemma)


def normalise(text: str) -> str:
    """Lower case, compatibility forms folded, punctuation (but inner apostrophes and hyphens) and extra space removed."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("_", " ")
    kept = re.sub(r"[^\w\s'-]", " ", folded)
    return " ".join(word for word in (part.strip("'-") for part in kept.split()) if word)


def _key(text: str) -> str:
    """Normalised text with its hyphens as spaces: one spelling of `heart-broken` and `heart broken`."""
    return " ".join(normalise(text).replace("-", " ").split())


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
        return Parsed(EMPTY, None)
    for whole in (_key(text), plain.replace("-", "")):
        if whole in table.group_of:
            return Parsed(OK, table.group_of[whole], (table.lemma_of[whole],))
    if parse_choice.refuses(text):
        return Parsed(REFUSED, None)
    found, unknown = _scan(plain, table)
    strong = [entry for entry in found if entry.word not in table.weak] or found
    if not strong:
        return Parsed(UNPARSED, None, (), tuple(unknown))
    group = table.in_common(table.group_of[entry.word] for entry in strong)
    if group is None or any(entry.negated for entry in strong):
        return Parsed(UNPARSED, None)
    return Parsed(OK, group, tuple(dict.fromkeys(table.lemma_of[entry.word] for entry in strong)))


class _Found(NamedTuple):
    word: str  # a key of the table
    negated: bool


def _scan(plain: str, table: Table) -> tuple[list[_Found], list[str]]:
    """(the table's words and phrases in order, longest first; the words that are not in it)."""
    words = [part for word in plain.split() for part in _parts(word, table)]
    found: list[_Found] = []
    unknown: list[str] = []
    position = 0
    while position < len(words):
        for length in range(_LONGEST_PHRASE, 1, -1):
            phrase = " ".join(words[position : position + length])
            if phrase.count(" ") == length - 1 and phrase in table.group_of:
                entry: str | None = phrase
                break
        else:
            length, entry = 1, lookup(words[position], table)
        if entry is None:
            if words[position] not in _FUNCTION_WORDS | _NEGATIONS:
                unknown.append(words[position])
        else:
            found.append(_Found(entry, bool(_NEGATIONS & set(words[max(0, position - 2) : position]))))
        position += length
    return found, unknown


def _parts(word: str, table: Table) -> list[str]:
    """`heart-broken` as one word where the table knows it so, else its parts."""
    joined = word.replace("-", "")
    return [joined] if joined in table.group_of else word.replace("-", " ").split()


class OpenScore(NamedTuple):
    """How one open answer compares with its gold labels."""

    status: str
    group: str | None
    exact: bool
    same_group: bool
    same_wheel: bool
    unknown: tuple[str, ...]


def gold_groups(gold: Iterable[str], table: Table | None = None) -> list[str]:
    """The groups of gold labels, in order.

    Raises ValueError where one is not in the table: without it no synonym could ever count.
    """
    table = table or load_table()
    groups = []
    for label in gold:
        key = _key(label)
        if key not in table.group_of:
            raise ValueError(f"gold label {label!r} is not in {TABLE_PATH.name}; add it to a group there")
        groups.append(table.group_of[key])
    return groups


def compare(text: str, gold: tuple[str, ...], table: Table | None = None) -> OpenScore:
    """`text` against the gold labels (any of them counts).

    Exact: it names the gold label's lemma and no other. Group: its group is the gold's, or a kind of it (`amusement` where the
    gold is `joy`, not the other way round). Wheel: the same primary emotion; groups without one (neutral, sickness) match
    on the group level only. Raises ValueError where a gold label is not in the table.
    """
    table = table or load_table()
    groups = gold_groups(gold, table)
    parsed = parse(text, table)
    if parsed.group is None:
        return OpenScore(parsed.status, None, False, False, False, parsed.unknown)
    exact = any(parsed.lemmas == (table.lemma_of[_key(label)],) for label in gold)
    same_group = any(group in table.branch(parsed.group) for group in groups)
    wheels = {table.wheel_of[group] for group in groups} - {None}
    same_wheel = same_group or table.wheel_of[parsed.group] in wheels
    return OpenScore(parsed.status, parsed.group, exact, same_group, same_wheel, parsed.unknown)
