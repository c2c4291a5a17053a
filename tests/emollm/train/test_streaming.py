"""Training from the stream: decode workers change no bit, rows that cannot be read stop it, waiting is measured."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from emollm.config import TrainRecipe
from emollm.data.emobench import DataError
from emollm.data.features import FeatureStore
from emollm.data.rows import Rows
from emollm.train.fold import look_at_pictures, prepare
from emollm.train.loop import train_fold
from emollm.train.metrics import read_metrics
from emollm.train.resume import METADATA
from tests.emollm.data.test_stream import drawn, write_rows
from tests.emollm.train.ranks import Job, same_bits, start, wait_for


class Stop(RuntimeError):
    pass


def stop_at(step: int):
    def report(values: dict) -> None:
        if values["step"] == step:
            raise Stop

    return report


def with_loader(recipe: TrainRecipe, out: Path, cache_gib: float, **loader) -> TrainRecipe:
    tune = recipe.tune.model_copy(
        update={"epochs": 2, "batch_size": 5, "log_every": 1, "cache_gib": cache_gib}
    )
    settings = recipe.loader.model_copy(update=loader)
    checkpoint = recipe.checkpoint.model_copy(update={"every_steps": 2})
    return recipe.model_copy(
        update={"tune": tune, "loader": settings, "checkpoint": checkpoint, "out": str(out)}
    )


def test_stopped_and_gone_on_with_two_decode_workers_ends_with_the_same_bits(
    tiny_recipe: TrainRecipe, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Also without kept features, so that every picture comes through the decode workers."""
    plain = with_loader(tiny_recipe, tmp_path / "plain", cache_gib=0.1)
    train_fold(plain, 0, "d")
    streamed = with_loader(tiny_recipe, tmp_path / "streamed", cache_gib=0, decode_workers=2)
    with pytest.raises(Stop):
        train_fold(streamed, 0, "d", report=stop_at(3))
    train_fold(streamed, 0, "d")
    assert "goes on at step 3" in capfd.readouterr().out
    ours, theirs = (
        load_file(tmp_path / name / "fold-0" / "trained.safetensors") for name in ("streamed", "plain")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("cache_gib", [0, 0.1])
def test_a_picture_that_cannot_be_decoded_stops_training_with_its_uid(
    tiny_recipe: TrainRecipe, tmp_path: Path, cache_gib: float
) -> None:
    rows = [drawn(number) for number in range(12)]
    rows[7]["media"][0]["data"] = [b"not a picture"]
    data = write_rows(tmp_path / "data", rows, per_file=12)
    recipe = with_loader(tiny_recipe, tmp_path / "out", cache_gib).model_copy(
        update={"data": str(data), "align": tiny_recipe.align.model_copy(update={"steps": 0})}
    )
    step = "" if cache_gib else r"^fold 0, step \d: rank 0: "
    with pytest.raises(DataError, match=f"{step}drawn/all/0007: media.0. cannot be decoded"):
        train_fold(recipe, 0, "d")


def test_the_share_of_time_waiting_for_data_is_that_of_the_stream(
    tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Rows.encoded

    def slow(self: Rows, number: int, media: bool):
        time.sleep(0.2)
        return real(self, number, media)

    recipe = with_loader(tiny_recipe, tmp_path, cache_gib=0.1).model_copy(
        update={"align": tiny_recipe.align.model_copy(update={"steps": 0})}
    )
    state = prepare(recipe, 0, 0, 1, features := FeatureStore(0.1))
    look_at_pictures(state)
    monkeypatch.setattr(Rows, "encoded", slow)
    with pytest.raises(Stop):
        train_fold(recipe, 0, "d", report=stop_at(2), features=features)
    for line in read_metrics(str(tmp_path / "fold-0" / "log" / "metrics.jsonl")):
        waited = line["data_wait_share"] * line["seconds"]
        assert waited == pytest.approx(0.2 * line["rows"], rel=0.5), "five rows a step, 0.2 s each"


def test_a_killed_rank_and_its_decode_workers_go_on_to_the_same_bits(
    twenty_steps: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Two ranks in the middle of an epoch; `undisturbed` decoded by itself and kept all features."""
    out, log = tmp_path / "out", tmp_path / "log"
    job = Job([*twenty_steps, f"out={out}", "loader.decode_workers=2", "tune.cache_gib=0"])
    group = start(2, log, job)
    wait_for((out / "checkpoints" / "fold-0" / "step-000008" / METADATA).exists, group)
    helpers = psutil.Process(group.processes[1].pid).children(recursive=True)
    assert sum(process.name() == "pt_data_worker" for process in helpers) == 2
    group.kill(1)
    assert group.end()[0] == 1, "the other does not go on alone"
    _, left = psutil.wait_procs(helpers, timeout=20)
    assert not left, "the decode workers of a killed rank end, and with them their fork server"
    start(2, log, job).finish()
    assert "goes on at step" in (log / "rank-0.log").read_text()
    assert same_bits(out, undisturbed / "two")


def test_a_row_that_one_rank_cannot_read_stops_both_at_once(twenty_steps: list[str], tmp_path: Path) -> None:
    rows = [drawn(number) for number in range(12)]
    rows[7]["media"][0]["data"] = [b"not a picture"]
    data = write_rows(tmp_path / "data", rows, per_file=12)
    overrides = [f"data={data}", f"out={tmp_path / 'out'}", "align.steps=0", "loader.decode_workers=1"]
    jobs = [Job([*twenty_steps, *overrides, f"tune.cache_gib={gib}"]) for gib in (0, 0.1)]
    for name, job in zip("ab", jobs):
        group = start(2, tmp_path / name, job)
        assert group.end(limit_s=60) == [1, 1]
        for rank in range(2):
            assert "drawn/all/0007: media[0] cannot be decoded" in group.log(rank)
