"""Whether a rationale is kept: what it must look like, what is masked before the second pass, and what that must say.

**What is masked, and why.** In the second pass the label must follow from the cues, not be read off. So these are replaced
by `MASK`: every option of the sample (all of them: were it the right one alone, a gap would give it away) with the
inflections of its words; in the emotion sub-tasks every word that the synonym table of open answers knows, unless it names
something that can be seen or heard (`_CUES`: a smile is evidence for joy, "happy" is joy); in the yes/no sub-tasks yes, no
and the words that name what is asked (hateful, funny, sarcastic, ...), with a negation before them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dataset_build.schema import PLACEHOLDERS, option_texts

MASK = "____"
MAX_WORDS, MAX_CHARS = 80, 700
# So many words must be left beside the masked ones.
MIN_WORDS = 5

# Every sample that is asked and not accepted has one of these; a new reason is added here.
REASONS = {
    "unseen_media": "the sample has nothing but media that the teacher cannot take (pictures for a text model, sounds)",
    "not_put": "the sample cannot be put to the teacher: a medium that cannot be decoded, or more tokens than it takes",
    "endpoint_error": "the endpoint gave no usable response to this sample",
    "refused": "the teacher would not write about it, or not answer",
    "empty": "nothing was written",
    "too_long": f"more than {MAX_WORDS} words or {MAX_CHARS} characters, or cut off before its end",
    "markers": "a media placeholder, a chat marker or `Answer:` in the text",
    "only_label": f"fewer than {MIN_WORDS} words beside those that name an answer",
    "repeats": "it only repeats a part of the question",
    "mentions_label": "it speaks of the answer or label that the teacher was given",
    "unparsed": "the second pass names no option, or several",
    "other_answer": "the second pass reaches another answer",
}

# At the beginning only: people in the data say "I can't" as well.
_REFUSAL = re.compile(
    r"(?:unfortunately,? |sorry,? (?:but )?)?(?:i (?:can ?not|can[’']t|won[’']t|will not|am unable|am not able|must decline|"
    r"am sorry)|i[’']m (?:sorry|unable|not able)|as an ai\b)|sorry[,.]",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"<\s*[|/a-z]|\[/?INST\]|\b(?:USER|ASSISTANT|SYSTEM|Assistant|Human|User)\s*:|\banswer\s*:", re.IGNORECASE
)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)  # a reasoning model's own thoughts
_TOLD_OF = re.compile(
    r"\b(?:right|correct|given|provided|gold|true|final|expected|stated) (?:answer|label|option|choice)|\bground truth\b|"
    r"\b(?:the|this) (?:answer|label|option) (?:is|was|must|should|has)\b|\blabell?ed as\b|\bannotat",
    re.IGNORECASE,
)
# Words of the synonym table that name what can be seen or heard, or that mean many things: evidence, not the answer.
_CUES = re.compile(
    r"(?:smil|grin|laugh|tear|cry|cri(?:es|ed)|weep|wept|sob|kiss|heart|scream|smirk|vomit|puk|sneez|fever|injur|"
    r"celebrat|festiv|blank|expressionless|deadpan|tens|down|blue|cold|cross|bitter|warm|tender|bad|good|great|"
    r"wonderful|positive|negative|normal|none|nothing|ok|okay|fine|attract|interest|expect|unexpected|accept|play)\w*|"
    r"lol|haha|wow|eww|yuck|meh|hope|hurt|ill|gross",
    re.IGNORECASE,
)
# What a yes/no sub-task asks for, as word stems.
_ASKED = {
    "hate": r"hat(?:e|es|ed|ing|eful\w*|red)|offensi\w*|abus\w*|derogat\w*|slur\w*",
    "humor": r"humou?r\w*|fun|funn\w*|jok\w*|amus\w*|comic\w*|comed\w*|laughable|hilarious\w*|witty|wit|pun",
    "sarcasm": r"sarca\w*|iron(?:y|ic\w*)|mock\w*|facetious\w*|sincer\w*|literal\w*|genuine\w*|earnest\w*",
}
_NEGATION = r"(?:(?:\w+n[’']t|not|never|no|neither|nor|hardly|without|non)[ -](?:\w+ )?)?"
_ENDING = r"(?:s|es|ed|d|ing|ful|fully|y|ily|ly|er|ment|ation|ness)?"


class Judged(NamedTuple):
    """A rationale as it would be stored, and why it is rejected ("" if it is not, so far)."""

    rationale: str
    reason: str = ""
    detail: str = ""


def judged(sample: dict[str, Any], text: str, cut_off: bool = False) -> Judged:
    """What a teacher's first reply is worth before the second pass."""
    rationale = cleaned(text)
    if not rationale:
        return Judged("", "empty")
    if _REFUSAL.match(rationale):
        return Judged(rationale[:MAX_CHARS], "refused", "first pass")
    n_words = len(rationale.split())
    if cut_off or n_words > MAX_WORDS or len(rationale) > MAX_CHARS:
        how = "cut off" if cut_off else f"{n_words} words, {len(rationale)} characters"
        return Judged(rationale[:MAX_CHARS], "too_long", how)
    if marker := _MARKER.search(rationale) or _placeholder(rationale):
        return Judged(rationale, "markers", marker[0])
    if told := _TOLD_OF.search(rationale):
        return Judged(rationale, "mentions_label", told[0])
    left = len(re.findall(r"\w+", masked(sample, rationale).replace(MASK, " ")))
    if left < MIN_WORDS:
        return Judged(rationale, "only_label", f"{left} words beside it")
    if f" {_words(rationale)} " in f" {_words(' '.join(turn['content'] for turn in sample['messages']))} ":
        return Judged(rationale, "repeats")
    return Judged(rationale)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _placeholder(text: str) -> re.Match[str] | None:
    return re.search("|".join(map(re.escape, PLACEHOLDERS.values())), text)


