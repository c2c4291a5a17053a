"""Any chat template to token ids with a known answer span: rendered once without and once with the answer.

The text of the chat up to the assistant's turn must be the beginning of the text with the answer in it, and its tokens
the beginning of the tokens; what comes behind, up to the end of the turn, is the answer. So the span is known from the
template itself, and a template or tokenizer for which it is not is refused. White space alone may differ before the
answer (LLaVA-OneVision's template has a space more there): the answer then stands directly behind the prompt, where the
model will be asked to begin.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

_QUESTION = "?"


class ChatTemplateError(ValueError):
    """A chat template that does not say where the answer is; the message shows where the two renderings part."""


class Turns(NamedTuple):
    """Token ids of a rendered chat; `supervised` is the half-open span of the answer, None without one."""

    input_ids: list[int]
    supervised: tuple[int, int] | None


class Chat:
    """The chat template of a tokenizer. `messages` hold `content` as the template takes it.

    That is a list of typed parts in multimodal models, and a text in language models (`typed=False`).
    """

    def __init__(self, tokenizer: Any, typed: bool = True) -> None:
        self.tokenizer, self.typed = tokenizer, typed
        if not tokenizer.chat_template:
            raise ChatTemplateError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
        self.end_id = self._end_of_turn()

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """The chat up to where the assistant speaks."""
        text: str = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        return text

    def tail(self, answer: str) -> str:
        """What the template writes behind the prompt for an answer, without what comes after the answer."""
        return self._behind_prompt(answer)[0]

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; the tokenizer's own first token is put before it where the template does not."""
        bos = self.tokenizer.bos_token
        add = bool(bos) and not text.startswith(bos)
        found: list[int] = self.tokenizer(text, add_special_tokens=add)["input_ids"]
        return found

    def turns(self, prompt: str, answer: str | None) -> Turns:
        """Ids of a rendered prompt, and of the answer and the end of the turn behind it if given."""
        ids = self.ids(prompt)
        if answer is None:
            return Turns(ids, None)
        full = [*self.ids(prompt + self.tail(answer)), self.end_id]
        if full[: len(ids)] != ids:
            raise ChatTemplateError(
                f"the tokenizer of {self.tokenizer.name_or_path} joins the end of the prompt with the answer "
                f"{answer!r}; the prompt's tokens must be the beginning of the chat's"
            )
        return Turns(full, (len(ids), len(full)))

    def continuation(self, answer: str) -> list[int]:
        """The ids of an answer as it stands behind any prompt, without the end of the turn."""
        turns = self.turns(self.prompt([self._turn("user", _QUESTION)]), answer)
        assert turns.supervised is not None
        return turns.input_ids[turns.supervised[0] : -1]

    def _behind_prompt(self, answer: str) -> tuple[str, str]:
        """What the template writes behind the prompt: up to the end of the answer, and after it."""
        name = self.tokenizer.name_or_path or "this tokenizer"
        asked = self._turn("user", _QUESTION)
        prompt = self.prompt([asked])
        full: str = self.tokenizer.apply_chat_template(
            [asked, self._turn("assistant", answer)], tokenize=False
        )
        same = len(os.path.commonprefix([prompt, full]))
        place = full.find(answer, same)
        if place < 0:
            raise ChatTemplateError(
                f"the chat template of {name} changes the answer {answer!r} to {full[same:][:60]!r}"
            )
        before, after = full[:place], full[place + len(answer) :]
        if same == len(prompt):
            return before[same:] + answer, after
        if prompt[-1:].isspace() and before.split() == prompt.split():
            return answer, after
        raise ChatTemplateError(
            f"the chat template of {name} does not begin an answered chat as it ends a prompt: "
            f"{prompt[same : same + 30]!r} against {full[same : same + 30]!r}"
        )

    def _turn(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self.typed else text}

    def _end_of_turn(self) -> int:
        """The special token that the template writes behind an answer; the tokenizer's end token where it writes none."""
        special = set(self.tokenizer.all_special_ids)
        for token in self.tokenizer(self._behind_prompt("Yes")[1], add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ChatTemplateError(
                f"neither the chat template nor the tokenizer of {self.tokenizer.name_or_path} ends an answer"
            )
        return int(self.tokenizer.eos_token_id)
