"""Batch size, padding side and number of workers change no prediction, and every one of 1,003 rows is answered once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from dataset_build.schema import CLOSED_SUB_TASKS
from emollm.config import EvaluateRecipe
from emollm.evaluate import replica
from emollm.evaluate.results import evaluate
from emollm.evaluate.score import Answer, Prompt
from tests.emollm.evaluate import many_rows


@pytest.fixture(scope="module")
def bench_1003(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_rows.write_many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def own(model_dir: Path) -> replica.OwnReplica:
    return replica.load_own(str(model_dir), "fold-0", None)


@pytest.fixture(scope="module")
def prompts(own: replica.OwnReplica) -> list[Prompt]:
    return replica.encode_prompts([many_rows.make(n) for n in range(many_rows.ROWS)], own.processor)


def said(answers: Sequence[Answer]) -> list[Any]:
    return [answer.choice if answer.choice is not None else answer.text for answer in answers]


@pytest.fixture(scope="module")
def alone(own: replica.OwnReplica, prompts: list[Prompt]) -> list[Answer]:
    """Every sample in a batch of its own."""
    return replica.make_scorer(own.model, own.processor, 1, 3, known=own.known).answers(prompts)


@pytest.mark.parametrize(("batch_size", "padding_side"), [(2, "left"), (7, "right"), (32, "left")])
def test_batch_size_and_padding_side_change_no_prediction(
    own: replica.OwnReplica, prompts: list[Prompt], alone: list[Answer], batch_size: int, padding_side: Any
) -> None:
    scorer = replica.make_scorer(
        own.model, own.processor, batch_size, 3, known=own.known, padding_side=padding_side
    )
    together = scorer.answers(prompts)
    assert len(together) == many_rows.ROWS
    assert said(together) == said(alone)
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids and one.finish == other.finish
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


@pytest.mark.parametrize("sub_task", CLOSED_SUB_TASKS)
def test_a_random_model_is_right_as_often_as_chance(sub_task: str, alone: list[Answer]) -> None:
    """Options stand in an order drawn from the uid, so no preference for a place or a word pays: within 99 % of chance."""
    right, chances = 0, []
    for number, answer in enumerate(alone):
        row = many_rows.make(number)
        if row["sub_task"] == sub_task:
            assert answer.choice is not None
            right += row["options"][answer.choice] == row["answer"]
            chances.append(1 / len(row["options"]))
    assert len(chances) >= 143 and len(set(chances)) == 1
    low, high = binom.interval(0.99, len(chances), chances[0])
    assert low <= right <= high, (right, len(chances), chances[0])


def test_number_of_workers_changes_no_prediction_and_no_row_is_lost(
    ray_session: Any, bench_1003: Path, model_dir: Path, alone: list[Answer], tmp_path: Path
) -> None:
    rows = {f"mixed/all/{n:04d}": many_rows.make(n) for n in range(many_rows.ROWS)}
    expected = {
        uid: row["options"][answer] if row["options"] else answer
        for (uid, row), answer in zip(rows.items(), said(alone), strict=True)
    }
    for workers, batch_size in ((1, 32), (2, 7), (3, 32)):
        out = tmp_path / str(workers)
        recipe = EvaluateRecipe(
            workers=workers, batch_size=batch_size, baselines=(), linear_probe=False, nearest_neighbour=False,
            max_new_tokens=3, bootstrap={"samples": 100},
        )  # fmt: skip
        results = evaluate(str(model_dir / "fold-0"), str(bench_1003), str(out), recipe)
        assert results["n"] == many_rows.ROWS
        table = pq.read_table(out / "samples.parquet", columns=["uid", "answer"])
        assert table.num_rows == many_rows.ROWS
        assert dict(zip(table["uid"].to_pylist(), table["answer"].to_pylist(), strict=True)) == expected
