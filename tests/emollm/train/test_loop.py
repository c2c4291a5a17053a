"""The loop with real processes: world size, ZeRO, resume after a kill, checkpoints, alignment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emollm.config import TrainRecipe, load_recipe
from emollm.data.encoder import media_key
from emollm.data.features import FeatureStore
from emollm.train.fold import align_fold, look_at_pictures, prepare
from emollm.train.loop import NonFiniteLossError, finished_fold, schedule, train_fold
from emollm.train.metrics import read_metrics

RANK = Path(__file__).with_name("rank.py")
ROOT = Path(__file__).resolve().parents[3]


def start(world: int, folder: Path, overrides: list[str], fold: int = 0) -> list[subprocess.Popen]:
    """Start a group of training processes; an empty extension cache shows that nothing is compiled."""
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(folder / "cold-extensions"),
    }
    processes = []
    for rank in range(world):
        command = [sys.executable, str(RANK), str(rank), str(world), str(rendezvous), str(fold), *overrides]
        with (folder / f"rank-{rank}.log").open("a") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return processes


def finish(processes: list[subprocess.Popen], folder: Path, limit_s: float = 240) -> dict:
    try:
        for process in processes:
            if process.wait(timeout=limit_s) != 0:
                pytest.fail((folder / "rank-0.log").read_text()[-3000:])
    finally:
        for process in processes:  # one that waits for a rank that is gone
            process.kill()
    lines = [line for line in (folder / "rank-0.log").read_text().splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT "))


def steps_done(out: Path, fold: int = 0) -> int:
    return len(read_metrics(str(out / f"fold-{fold}" / "log" / "metrics.jsonl")))


def weights(out: Path, fold: int = 0) -> dict[str, torch.Tensor]:
    return load_file(out / f"fold-{fold}" / "trained.safetensors")


@pytest.fixture
def overrides(tiny_overrides: list[str]) -> list[str]:
    """24 rows in 3 steps an epoch, 12 steps, a checkpoint every 2."""
    return [*tiny_overrides, "tune.epochs=4", "checkpoint.every_steps=2", "tune.batch_size=5"]


def test_killed_worker_resumes_to_bit_identical_weights(overrides: list[str], tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    expected = finish(start(2, tmp_path / "a", [*overrides, f"out={undisturbed}"]), tmp_path / "a")
    assert expected["world_size"] == 2

    processes = start(2, tmp_path / "b", [*overrides, f"out={killed}"])
    deadline = time.monotonic() + 120
    while steps_done(killed) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[1].wait() == -signal.SIGKILL
    assert processes[0].wait(timeout=120) != 0, "the survivor must not go on alone"
    assert not (killed / "fold-0" / "fold.json").exists()
    done = steps_done(killed)
    assert 5 <= done < expected["steps"]

    found = finish(start(2, tmp_path / "b", [*overrides, f"out={killed}"]), tmp_path / "b")
    assert "goes on at step" in (tmp_path / "b" / "rank-0.log").read_text()
    ours, theirs = weights(killed), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found["samples_seen"] == expected["samples_seen"] == 4 * found["rows"]
    curve = [line["step"] for line in read_metrics(str(killed / "fold-0" / "log" / "metrics.jsonl"))]
    assert curve == list(range(1, expected["steps"] + 1)), "every step has one line"
    assert not list((tmp_path / "b" / "cold-extensions").rglob("*.so"))


@pytest.mark.parametrize("stage", [3])
def test_world_size_and_zero_stage_do_not_change_the_training(
    overrides: list[str], tmp_path: Path, stage: int
) -> None:
    alone, three = tmp_path / "alone", tmp_path / "three"
    one = finish(
        start(1, tmp_path / "a", [*overrides, f"out={alone}", "deepspeed.stage=0", "tune.packing=false"]),
        tmp_path / "a",
    )
    # Three ranks share batches of five: the last batch of an epoch leaves ranks without rows.
    more = finish(
        start(
            3, tmp_path / "b", [*overrides, f"out={three}", f"deepspeed.stage={stage}", "tune.micro_batch=1"]
        ),
        tmp_path / "b",
    )
    assert one["samples_seen"] == more["samples_seen"]
    curves = [
        [line["loss"] for line in read_metrics(str(out / "fold-0" / "log" / "metrics.jsonl"))]
        for out in (alone, three)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][-1] < curves[0][0], "it learns"
    ours, theirs = weights(three), weights(alone)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    recipe = load_recipe("smoke", [*overrides, "workers.threads=1"])
    expected_out = tmp_path / "expected"
    train_fold(recipe.model_copy(update={"out": str(expected_out)}), 0, "d")

    class Stop(RuntimeError):
        pass

    def stop_at_8(values: dict) -> None:
        if values["step"] == 8:
            raise Stop

    with pytest.raises(Stop):
        train_fold(recipe, 0, "d", report=stop_at_8)
    folder = Path(recipe.out) / "checkpoints" / "fold-0"
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-000004", "step-000006"], (
        "rotation keeps two"
    )
    assert (folder / "latest").read_text() == "step-000006\n"
    victim = next(path for path in (folder / "step-000006").glob("*.pt"))
    victim.write_bytes(victim.read_bytes()[:100])
    (folder / "step-000099").mkdir()  # a write that was cut off: no metadata
    train_fold(recipe, 0, "d")
    said = capfd.readouterr().out
    assert "step-000099 is not used: it was not finished" in said
    assert "step-000006 is not used" in said and "is damaged" in said
    assert "goes on at step 5" in said
    ours, theirs = weights(Path(recipe.out)), weights(expected_out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not folder.exists(), "checkpoints go once the model is exported"


def test_non_finite_loss_stops_with_the_uids(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from emollm.train import loop

    recipe = load_recipe("smoke", overrides)
    real = loop.align_fold

    def poisoned(state):
        losses = real(state)
        with torch.no_grad():
            state.model.projector.scene.down.bias.fill_(float("nan"))
        return losses

    monkeypatch.setattr(loop, "align_fold", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1: the loss is not finite; batch: .*drawn/all/00"):
        train_fold(recipe, 0, "n")


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


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_trains_near_float32(tiny_recipe: TrainRecipe, tmp_path: Path, stage: int) -> None:
    def losses(precision: str) -> list[float]:
        settings = tiny_recipe.deepspeed.model_copy(update={"stage": stage, "precision": precision})
        out = tmp_path / precision
        train_fold(tiny_recipe.model_copy(update={"deepspeed": settings, "out": str(out)}), 0, precision)
        return [line["loss"] for line in read_metrics(str(out / "fold-0" / "log" / "metrics.jsonl"))]

    exact, rounded = losses("fp32"), losses("bf16")
    assert len(exact) == len(rounded) and rounded == pytest.approx(exact, rel=0.02)


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
