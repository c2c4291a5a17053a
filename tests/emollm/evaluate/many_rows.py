"""An EmoBench of 1,003 rows of every kind: closed and open, in all answer styles, of all lengths, with and without media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS
from tests.emollm.evaluate.emobench import face, sample, write_emobench

ROWS = 1003
_HINTS = {"": "", "+letter": " Answer with the letter.", "+letter_word": " Answer with letter and word."}


def make(number: int) -> dict[str, Any]:
    sub_task = ("emo_c", "emo_o", "intent", "humor", "emo_c", "sarcasm", "hate")[number % 7]
    options: tuple[str, ...] = {
        "emo_c": EMOJI_FEELINGS, "intent": GESTURE_INTENTS, "emo_o": (),
    }.get(sub_task, ("Yes", "No"))  # fmt: skip
    answer = (options or EMOJI_FEELINGS)[number % len(options or EMOJI_FEELINGS)]
    frames = 1 if number % 4 == 0 else 2 if number % 29 == 1 else 0
    pictures = [face(EMOJI_FEELINGS[number % 8], number % 40 + shift, side=24) for shift in range(frames)]
    row = sample(
        f"mixed/all/{number:04d}", sub_task, "test", None, options, answer, pictures or [b"none"], ("emoji", f"{number}")
    )  # fmt: skip
    style = ("", "+letter", "+letter_word")[number // 7 % 3] if options else ""
    content = row["messages"][0]["content"].split("\n")
    content[0] += _HINTS[style]
    content.insert(-1, f'Text: "{"so it goes " * (number % 13)}"')
    row["provenance"]["template_id"] += style
    if not frames:
        row["media"] = []
        del content[-1]
    row["messages"][0]["content"] = "\n".join(content)
    return row


def write_many(folder: Path) -> Path:
    return write_emobench(folder, [make(number) for number in range(ROWS)], rows_per_group=200)
