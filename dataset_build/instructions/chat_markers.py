"""Text of strangers inside a prompt: nothing in it may be taken for a placeholder, a chat marker or a line of ours."""

from __future__ import annotations

import re
import unicodedata

# An opening bracket and what must follow it for the whole to be a placeholder or special token of some tokenizer:
# <image>, <|im_end|>, </s>, <<SYS>>, <start_of_turn>, <｜User｜>; hearts (<3), arrows (<-) and comparisons (a < b) are
# none. The other two signs are what NFKC, which some tokenizers apply first, turns into `<`.
_ANGLE = re.compile(r"[<＜﹤](?![\s=\-]|\d+(?:\W|$))(?=.)", re.DOTALL)
# [INST], [/INST], [CLS], [gMASK], [|user|], [unused7]; [laughs] and [1] are none.
_SQUARE = re.compile(r"([\[［])(?=([^\s\[\]［］]{1,40})[\]］])")
_SQUARE_NAME = re.compile(r"/.*|\|.*|[a-z]?[A-Z][A-Z_]*\d*|(?:unused|control)_?\d+")
# The turns of Vicuna and its kin, which are plain words.
_TURN = re.compile(
    r"(?:USER|ASSISTANT|SYSTEM)(?=[:：﹕︓])|(?:(?<=#)|(?<=# ))(?:Human|Assistant|User|System|Instruction|Response)(?=[:：﹕︓])"
)


def plain(text: str) -> str:
    """The text on one line, with a space put where a placeholder or chat marker would begin or end.

    Nothing is taken away, so that it reads as before: `<image>` becomes `< image>`, `[INST]` becomes `[ INST]`,
    `ASSISTANT:` becomes `ASSISTANT :`. White space of any kind and length becomes one space. What comes out goes
    through unchanged.
    """
    one_line = " ".join(text.split())
    spaced = _SQUARE.sub(_opened, _ANGLE.sub(lambda bracket: f"{bracket[0]} ", one_line))
    return _TURN.sub(lambda word: f"{word[0]} ", spaced)


def _opened(bracket: re.Match[str]) -> str:
    name = unicodedata.normalize("NFKC", bracket[2])
    return f"{bracket[1]} " if _SQUARE_NAME.fullmatch(name) else bracket[1]
