"""Answers of a model: options by log-likelihood from one forward pass per sample, open answers by greedy decoding.

**What an option's score is.** The sum of the log-probabilities of the option's tokens behind the prompt, no
length normalisation: where no option's tokens begin another's (checked per sample), these are probabilities of disjoint
events and their order is the model's preference. Where one does begin another, the end-of-turn token is appended to
*every* option of that sample, so all are treated alike. `probability` is the softmax over a sample's options.

**One pass.** The prompts of a batch go through the model once. Single-token options are all read from the logits of the
last prompt position; longer ones continue from the same key/value cache, one row per (sample, option), so the prompt is
never computed twice. Pictures are seen only in that first pass.

**Why batch size and worker count never change a prediction.** Batches differ from single samples by float noise
(measured below 1e-4 nats in float32). Every decision whose two best candidates lie closer than `MARGIN` (an option against
the runner-up, or a token against the runner-up while decoding) is therefore made again on that sample *alone*, a
computation that depends on nothing but the sample and the model. A decision with a larger gap cannot be turned by the noise.
Prompts may be padded on either side: causal attention and the mask keep padding out of every real position.

**Calibration.** `calibrated` subtracts from each option's log-probability the one that the same option has behind a
content-free prompt (the same question and options, no media, the words replaced by N/A). Under the softmax this divides
by the content-free probabilities: contextual calibration with W = diag(p_cf)^-1, b = 0 (Zhao et al. 2021, "Calibrate
Before Use", §5), which is also the domain-conditional PMI of Holtzman et al. 2021 ("Surface Form Competition", eq. 2).

Shapes: B samples of a batch, T prompt length, R rows (sample, option), S option tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

# Nats; more than ten times the float noise between batch compositions, see the module's docstring.
MARGIN = 1e-3
# Rows (sample, option) that continue from a cache at once; bounds the memory of copied caches.
MAX_CONTINUED_ROWS = 64


class HasIds(Protocol):
    """An encoded prompt: what a family's collate function takes."""

    @property
    def input_ids(self) -> list[int]: ...


class Prompt(NamedTuple):
    """An encoded sample with its options' token ids; `options` is empty where the answer is generated."""

    encoded: HasIds
    options: list[list[int]]


class Answer(NamedTuple):
    """What the model says to one prompt.

    Scored options: `choice` is the index of the best one, `log_probs` one sum per option (order of the options).
    Generated: `text` is the decoded answer, `token_ids` without the end token, `log_probs` the log-probability of each
    step (none from an endpoint). `finish` is why it ended: `stop` (by itself), `length` (the limit of tokens), `refused`
    (an endpoint's filter) or `error`, with `error` saying why there is no answer. `gap` is the smallest difference
    (nats) between the best and the second-best candidate of the decisions taken.
    """

    choice: int | None
    text: str | None
    token_ids: list[int]
    log_probs: list[float]
    gap: float
    finish: str = "stop"
    error: str | None = None


def option_token_ids(
    options: Sequence[str], continuation: Callable[[str], list[int]], end_id: int
) -> list[list[int]]:
    """Token ids of each option; with the end token where one option begins another (see above).

    `continuation` gives the ids of a text as the model's chat template has it behind a prompt.
    """
    ids = [continuation(option) for option in options]
    for option, tokens in zip(options, ids, strict=True):
        if not tokens:
            raise ValueError(f"option {option!r} has no tokens; every option needs a visible text")
    if len({tuple(tokens) for tokens in ids}) != len(ids):
        raise ValueError(f"options {list(options)} are not distinct as tokens; remove the duplicate")
    begins = any(a is not b and b[: len(a)] == a for a in ids for b in ids)
    return [[*tokens, end_id] for tokens in ids] if begins else ids


class _Prefix(NamedTuple):
    """State behind a batch of prompts: log-probabilities (B, V) of the next token, cache, mask (B, T), and the position
    of the next token (B), which is the length unless the model counts rows and columns."""

    log_probs_BV: torch.Tensor
    cache: Any
    mask_BT: torch.Tensor
    next_B: torch.Tensor