def cleaned(text: str) -> str:
    """On one line, without a heading, quotes and emphasis around it, and without an answer behind it."""
    one_line = " ".join("".join(c if c.isprintable() else " " for c in _THOUGHT.sub("", text)).split())
    one_line = re.sub(r"^[\W_]*(?:rationale|reasoning|explanation)\W*:\W*", "", one_line, flags=re.IGNORECASE)
    behind = re.search(r"[\W_]*\b(?:final |right |correct )?answer\W*:.{0,60}$", one_line, re.IGNORECASE)
    if behind:  # what stood before keeps its full stop
        one_line = one_line[: behind.start()] + (behind[0][0] if behind[0][0] in ".!?" else "")
    return one_line.strip().strip('*"“”`').strip()


def masked(sample: dict[str, Any], rationale: str) -> str:
    """The rationale as the second pass sees it; see the module's docstring."""
    sub_task = sample["sub_task"]
    options = list(sample["options"] or ()) or [str(sample["answer"])]
    text = rationale
    if set(option_texts(sample)) != set(
        sample["options"] or ()
    ):  # letters are asked for: a letter is an answer
        text = re.sub(r"\([A-Z]{1,2}\)|\boptions? [A-Z]{1,2}\b", MASK, text)
    if sub_task in ("emo_c", "emo_o"):
        text = _without_feelings(text)
    if sub_task in _ASKED:
        text = _replaced(rf"{_NEGATION}(?:{_ASKED[sub_task]})", text)
    for option in sorted(options, key=len, reverse=True):
        text = _replaced(_forms(option), text)
    return text


def _replaced(pattern: str, text: str) -> str:
    return re.sub(rf"(?<![\w])(?:{pattern})(?![\w])", MASK, text, flags=re.IGNORECASE)


def _forms(option: str) -> str:
    """A pattern for an option with the inflections of its words: apologise, apologises, apologised, apologising."""
    words = []
    for word in option.split():
        stem = word[:-1] if len(word) > 4 and word[-1] in "ey" else word
        inflected = len(word) > 2
        words.append(
            rf"{re.escape(stem)}(?:{re.escape(word[len(stem) :])}|i)?{_ENDING}"
            if inflected
            else re.escape(word)
        )
    return r"\s+".join(words)


def _without_feelings(text: str) -> str:
    from emollm.evaluate.open_set import OK, parse

    def hidden(word: re.Match[str]) -> str:
        known = parse(word[0]).status == OK and not _CUES.fullmatch(word[0])
        return MASK if known else word[0]

    return re.sub(r"[^\W\d_]+(?:-[^\W\d_]+)*", hidden, text)


def second_answer(sample: dict[str, Any], text: str, cut_off: bool = False) -> tuple[str, str]:
    """(what the second pass said, why it does not count); for a generated reply."""
    from emollm.evaluate import open_set
    from emollm.evaluate.parse import OK, REFUSED, read_choice

    said = " ".join(text.split())[:200]
    if options := list(sample["options"] or ()):
        reading = read_choice(text, options, cut_off)
        if reading.status == REFUSED:
            return said, "refused"
        if reading.status != OK or reading.choice is None:
            return said, "unparsed"
        return options[reading.choice], "" if options[reading.choice] == sample["answer"] else "other_answer"
    if open_set.normalise(text) == open_set.normalise(sample["answer"]):
        return said, ""
    parsed, wanted = open_set.parse(text), open_set.parse(sample["answer"])
    if parsed.status == open_set.REFUSED:
        return said, "refused"
    if parsed.status != open_set.OK:
        return said, "unparsed"
    return said, "" if parsed.group == wanted.group else "other_answer"


def chosen_answer(sample: dict[str, Any], choice: int) -> tuple[str, str]:
    """The same for an option chosen by its log-probability."""
    options: Sequence[str] = sample["options"]
    return options[choice], "" if options[choice] == sample["answer"] else "other_answer"
