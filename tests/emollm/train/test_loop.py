"""The loop in one process; `test_world_size` and `test_crashes` have groups of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emollm.config import TrainRecipe
from emollm.data.encoder import media_key
from emollm.data.features import FeatureStore
from emollm.train.align import aligned_rows
from emollm.train.fold import align_fold, look_at_pictures, prepare
from emollm.train.loop import NonFiniteLossError, finished_fold, schedule, train_fold
from tests.emollm.train.ranks import curve, weights


def test_non_finite_loss_stops_with_the_uids(
    tiny_recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emollm.train import loop

    real = loop.align_fold

    def poisoned(state):
        losses = real(state)
        with torch.no_grad():
            state.model.projector.scene.down.bias.fill_(float("nan"))
        return losses

    monkeypatch.setattr(loop, "align_fold", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1: the loss is not finite; batch: .*drawn/all/00"):
        train_fold(tiny_recipe, 0, "n")


def test_exported_fold_loads_and_its_perspectives_have_opened(tiny_recipe: TrainRecipe) -> None:
    from emollm.model.emollm import EmoLLM

    result = train_fold(tiny_recipe, 1, "x")
    assert result["perspectives"]["content"] > 0 and result["perspectives"]["relation"] > 0
    model = EmoLLM.from_pretrained(Path(tiny_recipe.out) / "fold-1")
    stored = weights(Path(tiny_recipe.out), 1)
    assert all(
        torch.equal(parameter, stored[name]) for name, parameter in model.named_parameters() if name in stored
    )
    assert train_fold(tiny_recipe, 1, "x") == json.loads(
        (Path(tiny_recipe.out) / "fold-1" / "fold.json").read_text()
    )


def test_a_damaged_fold_is_not_taken_for_finished_and_training_mends_it(tiny_recipe: TrainRecipe) -> None:
    train_fold(tiny_recipe, 0, "damage")
    path = Path(tiny_recipe.out) / "fold-0" / "trained.safetensors"
    whole = path.read_bytes()
    assert finished_fold(tiny_recipe, 0, "damage") is not None
    path.write_bytes(whole[:-100])
    assert finished_fold(tiny_recipe, 0, "damage") is None
    train_fold(tiny_recipe, 0, "damage")
    assert path.read_bytes() == whole


def test_clips_cut_from_one_file_do_not_share_features() -> None:
    def row(*frames: bytes) -> dict:
        return {"media": [{"kind": "video", "sha256": "of the same file", "data": list(frames)}]}

    assert media_key(row(b"a", b"b")) != media_key(row(b"c", b"d"))
    assert media_key(row(b"a", b"b")) == media_key(row(b"a", b"b"))
    assert media_key({"media": []}) == ""


def test_alignment_lowers_its_loss_and_leaves_the_language_model_alone(tiny_recipe: TrainRecipe) -> None:
    recipe = tiny_recipe.model_copy(update={"align": tiny_recipe.align.model_copy(update={"steps": 40})})
    state = prepare(recipe, 0, 0, 1, FeatureStore(1))
    before = {name: p.clone() for name, p in state.model.named_parameters()}
    losses = align_fold(state)
    assert len(losses) == 40 and losses[-1] < 0.5 * losses[0]
    changed = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("projector.") for name in changed)


def test_alignment_takes_no_row_that_mix_leaves_out(tiny_recipe: TrainRecipe) -> None:
    index = prepare(tiny_recipe, 0, 0, 1, FeatureStore(1)).index
    rows = aligned_rows(index, tiny_recipe)
    key = index.keys[rows[0]]
    without = tiny_recipe.model_copy(update={"mix": {**tiny_recipe.mix, key: 0}})
    assert aligned_rows(index, without) == [row for row in rows if index.keys[row] != key]


def test_learning_rate_rises_then_falls() -> None:
    rates = [schedule(number, 20, 0.1, 0.1) for number in range(20)]
    assert rates[0] == 0.5 and rates[1] == 1.0 == rates[2]
    assert all(a >= b for a, b in zip(rates[2:], rates[3:])) and 0.1 <= rates[-1] < 0.12


def test_activation_checkpointing_changes_no_weight(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    def trained(name: str, checkpointing: bool) -> dict[str, torch.Tensor]:
        tune = tiny_recipe.tune.model_copy(update={"activation_checkpointing": checkpointing})
        train_fold(tiny_recipe.model_copy(update={"tune": tune, "out": str(tmp_path / name)}), 0, name)
        return weights(tmp_path / name)

    kept, again = trained("kept", False), trained("again", True)
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_bf16_trains_near_float32(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    def losses(precision: str, stage: int) -> list[float]:
        settings = tiny_recipe.deepspeed.model_copy(update={"stage": stage, "precision": precision})
        out = tmp_path / f"{precision}-{stage}"
        train_fold(tiny_recipe.model_copy(update={"deepspeed": settings, "out": str(out)}), 0, precision)
        return [line["loss"] for line in curve(out)]

    exact = losses("fp32", 2)
    for stage in (2, 3):
        assert losses("bf16", stage) == pytest.approx(exact, rel=0.02)


def test_in_bf16_the_rotary_frequencies_stay_float32(tiny_recipe: TrainRecipe) -> None:
    """Rounded to bf16 they would move every position but the first."""
    from emollm.train.deepspeed import ensure_process_group, make_engine

    settings = tiny_recipe.deepspeed.model_copy(update={"precision": "bf16"})
    ensure_process_group()
    state = prepare(tiny_recipe, 0, 0, 1, FeatureStore(0))
    before = {name: b.clone() for name, b in state.model.named_buffers() if "inv_freq" in name}
    engine = make_engine(state.model, settings, tiny_recipe.tune, 1)
    after = dict(engine.module.named_buffers())
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    assert next(engine.module.parameters()).dtype == torch.bfloat16
    engine.destroy()


def test_without_a_cache_no_picture_is_looked_at_beforehand(
    tiny_recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emollm.data import features

    state = prepare(tiny_recipe, 0, 0, 1, FeatureStore(0))
    monkeypatch.setattr(features, "compute", lambda *_: pytest.fail("computed and thrown away"))
    look_at_pictures(state)


def test_only_as_many_features_are_computed_beforehand_as_are_kept(
    tiny_recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emollm.data import features

    computed = []
    real = features.compute
    monkeypatch.setattr(features, "compute", lambda *args: computed.append(real(*args)) or computed[-1])
    whole = prepare(tiny_recipe, 0, 0, 1, FeatureStore(1))
    look_at_pictures(whole)
    size, count = whole.features.used_bytes, len(computed)
    computed.clear()
    half = prepare(tiny_recipe, 0, 0, 1, FeatureStore(size / 2 / 2**30))
    look_at_pictures(half)
    assert 0 < half.features.used_bytes <= size // 2
    assert len(computed) < 0.7 * count
