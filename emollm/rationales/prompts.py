"""What a teacher is asked: first for a rationale, the right answer in view; then for the answer, from the rationale alone.

Our own wording. A change of anything here changes `VERSION`, and with it rationales are written anew. Everything stands in
one user turn, because some chat templates know no system turn.
"""

from __future__ import annotations

from typing import Any

from dataset_build.provenance import sha256_of_bytes
from dataset_build.schema import PLACEHOLDERS, answer_text
from emollm.rationales.verify import MASK, MAX_WORDS

# Where to look, per sub-task: observe → link.
CUES = {
    "emo_c": "eyes, brows, mouth, posture, hands, scene, colours and words, and the feeling they show or call up",
    "emo_o": "eyes, brows, mouth, posture, hands, scene, colours and words, and the feeling they show or call up",
    "intent": "posture, hands, face, tone and words, and what they are meant to bring about in the other person",
    "hate": "who is shown or spoken of, what is said or implied about them, and whether it attacks them as a group",
    "humor": "what one would expect, what comes instead, and whether that turn is meant to amuse",
    "sarcasm": "what is literally said, what face, tone and situation say, and whether the two oppose each other",
}
_WRITE = (
    "Below are a question and its right answer. Write the reasoning that leads from what is there to be seen and read to "
    "this answer: first what you notice, then what it tells. Look at {cues}. Name only what is really there. Two or three "
    "plain sentences, at most {words} words in all, on one line. Do not speak of the question, of its options, or of an "
    "answer that you were given."
)
_CHECK = (
    "Somebody who knows what is shown answered the question below with this reasoning, in which some words are hidden "
    'as {mask}: "{masked}" Which answer does the reasoning lead to? Reply with the answer alone.'
)
_TOLD = "Right answer: {answer}"


def written(sample: dict[str, Any]) -> str:
    """The first request, with the sample's own media placeholders in it."""
    head = _WRITE.format(cues=CUES[sample["sub_task"]], words=MAX_WORDS - 20)
    return "\n".join([head, f"Question: {_question(sample)}", _TOLD.format(answer=sample["answer"])])


def checked(sample: dict[str, Any], masked: str) -> str:
    """The second request: neither the label nor the media, so the answer can come from the masked reasoning only."""
    question = _question(sample)
    for placeholder in PLACEHOLDERS.values():
        question = question.replace(placeholder, "")
    return f"{_CHECK.format(mask=MASK, masked=masked)}\nQuestion: {question.rstrip()}"


def expected(sample: dict[str, Any]) -> str:
    """What the second pass has to say: the answer in the form that the question asks for."""
    return answer_text(sample)


def _question(sample: dict[str, Any]) -> str:
    """The turns of a row as one text; who speaks is said where there are several."""
    turns = sample["messages"]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


# What the words above are; stored with every rationale.
VERSION = sha256_of_bytes(
    "\x1f".join(
        [_WRITE, _CHECK, _TOLD, MASK, str(MAX_WORDS), *(f"{k}={v}" for k, v in CUES.items())]
    ).encode()
)[:12]
