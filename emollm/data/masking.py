"""Which tokens carry loss: the answer's, known from how the sequence was put together, never found by searching."""

from __future__ import annotations

from emollm.model.base import IGNORED
from emollm.model.chat import Turns


class EmptyMaskError(ValueError):
    """A sample with nothing to learn from; the message names its uid."""


def answer_labels(turns: Turns, uid: str, max_tokens: int | None = None) -> list[int]:
    """Labels as long as the ids: the answer's ids inside its span, -100 elsewhere.

    `max_tokens` is the longest sequence that the model takes. Raises EmptyMaskError, naming the uid, where no
    supervised token is left or part of the answer would be cut off.
    """
    if turns.supervised is None:
        raise EmptyMaskError(f"{uid}: has no answer, so nothing to learn from; leave it out of training")
    start, end = turns.supervised
    if end - start < 2:  # the end of the turn alone teaches nothing
        raise EmptyMaskError(f"{uid}: its answer has no tokens; the row needs a non-empty answer")
    if max_tokens is not None and end > max_tokens:
        raise EmptyMaskError(
            f"{uid}: the sequence has {end} tokens and the model takes {max_tokens}, so its answer would be cut off; "
            f"shorten the prompt or use fewer frames"
        )
    return [IGNORED] * start + turns.input_ids[start:end] + [IGNORED] * (len(turns.input_ids) - end)
