"""Training from a stream under Ray Train, from S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from emollm.config import TrainRecipe
from emollm.data import index
from emollm.train.run import train
from tests.emollm.train.test_streaming import with_loader
from tests.fixtures.s3_server import S3Server


@pytest.mark.slow
def test_under_ray_train_from_s3_with_decode_workers_and_an_index_by_ray_data(
    ray_session,
    s3_server: S3Server,
    small_emobench: Path,
    tiny_recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "_SMALL_BYTES", -1)
    monkeypatch.setattr(index, "index_here", lambda *_: pytest.fail("the driver left it to Ray"))
    bucket = s3_server.bucket("ray-train-streams")
    s3_server.upload(small_emobench, f"{bucket}/emobench")
    cache = tmp_path / "cache"
    recipe = with_loader(tiny_recipe, tmp_path / "out", 0, decode_workers=2, cache_folder=str(cache))
    training = train(recipe.model_copy(update={"data": f"{bucket}/emobench"}))
    assert [fold["world_size"] for fold in training["folds"]] == [2, 2]
    assert all(fold["samples_seen"] == 2 * fold["rows"] for fold in training["folds"])
    assert len(list(cache.glob("*.parquet"))) == 2
