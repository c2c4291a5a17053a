"""EmoPrompt: a scaffold per sub-task that leads from what is seen to what is felt (our reading of EmoLLM).

`direct` asks as EmoBench does; `emoprompt` puts the scaffold before the question. The style is a switch of the recipe
and is saved with the processor, so that a model is always asked in the way it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

PromptStyle = Literal["direct", "emoprompt"]

# observe → link the cues to a feeling → decide
SCAFFOLDS = {
    "emo_c": "Look at eyes, brows and mouth; ask what feeling shapes them so; then choose.",
    "emo_o": "Look at eyes, brows and mouth; ask what feeling shapes them so; then name it.",
    "intent": "Look at posture, hands and face; ask what they tell the other person; then choose.",
    "hate": "See who is shown and what is said of them; ask whether it attacks the group; then decide.",
    "humor": "See what is expected and what comes instead; ask whether the turn amuses; then decide.",
    "sarcasm": "See what is said and what is meant; ask whether they oppose each other; then decide.",
}


def scaffolded(messages: Sequence[dict[str, str]], sub_task: str, style: PromptStyle) -> list[dict[str, str]]:
    """The messages with the sub-task's scaffold before the last user turn; unchanged for `direct`."""
    turns = [dict(message) for message in messages]
    if style == "direct":
        return turns
    for turn in reversed(turns):
        if turn["role"] == "user":
            turn["content"] = f"{SCAFFOLDS[sub_task]}\n{turn['content']}"
            break
    return turns
