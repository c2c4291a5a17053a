"""Chance and the nearest picture: which answer they give, from which rows, and where they give none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from emollm.evaluate import baselines_neighbours as neighbours
from emollm.evaluate.protocol import EvaluationError, Row
from tests.emollm.evaluate.emobench import make_rows, write_emobench


def row(uid: str, answer: str, split: str = "train", fold: int | None = None, **changes: object) -> Row:
    values: dict = {
        "uid": uid, "source": "s", "sub_task": "emo_c", "split": split, "fold": fold, "prompt": "?", "options": ("joy", "fear"),
        "answer": answer, "other_answers": (), "group_keys": {}, "demonstration": False, "media_kinds": ("image",),
        "media_sha256": (uid,), "path": "p", "index": 0,
    }  # fmt: skip
    return Row(**(values | changes))


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found: dict[str, int] = {}
    monkeypatch.setattr(neighbours, "read_hashes", lambda data, rows: found)
    return found


def test_the_answer_is_that_of_the_training_picture_with_the_fewest_differing_bits(hashes) -> None:
    train = [
        row("a", "joy"),
        row("b", "fear"),
        row("c", "fear", source="other"),
        row("d", "fear", split="val"),
    ]
    asked = [row("x", "joy", split="test"), row("y", "joy", split="test")]
    hashes |= {"a": 0b0000, "b": 0b1111, "c": 0b0001, "d": 0b0001, "x": 0b0001, "y": 2**63 | 0b1110}
    assert neighbours.nearest_neighbour_answers("", [*train, *asked], asked) == ["joy", "fear"]


def test_ties_go_to_the_most_frequent_answer_then_the_first_by_name(hashes) -> None:
    rows = [
        row("a", "joy"),
        row("b", "fear"),
        row("c", "fear"),
        row("e", "joy"),
        row("x", "joy", split="test"),
    ]
    hashes |= {"a": 1, "b": 2, "c": 4, "e": 2**40 - 1, "x": 0}
    assert neighbours.nearest_neighbour_answers("", rows, rows[-1:]) == ["fear"]
    del hashes["c"]
    assert neighbours.nearest_neighbour_answers("", rows, rows[-1:]) == ["fear"]


def test_rows_without_a_picture_take_the_most_frequent_answer_and_tasks_without_training_rows_none(
    hashes,
) -> None:
    rows = [row("a", "joy"), row("b", "joy"), row("x", "fear", split="test"),
            row("y", "No", split="test", sub_task="hate", options=("Yes", "No"))]  # fmt: skip
    assert neighbours.nearest_neighbour_answers("", rows, rows[2:]) == ["joy", None]


def test_each_fold_looks_only_at_its_own_training_rows(hashes) -> None:
    rows = [row("a", "joy", fold=0, split="test"), row("b", "fear", fold=1), row("c", "joy", fold=1)]
    hashes |= {"a": 0, "b": 0, "c": 0b111}
    assert neighbours.nearest_neighbour_answers("", rows, rows) == ["fear", "joy", "joy"]


def test_a_training_row_is_not_its_own_neighbour(hashes) -> None:
    rows = [row("a", "joy"), row("b", "fear"), row("c", "fear")]
    hashes |= {"a": 0, "b": 0, "c": 0}
    assert neighbours.nearest_neighbour_answers("", rows, rows[:1]) == ["fear"]


def test_hashes_are_read_from_the_data_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    samples = make_rows()
    samples[3]["media"][0]["phash"] = "ff00000000000000"
    for number, one in enumerate(samples):
        if number % 2:
            one["split"] = "train"
    data = write_emobench(tmp_path, samples)
    rows = [row(one["uid"], one["answer"], path=f"{one['split']}/{one['source']}-00000.parquet") for one in samples]  # fmt: skip
    found = neighbours.read_hashes(str(data), rows)
    assert found[samples[3]["uid"]] == 0xFF << 56 and len(found) == len(samples)
    samples[3]["media"][0]["phash"] = "zz"
    with pytest.raises(EvaluationError, match=f"{samples[3]['uid']}.*'zz'"):
        neighbours.read_hashes(str(write_emobench(tmp_path, samples)), rows)


def test_chance_is_an_option_of_the_row_the_same_every_time_and_right_as_often_as_chance() -> None:
    asked = [row(f"r{n}", ("joy", "fear")[n % 2], split="test") for n in range(2000)]
    given = neighbours.random_answers(asked, asked)
    assert given == neighbours.random_answers(asked, asked)
    assert abs(Counter(given)["joy"] - 1000) < 90
    right = sum(answer == one.answer for answer, one in zip(given, asked, strict=True))
    assert abs(right - 1000) < 90
    open_row = row("o", "joy", split="test", sub_task="emo_o", options=())
    assert neighbours.random_answers([open_row], [open_row]) == ["joy"]
