"""What is asked: a bank of paraphrases per sub-task, chosen by a hash of the uid, so stable and order-independent.

A message is, line by line: the instruction; the options (closed sub-tasks); what was said before; the utterance,
tweet or caption; the words in the picture (sub-tasks about memes); the media. Texts of the data go through
`chat_markers.plain`. A sub-task can have further banks (`variants` in its file) for data that its first one does not
fit: `spoken` for clips with an utterance, `evoked` and `posted` for the sources that say so with `ASKS`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build.instructions.chat_markers import plain
from dataset_build.schema import CLOSED_SUB_TASKS, PLACEHOLDERS, Record, option_letter

if TYPE_CHECKING:
    from dataset_build.recipe import InstructionSettings

_FOLDER = Path(__file__).resolve().parent
_MAX_SPEAKER_CHARS = 60
# Sub-tasks whose point may lie in the words that are written inside the picture.
_WRITTEN_WORDS = ("hate", "humor", "sarcasm")
_HINTS = {"word": "", "letter": " Answer with the letter.", "letter_word": " Answer with letter and word."}
# What an instruction of the bank may end with, and what would contradict a hint.
_OWN_HINT = " Answer Yes or No."


class Asked(NamedTuple):
    """The user's turn, the options in the order shown, and which paraphrase it was.

    `template_id` is `<sub-task>-[<variant>-]<number>`, then `~<digest>` where a rewritten sentence was used, then
    `+<style>` where the message asks for another form of answer than the option's word.
    """

    content: str
    options: tuple[str, ...]
    template_id: str


@dataclass(frozen=True)
class Wording:
    """How the records of one source are asked: everything apart from the record that decides its message.

    `asks`: the source's `ASKS`. `answer_style`: one of `schema.ANSWER_STYLES`, or `mixed` for one of them by the
    hash of the uid. `context_chars`: how many characters of earlier turns are shown at most. `sentences`: rewritten
    instructions by template id (`dataset_build.rewriting`).
    """

    asks: str = "expressed"
    answer_style: str = "word"
    context_chars: int = 600
    sentences: Mapping[str, str] = field(default_factory=dict)


def wording(
    settings: InstructionSettings, adapter: Any, sentences: Mapping[str, str] | None = None
) -> Wording:
    """The wording of a source's records by the recipe's section `instructions`."""
    asks = getattr(adapter, "ASKS", "expressed")
    return Wording(asks, settings.answer_style, settings.context_chars, dict(sentences or {}))


@functools.cache
def banks(sub_task: str) -> dict[str, tuple[str, ...]]:
    """The paraphrases of a sub-task by variant, "" for the first bank, each in the order of the file."""
    import yaml

    path = _FOLDER / f"{sub_task}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {"": content["instructions"], **content.get("variants", {})}
    for variant, texts in found.items():
        if content["sub_task"] != sub_task or len(texts) < 20 or len(set(texts)) < len(texts):
            raise ValueError(f"{path} {variant}: expected at least 20 different instructions for {sub_task}")
    return {variant: tuple(texts) for variant, texts in found.items()}


def bank(sub_task: str, variant: str = "") -> tuple[str, ...]:
    """The paraphrases of one bank."""
    return banks(sub_task)[variant]


def variants(sub_task: str, adapter: Any) -> tuple[str, ...]:
    """The banks of a sub-task that a source may use; see `_variant`."""
    of_task, asks = banks(sub_task), getattr(adapter, "ASKS", "expressed")
    if asks in of_task:
        return (asks,)
    return ("", "spoken") if adapter.PICTURES in ("clips", "takes") and "spoken" in of_task else ("",)


def template_name(sub_task: str, variant: str, number: int) -> str:
    """The id of a bank's text: its place in the file, which therefore never changes."""
    return f"{sub_task}-{variant}-{number:02d}" if variant else f"{sub_task}-{number:02d}"


