"""Which option a generated answer names, by fixed rules; never by a judge.

An answer is read in three steps; the first that says something decides.

1. **Stated.** The whole answer, its first or last line, or what follows an announcement ("Answer:", "the answer is",
   "I choose", "option") is an option in one of the forms `C`, `(C)`, `C.`, `(C) joy`, `C: joy`, `joy`, in any case, with
   any quotes or emphasis around. Behind a letter in brackets or with a full stop or colon, behind Yes or No and a
   comma, and behind the sentence of an announcement, an explanation may follow. All that is stated must name the same option: a letter with another option's word,
   or two announcements that differ, are `unparsed`.
2. **Refused.** `REFUSALS` lists the phrases.
3. **Mentioned.** Exactly one option's word stands in the text, as a whole word and not negated. Yes and No are not
   looked for in this step: they stand in sentences that mean something else ("there is no joke").

What is left is `empty` (no letter or digit in it), `too_long` (cut off at the limit of tokens, or of `MAX_CHARS`: what
would have followed is not known, so step 3 is not taken) or `unparsed`. A model's reasoning between <think> marks is no
part of its answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from dataset_build.schema import option_letter

OK = "ok"
EMPTY = "empty"
UNPARSED = "unparsed"
REFUSED = "refused"
TOO_LONG = "too_long"
ENDPOINT_ERROR = "endpoint_error"  # no answer came, and the run was told to go on (--allow-failures)
STATUSES = (OK, EMPTY, UNPARSED, REFUSED, TOO_LONG, ENDPOINT_ERROR)

MAX_CHARS = 4000
# Normalised text; an apostrophe stays.
REFUSALS = (
    r"\bi (?:can ?not|can't|cant|could not|couldn't|won't|will not)\b",
    r"\bi(?:'m| am) (?:sorry|unable|not able|not going to|not comfortable)\b",
    r"\bi(?:'m| am) afraid,? (?:that |but )?(?:i|it|this|there)\b",  # alone it names a feeling
    r"\bi (?:must|have to) (?:decline|refuse)\b",
    r"\b(?:sorry|unfortunately|i apologi[sz]e)\b.*\b(?:can ?not|can't|unable|not able|not possible|impossible)\b",
    r"\bsorry,? but\b",
    r"^sorry\W*$",
    r"\bas an? (?:ai|artificial intelligence|language model)\b",
    r"\b(?:it is|it's) (?:not possible|impossible) (?:to|for me)\b",
    r"\bnot (?:able|allowed|permitted) to (?:answer|help|assist|identify|determine|judge|comment)\b",
)
_REFUSAL = re.compile("|".join(REFUSALS))
_ANNOUNCED = re.compile(
    r"(?:\b(?:final |correct |right |best |my )?(?:answer|choice|option|label)\b(?: here)?"
    r"(?: is| would be| should be)?\s*[:=]?|\b(?:i|i'd|i would) (?:choose|pick|select|say)\b:?)\s*(?:option\b)?\s*"
)
_NEGATED = re.compile(
    r"(?:\b(?:not|no|never|nor|neither|without|hardly|unlike|isn't|isnt|wasn't|aren't|don't|dont|doesn't|doesnt|didn't)"
    r"|\brather than|\binstead of)(?: \w+){0,2} $"
)
_SENTENCE_END = re.compile(r"[.;!?](?=\s)")
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_YES_NO = frozenset({"yes", "no"})


class Reading(NamedTuple):
    """One of STATUSES, and the index of the option where it is `ok`."""

    status: str
    choice: int | None = None


def read_choice(text: str, options: Sequence[str], cut_off: bool = False) -> Reading:
    """The option that `text` names. `cut_off`: generation ended at the limit of tokens, not by itself."""
    text = spoken(text)
    cut_off = cut_off or len(text) > MAX_CHARS
    lines = [line for line in map(_plain, text[:MAX_CHARS].splitlines()) if _has_words(line)]
    if not lines:
        return Reading(TOO_LONG if cut_off else EMPTY)
    known = _Options(options)
    stated = known.stated(lines, cut_off)
    if stated:
        return Reading(OK, stated.pop()) if len(stated) == 1 and None not in stated else Reading(UNPARSED)
    whole = " ".join(lines)
    if _REFUSAL.search(whole):
        return Reading(REFUSED)
    if cut_off:
        return Reading(TOO_LONG)
    mentioned = known.mentioned(whole)
    if len(mentioned) == 1 and None not in mentioned:
        return Reading(OK, mentioned.pop())
    return Reading(UNPARSED)


def refuses(text: str) -> bool:
    """Whether a text says that its speaker cannot or will not answer."""
    return _REFUSAL.search(_plain(text)) is not None


def spoken(text: str) -> str:
    """A generated text without the reasoning before it; nothing of one that is still reasoning at its end."""
    said = _THOUGHT.sub("", text)
    return "" if re.match(r"\s*<think>", said) else said


def _plain(text: str) -> str:
    """Lower case, one kind of apostrophe and dash, no emphasis or quotes, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("‘", "'")
    folded = re.sub(r"[–—]", "-", folded)
    folded = re.sub(r"[*`\"“”„«»#>|~\\{}]|(?<!\w)'|'(?!\w)", " ", folded)
    return " ".join("".join(c if c.isprintable() else " " for c in folded).split())