class Scorer:
    """Scores prompts with one model, in batches of at most `batch_size`.

    `collate(encoded)` gives the model's keyword arguments, padded, `decode(token_ids)` the text of an answer.
    """

    def __init__(
        self,
        model: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        decode: Callable[[list[int]], str],
        end_ids: Sequence[int],
        batch_size: int,
        max_new_tokens: int = 16,
        margin: float = MARGIN,
    ) -> None:
        self.model, self.collate, self.decode = model.eval(), collate, decode
        self.end_ids = frozenset(end_ids)
        self.batch_size, self.max_new_tokens, self.margin = batch_size, max_new_tokens, margin

    def answers(
        self, prompts: Sequence[Prompt], advance: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One Answer per prompt, in order. Batches hold prompts of similar length and of one kind."""
        import torch

        by_kind_and_length = sorted(
            range(len(prompts)), key=lambda i: (not prompts[i].options, len(prompts[i].encoded.input_ids), i)
        )
        found: dict[int, Answer] = {}
        with torch.inference_mode():
            for indices in self._batches(by_kind_and_length, prompts):
                for index, answer in zip(
                    indices, self._answer_batch([prompts[i] for i in indices]), strict=True
                ):
                    if answer.gap < self.margin and len(indices) > 1:
                        (answer,) = self._answer_batch([prompts[index]])
                    found[index] = answer
                if advance:
                    advance(len(indices))
        return [found[index] for index in range(len(prompts))]

    def calibrated(self, prompts: Sequence[Prompt], content_free: Sequence[Prompt | None]) -> list[Answer]:
        """As `answers`, with the options' log-probabilities behind the content-free prompts taken off.

        A decision closer than the margin is made again from both prompts alone, for the same reason as there.
        """
        import torch

        plain = self.answers(prompts)
        asked = [number for number, prompt in enumerate(content_free) if prompt is not None]
        empty = self.answers([prompt for prompt in content_free if prompt is not None])
        found = list(plain)
        for number, without in zip(asked, empty, strict=True):
            found[number] = without_bias(plain[number], without)
            if found[number].gap < self.margin and self.batch_size > 1:
                other = content_free[number]
                assert other is not None
                with torch.inference_mode():
                    (alone,), (bare,) = self._answer_batch([prompts[number]]), self._answer_batch([other])
                found[number] = without_bias(alone, bare)
        return found

    def _batches(self, order: list[int], prompts: Sequence[Prompt]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in order:
            open_question = not prompts[index].options
            if (
                batches
                and len(batches[-1]) < self.batch_size
                and (not prompts[batches[-1][0]].options) == open_question
            ):
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches

    def _answer_batch(self, prompts: list[Prompt]) -> list[Answer]:
        if not prompts[0].options:
            return self._generate(prompts)
        needs_cache = any(len(option) > 1 for prompt in prompts for option in prompt.options)
        prefix = self._prefix(prompts, use_cache=needs_cache)
        totals = [
            [float(prefix.log_probs_BV[row, option[0]]) for option in prompt.options]
            for row, prompt in enumerate(prompts)
        ]
        if needs_cache:
            self._add_later_tokens(prompts, prefix, totals)
        return [chosen(scores) for scores in totals]

    def _prefix(self, prompts: list[Prompt], use_cache: bool) -> _Prefix:
        """The single forward pass over the prompts."""
        import torch

        batch = self.collate([prompt.encoded for prompt in prompts])
        mask_BT = batch["attention_mask"].long()
        lengths_B = mask_BT.sum(dim=1)
        place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        last_U, column_B = torch.unique((mask_BT * place_T).amax(dim=1), return_inverse=True)
        output = self.model(
            **{name: value for name, value in batch.items() if name != "labels"},
            use_cache=use_cache,
            logits_to_keep=last_U,
        )
        logits_BV = output.logits[torch.arange(len(prompts), device=column_B.device), column_B]
        cache = output.past_key_values if use_cache else None
        next_B = lengths_B
        if "position_ids" in batch:  # (3, B, T): time, row, column
            next_B = batch["position_ids"].masked_fill(mask_BT == 0, -1).amax(dim=(0, 2)) + 1
        return _Prefix(torch.log_softmax(logits_BV.float(), dim=-1), cache, mask_BT, next_B)

    def _add_later_tokens(self, prompts: list[Prompt], prefix: _Prefix, totals: list[list[float]]) -> None:
        """Add to `totals` the log-probabilities of the second and later tokens of the options that have them."""
        rows = [
            (number, place, option)
            for number, prompt in enumerate(prompts)
            for place, option in enumerate(prompt.options)
            if len(option) > 1
        ]
        for start in range(0, len(rows), MAX_CONTINUED_ROWS):
            part = rows[start : start + MAX_CONTINUED_ROWS]
            for (number, place, _), log_prob in zip(part, self._continue(prefix, part), strict=True):
                totals[number][place] += log_prob

    def _continue(self, prefix: _Prefix, rows: list[tuple[int, int, list[int]]]) -> list[float]:
        """Sum of log-probabilities of option tokens 2..S given the prompt and the tokens before, one per row."""
        import torch

        device = prefix.mask_BT.device
        longest = max(len(option) for _, _, option in rows) - 1
        inputs_RS = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        targets_RS = torch.zeros_like(inputs_RS)
        real_RS = torch.zeros_like(inputs_RS)
        for row, (_, _, option) in enumerate(rows):
            count = len(option) - 1
            inputs_RS[row, :count] = torch.tensor(option[:-1])
            targets_RS[row, :count] = torch.tensor(option[1:])
            real_RS[row, :count] = 1
        sample_R = torch.tensor([number for number, _, _ in rows], device=device)
        cache = copy.deepcopy(prefix.cache)
        cache.batch_select_indices(sample_R)
        output = self.model(
            input_ids=inputs_RS,
            attention_mask=torch.cat([prefix.mask_BT[sample_R], real_RS], dim=1),
            position_ids=prefix.next_B[sample_R, None] + torch.arange(longest, device=device),
            past_key_values=cache,
            use_cache=True,
        )
        log_probs_RSV = torch.log_softmax(output.logits.float(), dim=-1)
        gained_RS = log_probs_RSV.gather(2, targets_RS[..., None])[..., 0]
        return [float(value) for value in gained_RS.masked_fill(real_RS == 0, 0.0).double().sum(dim=1)]

    def _generate(self, prompts: list[Prompt]) -> list[Answer]:
        """Greedy answers of at most `max_new_tokens` tokens; a row is done at its first end token."""
        import torch

        prefix = self._prefix(prompts, use_cache=True)
        log_probs_BV, cache, mask_BT = prefix.log_probs_BV, prefix.cache, prefix.mask_BT
        tokens: list[list[int]] = [[] for _ in prompts]
        steps: list[list[float]] = [[] for _ in prompts]
        gaps = [math.inf] * len(prompts)
        done = [False] * len(prompts)
        for step in range(self.max_new_tokens):
            best_B2 = log_probs_BV.topk(2, dim=-1)
            for row in range(len(prompts)):
                if done[row]:
                    continue
                first, second = (float(value) for value in best_B2.values[row])
                gaps[row] = min(gaps[row], first - second)
                steps[row].append(first)
                token = int(best_B2.indices[row, 0])
                done[row] = token in self.end_ids
                if not done[row]:
                    tokens[row].append(token)
            if all(done) or step + 1 == self.max_new_tokens:
                break
            ones_B1 = mask_BT.new_ones(len(prompts), 1)
            mask_BT = torch.cat([mask_BT, ones_B1], dim=1)
            output = self.model(
                input_ids=best_B2.indices[:, :1],
                attention_mask=mask_BT,
                position_ids=prefix.next_B[:, None] + step,
                past_key_values=cache,
                use_cache=True,
            )
            log_probs_BV = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
        return [
            Answer(None, self.decode(ids).strip(), ids, logs, gap, finish="stop" if ended else "length")
            for ids, logs, gap, ended in zip(tokens, steps, gaps, done, strict=True)
        ]


def chosen(scores: list[float]) -> Answer:
    """The best option; of exactly equal ones the first shown (their order is a hash of the uid)."""
    choice = max(range(len(scores)), key=lambda index: (scores[index], -index))
    others = [score for index, score in enumerate(scores) if index != choice]
    gap = scores[choice] - max(others) if others else math.inf
    return Answer(choice, None, [], scores, gap)


def without_bias(answer: Answer, content_free: Answer) -> Answer:
    """The option scores less those of the content-free prompt."""
    return chosen([a - b for a, b in zip(answer.log_probs, content_free.log_probs, strict=True)])


def option_probabilities(log_probs: Sequence[float]) -> list[float]:
    """The softmax over a sample's options."""
    top = max(log_probs)
    weights = [math.exp(value - top) for value in log_probs]
    total = sum(weights)
    return [weight / total for weight in weights]