def ask(record: Record, kinds: Sequence[str], how: Wording | None = None) -> Asked:
    """The question for a record with media of these kinds: text first, the media last.

    Options come in an order drawn from the uid, so that no position is right more often than another.
    """
    how = how or Wording()
    variant = _variant(record, kinds, how.asks)
    texts = bank(record.sub_task, variant)
    number = _draw(record.uid, "instruction", len(texts))
    sentence, template_id = texts[number], template_name(record.sub_task, variant, number)
    rewritten = how.sentences.get(template_id, "")
    if rewritten and not names_answer(rewritten, record.options, (record.label, *record.other_labels)):
        sentence, template_id = rewritten, f"{template_id}~{_digest(rewritten)}"
    lines = [sentence]
    options: tuple[str, ...] = ()
    if record.sub_task in CLOSED_SUB_TASKS:
        options = tuple(sorted(record.options, key=lambda option: _hash(record.uid, option)))
        style = _style(record.uid, how.answer_style)
        if style != "word":
            lines[0] = sentence.removesuffix(_OWN_HINT) + _HINTS[style]
            template_id += f"+{style}"
        lettered = " ".join(f"({option_letter(place)}) {option}" for place, option in enumerate(options))
        lines.append(f"Options: {lettered}")
    lines += _words(record, kinds, how.context_chars)
    lines += _which_part(record)
    lines.append("".join(PLACEHOLDERS[kind] for kind in kinds))
    return Asked("\n".join(lines), options, template_id)


def _which_part(record: Record) -> list[str]:
    """What to say of a picture that comes with a part of it; a source that gives the part first is hashed by it."""
    pictures = [ref for ref in record.media if ref.kind == "image"]
    first, others = pictures[:1], pictures[1:]
    for ref in first:
        if not ref.crop and any(other.crop and other.path == ref.path for other in others):
            return ["The last picture is the part of the first that is asked about."]
        if ref.crop and any(not other.crop and other.path == ref.path for other in others):
            return ["The first picture is the part of the last that is asked about."]
    return []


def names_answer(sentence: str, options: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether an instruction gives away which option is right, by naming some of them but not all, or an answer."""
    named = {word for word in (*options, *answers) if _names(sentence, word)}
    return bool(named) and (not options or not named.issuperset(options))


def _names(sentence: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE) is not None


def _variant(record: Record, kinds: Sequence[str], asks: str) -> str:
    """Which bank of the sub-task fits: the source's own, else `spoken` for an utterance, else the first."""
    of_task = banks(record.sub_task)
    if asks in of_task:
        return asks
    utterance = record.media and (record.speaker or record.context or (_is_clip(kinds) and record.text))
    return "spoken" if utterance and "spoken" in of_task else ""


def _is_clip(kinds: Sequence[str]) -> bool:
    return "video" in kinds or "audio" in kinds


def _style(uid: str, style: str) -> str:
    names = list(_HINTS)
    return names[_draw(uid, "answer style", len(names))] if style == "mixed" else style


def _words(record: Record, kinds: Sequence[str], context_chars: int) -> list[str]:
    """What was said before, the utterance or caption, and the words in the picture, one line each.

    The text of a source without media is itself the picture, and so is not here.
    """
    before = _latest(record, context_chars)
    lines = ["Before:", *before] if before else []
    text, speaker = plain(record.text), plain(record.speaker)[:_MAX_SPEAKER_CHARS]
    if record.media and text:
        who = f"{speaker} says" if speaker else "Said" if _is_clip(kinds) else "Text"
        lines.append(f'{who}: "{text}"')
    written = plain(record.ocr_text) if record.sub_task in _WRITTEN_WORDS else ""
    if record.media and written and written != text:
        lines.append(f'Text in the picture: "{written}"')
    return lines


def _latest(record: Record, limit: int) -> list[str]:
    """The last turns before the utterance that fit into `limit` characters; a turn too long keeps its end."""
    lines: list[str] = []
    left = limit
    for turn in reversed(record.context):
        text, speaker = plain(turn.text), plain(turn.speaker)[:_MAX_SPEAKER_CHARS]
        if not text:
            continue
        head = f"{speaker}: " if speaker else "- "
        if len(head) + len(text) > left:
            room = left - len(head) - 2
            if not lines and room > 0:
                lines.append(plain(f"{head}… {text[-room:]}"))
            break
        lines.append(plain(head + text))  # again, for a speaker called USER
        left -= len(lines[-1])
    return lines[::-1]


def _hash(uid: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1f{uid}".encode()).digest()


def _draw(uid: str, salt: str, size: int) -> int:
    return int.from_bytes(_hash(uid, salt)[:8], "big") % size


def _digest(sentence: str) -> str:
    return hashlib.sha256(sentence.encode()).hexdigest()[:8]