def _has_words(text: str) -> bool:
    return any(c.isalnum() for c in text)


def _words(text: str) -> str:
    """Only the words of a plain text, for comparing labels: hyphens, underscores and punctuation are spaces."""
    return " ".join(re.sub(r"[^\w']|_", " ", text).split())


class _Options:
    """The options of one question, ready to be looked for."""

    def __init__(self, options: Sequence[str]) -> None:
        self.words = [_words(_plain(option)) for option in options]
        self.letters = {option_letter(place).casefold(): place for place in range(len(options))}

    def stated(self, lines: Sequence[str], cut_off: bool) -> set[int | None]:
        """Options that are stated (see the module's docstring); None among them where a statement contradicts itself."""
        found: set[int | None] = set()
        whole = self._form(" ".join(lines)) if not cut_off else set()
        if whole:
            return whole
        found |= self._form(lines[0], ends=not (cut_off and len(lines) == 1))
        if len(lines) > 1 and not cut_off:
            found |= self._form(lines[-1])
        for number, line in enumerate(lines):
            last = cut_off and number == len(lines) - 1
            for match in _ANNOUNCED.finditer(line):
                rest = line[match.end() :]
                if (
                    not rest and match.end() == len(line) and number + 1 < len(lines)
                ):  # "Answer:" and a new line
                    rest, last = lines[number + 1], cut_off and number + 1 == len(lines) - 1
                sentence, stop, _ = _SENTENCE_END.sub("\n", rest).partition("\n")
                found |= self._form(rest, ends=not last) or (self._form(sentence) if stop else set())
        return found

    def _form(self, text: str, ends: bool = True) -> set[int | None]:
        """The option that a piece of text is; empty where it is none. `ends`: the text is not cut off behind it."""
        text = text.strip(" .,;:!-")
        words = _words(text)
        if ends and words in self.words:
            return {self.words.index(words)}
        if ends and words in self.letters and len(words) == len(text.strip("()[]")):
            return {self.letters[words]}
        yes_no = re.match(r"(yes|no)\b(?=[.,;:!-])", text)
        if yes_no and yes_no[1] in self.words:
            return {self.words.index(yes_no[1])}
        match = re.match(
            r"(?:option )?(?:[(\[](\w{1,2})[)\]]|(\w{1,2})[).:\]](?=\s|$)|(\w{1,2})(?= -|\s))\s*", text
        )
        if not match:
            return set()
        letter = next(group for group in match.groups() if group)
        if letter not in self.letters:
            return set()
        place, rest = self.letters[letter], _words(text[match.end() :])
        if match[3]:  # a letter alone, which could be a word: only with its own option behind it
            return {place} if ends and rest == self.words[place] else set()
        begun = self._begun(rest)
        if begun == place or (begun is None and not self.mentioned(rest)):
            return {place}
        return {None}

    def _begun(self, rest: str) -> int | None:
        """The option that the words behind a letter begin with; of several the longest."""
        begun = [words for words in self.words if words and f"{rest} ".startswith(f"{words} ")]
        return self.words.index(max(begun, key=len)) if begun else None

    def mentioned(self, text: str) -> set[int | None]:
        """Options whose words stand in a text; None among them for one that is negated. Longer ones hide those in them."""
        left, found = f" {_words(text)} ", set[int | None]()
        for place in sorted(range(len(self.words)), key=lambda place: -len(self.words[place])):
            words = self.words[place]
            if not words or words in _YES_NO:
                continue
            pattern = re.compile(rf"(?<![\w']){re.escape(words)}(?![\w'])")
            for match in pattern.finditer(left):
                found.add(None if _NEGATED.search(left[: match.start()]) else place)
            left = pattern.sub(lambda match: "_" * len(match.group()), left)
        return found
