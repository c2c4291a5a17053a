"""When a training stops on the score of its validation rows: the rule of `EarlyStopConfig`, and the scores.

The history of scores is all there is to remember, so it lies in every checkpoint, and a training that goes on decides as
it would have. A score is the same, to the bit, for any number of workers with the same weights: which rows make up a
batch does not depend on them, and the sums are added up exactly.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from emollm.config import EarlyStopConfig
from emollm.data.masking import IGNORED
from emollm.data.rows import Rows
from emollm.train.fold import Fold, look_at, make_batch


class EarlyStop:
    """The rule, over `history`: one dict a score, with `step`, `loss` and `accuracy`."""

    def __init__(self, config: EarlyStopConfig, history: list[dict[str, Any]]) -> None:
        self.config, self.history = config, history
        self.best: dict[str, Any] | None = None
        self._not_better = 0
        for score in history:
            self._take(score)

    def add(self, score: dict[str, Any]) -> bool:
        """Whether it is the best so far."""
        self.history.append(score)
        self._take(score)
        return self.best is score

    @property
    def stopped(self) -> bool:
        return self._not_better >= self.config.patience

    def _take(self, score: dict[str, Any]) -> None:
        value, metric = score[self.config.metric], self.config.metric
        before = self.best[metric] if self.best else None
        gain = math.inf if before is None else before - value if metric == "loss" else value - before
        if math.isfinite(value) and gain > self.config.min_delta:
            self.best, self._not_better = score, 0
        else:
            self._not_better += 1

    def summary(self) -> dict[str, Any]:
        """What fold.json says."""
        return {
            **self.config.model_dump(),
            "best": self.best,
            "stopped_after_step": self.history[-1]["step"] if self.stopped else None,
            "history": self.history,
        }


class Validation:
    """Scores the validation rows of a fold. Every rank has one and calls `score` at the same steps."""

    def __init__(self, state: Fold) -> None:
        index = state.validation
        assert index is not None
        # Asked as the trained model will be: a rationale, written with the label in view, would give it away.
        encoder = state.rows.encoder
        encoder = encoder._replace(training=encoder.training.afterwards())
        # A row a sequence, so that the tokens of a row are known; as many rows a batch as in training.
        unpacked = state.recipe.tune.model_copy(update={"packing": False})
        self.state = replace(
            state,
            recipe=state.recipe.model_copy(update={"tune": unpacked}),
            index=index,
            rows=Rows(state.recipe.data, index, encoder, state.recipe.loader),
            steps=[],
        )
        by_length = sorted(range(len(index)), key=lambda row: (-index.lengths[row], row))
        size = unpacked.micro_batch
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        turns = -(-len(batches) // state.world)
        mine = batches[state.rank :: state.world]
        # Under ZeRO 3 all ranks must take part in every forward pass: a filler stands in for a batch.
        self._batches = mine + [[] for _ in range(turns - len(mine))]

    def look_at_pictures(self) -> None:
        """Compute the features of all media beforehand, as many as are kept. Every rank calls this."""
        look_at(self.state, range(len(self.state.index)))

    @torch.no_grad()
    def score(self, engine: Any) -> dict[str, float]:
        """`loss`, the mean per supervised token, and `accuracy`, the share of rows of which every supervised token is
        the likeliest. Every rank calls this."""
        state = self.state
        engine.eval()
        # Of each batch: negative log-likelihood, supervised tokens, right rows, rows.
        found: list[tuple[float, int, int, int]] = []
        with state.stream([[batch] for batch in self._batches]) as stream:
            for numbers, (rows,) in zip(self._batches, stream):
                batch = make_batch(state, numbers, rows)
                output = engine(**batch, supervised_only=True, num_items_in_batch=1)
                if not numbers:
                    continue
                targets = batch["labels"][:, 1:]
                right = output.logits.argmax(dim=-1) == targets[targets != IGNORED]
                counts = (targets != IGNORED).sum(dim=1).tolist()
                right_rows = sum(bool(part.all()) for part in right.split(counts))
                found.append((float(output.loss), sum(counts), right_rows, len(numbers)))
        engine.train()
        everyone: list[Any] = [None] * state.world
        dist.all_gather_object(everyone, found)
        columns = list(zip(*(one for part in everyone for one in part)))
        nll, (tokens, right_count, rows_count) = math.fsum(columns[0]), (sum(one) for one in columns[1:])
        return {"loss": nll / tokens, "accuracy": right_count / rows_count}
