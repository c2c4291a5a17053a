"""Scoring without any shortcut: one sample at a time, one whole forward pass per option or generated token.

It is what `Scorer` must equal. A foreign model of a kind that nobody has tried here is checked against it on its first
samples (`agrees`), and scored by it if its batches or its cache do not give the same: slower, but right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from emollm.evaluate.score import Answer, Prompt, chosen, without_bias

if TYPE_CHECKING:
    from torch import Tensor

# Nats; float32 noise of one forward pass against another is measured below 1e-4.
TOLERANCE = 1e-3


class CarefulScorer:
    """The interface of `Scorer`; takes the same arguments."""

    def __init__(
        self,
        model: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        decode: Callable[[list[int]], str],
        end_ids: Sequence[int],
        max_new_tokens: int,
    ) -> None:
        self.model, self.collate, self.decode = model, collate, decode
        self.end_ids, self.max_new_tokens = frozenset(end_ids), max_new_tokens

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        import torch

        with torch.inference_mode():
            return [self._answer(prompt) for prompt in prompts]

    def calibrated(self, prompts: Sequence[Prompt], content_free: Sequence[Prompt | None]) -> list[Answer]:
        plain = self.answers(prompts)
        return [
            answer if bare is None else without_bias(answer, self.answers([bare])[0])
            for answer, bare in zip(plain, content_free, strict=True)
        ]

    def _answer(self, prompt: Prompt) -> Answer:
        batch = self.collate([prompt.encoded])
        batch.pop("labels", None)
        if prompt.options:
            return chosen([self._log_prob(batch, option) for option in prompt.options])
        return self._generate(batch)

    def _log_prob(self, batch: dict[str, Any], option: list[int]) -> float:
        """The sum of the log-probabilities of an option's tokens, from one pass over prompt and option."""
        log_probs_TV = self._log_probs(extended(batch, option))
        start = batch["input_ids"].shape[1] - 1
        return sum(float(log_probs_TV[start + place, token]) for place, token in enumerate(option))

    def _generate(self, batch: dict[str, Any]) -> Answer:
        tokens: list[int] = []
        steps: list[float] = []
        gap = math.inf
        for _ in range(self.max_new_tokens):
            best = self._log_probs(extended(batch, tokens))[-1].topk(2)
            gap = min(gap, float(best.values[0] - best.values[1]))
            steps.append(float(best.values[0]))
            if int(best.indices[0]) in self.end_ids:
                return Answer(None, self.decode(tokens).strip(), tokens, steps, gap)
            tokens.append(int(best.indices[0]))
        return Answer(None, self.decode(tokens).strip(), tokens, steps, gap, finish="length")

    def _log_probs(self, batch: dict[str, Any]) -> Tensor:
        return self.model(**batch, use_cache=False).logits[0].float().log_softmax(-1)


def extended(batch: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """The inputs of one sample with text tokens behind."""
    if not ids:
        return batch
    longer = dict(batch)

    def behind(name: str, value: Tensor) -> None:
        longer[name] = torch.cat([batch[name], value.to(batch[name])], dim=-1)

    import torch

    more_1S = torch.tensor([list(ids)])
    behind("input_ids", more_1S)
    behind("attention_mask", torch.ones_like(more_1S))
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in batch:
            behind(name, torch.zeros_like(more_1S))
    if "position_ids" in batch:  # (3, 1, T): text goes on from the largest, alike in all three
        start = batch["position_ids"].amax(dim=-1, keepdim=True).amax(dim=0, keepdim=True) + 1
        steps = torch.arange(len(ids), device=start.device)
        behind("position_ids", (start + steps).expand(batch["position_ids"].shape[0], -1, -1))
    return longer


def agrees(scorer: Any, careful: CarefulScorer, prompts: Sequence[Prompt]) -> bool:
    """Whether a scorer gives what the careful one gives, for all options of the prompts."""
    for ours, theirs in zip(scorer.answers(prompts), careful.answers(prompts), strict=True):
        pairs = zip(ours.log_probs, theirs.log_probs, strict=True)
        if not all(abs(one - other) <= TOLERANCE for one, other in pairs):  # also where one is no number
            return False
    return True
