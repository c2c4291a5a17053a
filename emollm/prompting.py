"""EmoPrompt: a scaffold per sub-task that leads from what is seen to what is felt. Our own design (see docs/emoprompt.md).

`direct` asks as EmoBench does. `emoprompt` puts the sub-task's scaffold before the question. `mixed` asks a fixed share of
the training rows directly, chosen by the hash of their uid, and the rest with the scaffold; a model trained so is asked
directly afterwards, which costs nothing more. The style is a switch of the recipe and is saved with the processor.

A training row with an accepted rationale (`emollm.rationales`) is asked to reason aloud (`REASON_ALOUD` behind the
scaffold) and answers with the rationale, then `ANSWER_MARK` and the answer. Without that sentence a model answers at
once: the words of the question say which of the two is wanted, so options can be scored directly behind the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

PromptStyle = Literal["direct", "emoprompt", "mixed"]

# observe → link the cues to a feeling → decide
SCAFFOLDS = {
    "emo_c": "Look at faces, posture, scene and words; ask what feeling they show or call up; then choose.",
    "emo_o": "Look at faces, posture, scene and words; ask what feeling they show or call up; then name it.",
    "intent": "Look at posture, hands, face and words; ask what they are meant to bring about; then choose.",
    "hate": "See who is shown and what is said of them; ask whether it attacks the group; then decide.",
    "humor": "See what is expected and what comes instead; ask whether the turn amuses; then decide.",
    "sarcasm": "See what is said and what is meant; ask whether they oppose each other; then decide.",
}
REASON_ALOUD = (
    'First say in a few sentences what you notice and what it tells; then write "Answer:" and the answer.'
)
ANSWER_MARK = " Answer: "


class TrainingPrompt(NamedTuple):
    """How the training rows of a recipe are asked; `rationales` maps uids to accepted rationales."""

    style: PromptStyle = "direct"
    mixed_share: float = 0.5
    rationales: Mapping[str, str] = {}

    def style_of(self, uid: str) -> PromptStyle:
        """`direct` or `emoprompt`: how this row is asked."""
        if self.style != "mixed":
            return self.style
        return "direct" if _share(uid) < self.mixed_share else "emoprompt"

    def afterwards(self) -> TrainingPrompt:
        """How the trained model will be asked: without rationales, and directly where it was `mixed`."""
        return TrainingPrompt("emoprompt" if self.style == "emoprompt" else "direct")

    def rationale_of(self, uid: str) -> str | None:
        """What this row says before its answer; None for a row without an accepted rationale or asked directly."""
        return self.rationales.get(uid) if self.style_of(uid) == "emoprompt" else None


def _share(uid: str) -> float:
    """A number in [0, 1) that depends on the uid alone."""
    digest = hashlib.sha256(f"prompt style\x1f{uid}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def known_style(style: str) -> PromptStyle:
    """`style`, checked: a saved processor may be of another version. Raises ValueError."""
    for known in get_args(PromptStyle):
        if style == known:
            return known
    raise ValueError(f"prompt style {style!r} is not one of {', '.join(get_args(PromptStyle))}")


def scaffolded(
    messages: Sequence[dict[str, str]], sub_task: str, style: PromptStyle, *, aloud: bool = False
) -> list[dict[str, str]]:
    """The messages with the sub-task's scaffold before the last user turn, and REASON_ALOUD with `aloud`.

    Unchanged for `direct` and for `mixed`, unless `aloud`.
    """
    turns = [dict(message) for message in messages]
    if style != "emoprompt" and not aloud:
        return turns
    lead = f"{SCAFFOLDS[sub_task]} {REASON_ALOUD}" if aloud else SCAFFOLDS[sub_task]
    for turn in reversed(turns):
        if turn["role"] == "user":
            turn["content"] = f"{lead}\n{turn['content']}"
            break
    return turns


def reasoned(rationale: str, answer: str) -> str:
    """The assistant's turn of a row that reasons aloud."""
    return f"{rationale}{ANSWER_MARK}{answer}"
