"""Every row exactly once on any number of ranks; packed equals unpacked."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emollm.config import LoaderConfig, TrainRecipe, load_recipe
from emollm.data.collate import collate, encode_sample
from emollm.data.emobench import DataError
from emollm.data.index import outline
from emollm.data.packing import even_fit, first_fit, pack
from emollm.data.plan import epoch_rows, in_windows, plan_epoch, plan_training
from emollm.train.build import initial_model
from tests.emollm.train.small_emobench import read_rows


def plans(rows: list[int], lengths: list[int], world: int, batch: int, micro: int) -> list[list]:
    return [
        plan_epoch(rows, lengths, epoch=0, batch_size=batch, micro_batch=micro, world_size=world, rank=rank)
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_1003_rows_are_seen_exactly_once_an_epoch(world: int) -> None:
    keys = ["a/emo_c"] * 1003
    lengths = [40 + number % 37 for number in range(1003)]
    for epoch in range(3):
        rows = epoch_rows(keys, {}, seed=1, epoch=epoch)
        ranks = plans(rows, lengths, world, batch=8, micro=3)
        seen = Counter(
            number for plan in ranks for step in plan for batch in step.micro_batches for number in batch
        )
        assert seen == Counter(range(1003))
        assert len({len(plan) for plan in ranks}) == 1


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 200),
    world=st.integers(1, 7),
    batch=st.integers(1, 17),
    micro=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_plan_covers_every_row_once_with_equal_work(
    count: int, world: int, batch: int, micro: int, seed: int
) -> None:
    lengths = [(number * 7919 + seed) % 90 + 10 for number in range(count)]
    rows = epoch_rows(["a/emo_c"] * count, {}, seed, 0)
    ranks = plans(rows, lengths, world, batch, micro)
    seen = [number for plan in ranks for step in plan for part in step.micro_batches for number in part]
    assert sorted(seen) == list(range(count))
    for steps in zip(*ranks):
        assert len({len(step.micro_batches) for step in steps}) == 1, "all ranks have as many micro-batches"
        sizes = [sum(len(part) for part in step.micro_batches) for step in steps]
        assert max(sizes) - min(sizes) <= 1
        assert all(len(part) <= micro for step in steps for part in step.micro_batches)


@pytest.mark.parametrize("shuffle_rows", [0, 30])
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(shuffle_rows: int) -> None:
    lengths = [number % 13 for number in range(101)]
    places = [(number // 20, number // 10 % 2) for number in range(101)]
    overrides = ["mix={}", "seed=3", "tune.epochs=2", "tune.micro_batch=2"]
    recipe = load_recipe("smoke", [*overrides, f"loader.shuffle_rows={shuffle_rows}"])

    def batches(world: int) -> list[set[int]]:
        ranks = [
            plan_training(["a/emo_c"] * 101, lengths, recipe, places=places, world_size=world, rank=rank)
            for rank in range(world)
        ]
        return [{n for step in steps for part in step.micro_batches for n in part} for steps in zip(*ranks)]

    assert batches(1) == batches(2) == batches(3)
    assert batches(1)[:13] != batches(1)[13:], "epochs are shuffled differently"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    window_rows=st.integers(1, 40),
    window_files=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_a_window_holds_few_row_groups_of_few_files_and_no_row_is_lost(
    sizes: list[list[int]], window_rows: int, window_files: int, epoch: int
) -> None:
    places = [(f, g) for f, groups in enumerate(sizes) for g, size in enumerate(groups) for _ in range(size)]
    loader = LoaderConfig(shuffle_rows=window_rows, shuffle_files=window_files)
    keys = ["a/emo_c"] * len(places)

    def order() -> list[int]:
        return epoch_rows(keys, {}, 0, epoch, places=places, loader=loader)

    rows = order()
    assert rows == order(), "the same plan every time"
    assert sorted(rows) == list(range(len(places)))
    if window_rows >= len(places):
        assert rows == epoch_rows(keys, {}, 0, epoch), "small data are mixed whole"
        return
    first = {place: min(i for i, row in enumerate(rows) if places[row] == place) for place in set(places)}
    last = {place: max(i for i, row in enumerate(rows) if places[row] == place) for place in set(places)}
    largest = max(size for groups in sizes for size in groups)
    for place in first:
        assert last[place] - first[place] < window_rows + largest, "a row group is needed for one window only"
    for moment in range(len(rows)):
        needed = {file for (file, group) in first if first[file, group] <= moment <= last[file, group]}
        assert len(needed) <= window_files


def test_epochs_read_files_in_different_orders() -> None:
    places = [(number // 10, 0) for number in range(80)]
    orders = {
        tuple(places[row][0] for row in in_windows(range(80), places, 10, 2, random.Random(seed)))
        for seed in range(5)
    }
    assert len(orders) == 5


def test_mix_takes_all_rows_equally_often_over_the_epochs() -> None:
    keys = ["a/emo_c"] * 10 + ["b/humor"] * 9
    seen: Counter[int] = Counter()
    for epoch in range(9):
        rows = epoch_rows(keys, {"b/humor": 4}, seed=0, epoch=epoch)
        assert len(rows) == 14
        seen.update(rows)
    assert all(seen[number] == 9 for number in range(10))
    assert all(seen[number] == 4 for number in range(10, 19))
    assert len(epoch_rows(keys, {"a/emo_c": 0.5}, 0, 0)) == 5 + 9
    assert len(epoch_rows(keys, {"a/emo_c": 99}, 0, 0)) == 10 + 9, "a whole number never repeats rows"
    with pytest.raises(DataError, match="mix names c/emo_c"):
        epoch_rows(keys, {"c/emo_c": 1}, 0, 0)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40),
    weight=st.floats(0, 4),
    epochs=st.integers(1, 5),
    other=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_a_weight_repeats_every_row_equally_often(
    rows: int, weight: float, epochs: int, other: int, seed: int
) -> None:
    keys = ["a/emo_c"] * rows + ["b/humor"] * (other + 1)
    count = round(weight * rows)
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        of_epoch = Counter(n for n in epoch_rows(keys, {"a/emo_c": weight}, seed, epoch) if n < rows)
        assert of_epoch.total() == count
        assert all(count // rows <= of_epoch[n] <= -(-count // rows) for n in range(rows))
        seen += of_epoch
        share = (epoch + 1) * count
        assert all(share // rows <= seen[n] <= -(-share // rows) for n in range(rows))


def test_protocols_follow_the_folds(tiny_recipe: TrainRecipe) -> None:
    rows = read_rows(tiny_recipe.data, "train", "test")
    index = outline(tiny_recipe.data)
    assert index.folds() == [0, 1]
    for fold in (0, 1):
        trained = index.of_fold(fold).column("uid")
        assert trained == sorted(trained)
        for row in rows:
            expected = row["fold"] != fold if row["fold"] is not None else row["split"] == "train"
            assert (row["uid"] in trained) == expected


def test_a_validation_fold_is_not_trained_on(tmp_path: Path) -> None:
    """The manifest says that protocols validate on a fold, and how many folds each source has."""
    rows = [(f"a{k}", "a", k) for k in range(3)] + [(f"b{k}", "b", k) for k in range(4)] + [("t", "c", None)]
    columns = dict(zip(("uid", "source", "fold"), map(list, zip(*rows))))
    (tmp_path / "train").mkdir()
    words = dict.fromkeys(("split", "sub_task", "answer"), ["train"] * len(rows))
    pq.write_table(pa.table({**columns, **words}), tmp_path / "train" / "x-00000.parquet")
    facts = {"a": {"folds": 3}, "b": {"folds": 4}, "c": {"folds": None}}
    files = {"train/x-00000.parquet": {"rows": len(rows), "sha256": "0"}}
    for fold_val, expected in ((True, ["a1", "b0", "b1", "t"]), (False, ["a0", "a1", "b0", "b1", "b3", "t"])):
        manifest = {"recipe": {"splits": {"fold_val": fold_val}}, "source_facts": facts, "files": files}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert outline(str(tmp_path)).of_fold(2).column("uid") == expected


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), capacity=st.integers(1, 100))
def test_first_fit_keeps_every_row_and_the_capacity(lengths: list[int], capacity: int) -> None:
    bins = first_fit(lengths, capacity)
    assert sorted(i for one in bins for i in one) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in one) <= capacity or len(one) == 1 for one in bins)
    half_empty = [one for one in bins if sum(lengths[i] for i in one) <= capacity // 2]
    assert len(half_empty) <= 1


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=40),
    capacity=st.integers(1, 100),
    most=st.integers(1, 12),
)
def test_first_fit_keeps_the_cap_on_pictures(rows: list[tuple[int, int]], capacity: int, most: int) -> None:
    lengths, pictures = [length for length, _ in rows], [count for _, count in rows]
    bins = first_fit(lengths, capacity, pictures, most)
    assert sorted(i for one in bins for i in one) == list(range(len(rows)))
    for one in bins:
        assert sum(lengths[i] for i in one) <= capacity or len(one) == 1
        assert sum(pictures[i] for i in one) <= most or sum(pictures[i] > 0 for i in one) == 1
    assert first_fit(lengths, capacity, pictures, 0) == first_fit(lengths, capacity)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=40),
    capacity=st.integers(1, 100),
    most=st.integers(0, 12),
)
def test_even_bins_are_as_few_and_their_longest_is_no_longer(
    rows: list[tuple[int, int]], capacity: int, most: int
) -> None:
    lengths, pictures = [length for length, _ in rows], [count for _, count in rows]
    first, even = (fit(lengths, capacity, pictures, most) for fit in (first_fit, even_fit))

    def longest(bins: list[list[int]]) -> int:
        return max(sum(lengths[i] for i in one) for one in bins)

    assert sorted(i for one in even for i in one) == list(range(len(rows)))
    assert len(even) <= len(first) and longest(even) <= longest(first)
    assert all(sum(lengths[i] for i in one) <= capacity or len(one) == 1 for one in even)
    if most:
        assert all(
            sum(pictures[i] for i in one) <= most or sum(pictures[i] > 0 for i in one) == 1 for one in even
        )


def test_even_bins_leave_little_padding() -> None:
    lengths = [353, 90, 75, 74, 73, 70, 67, 38]  # 840 tokens
    longest = [
        max(sum(lengths[i] for i in one) for one in fit(lengths, 512)) for fit in (first_fit, even_fit)
    ]
    assert longest[0] > 500 and longest[1] <= 440


def test_packed_and_padded_batches_give_the_same_loss_and_gradients(tiny_recipe: TrainRecipe) -> None:
    model, processor = initial_model(tiny_recipe, 0)
    rows = [encode_sample(row, processor, supervise=True) for row in read_rows(tiny_recipe.data, "train")[:7]]
    assert any(frames for row in rows for frames in row.media_frames), "one of them is a video"

    def loss_and_gradients(batch: dict) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(**batch, supervised_only=True).loss
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    padded = loss_and_gradients(collate(rows, processor.pad_id))
    for capacity in (0, 200, 100_000):
        bins = first_fit([len(row.input_ids) for row in rows], capacity)
        batch: dict = pack(rows, bins, processor.pad_id)
        order = [rows[i] for one in bins for i in one]
        batch["pixel_values"] = torch.stack([picture for row in order for picture in row.pictures])
        batch["media_frames"] = [frames for row in order for frames in row.media_frames]
        packed = loss_and_gradients(batch)
        assert packed[0] == pytest.approx(padded[0], abs=1e-5)
        for ours, theirs in zip(packed[1], padded[1]):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
