"""A small run from sources to scores: what it records in Ray's metrics, and what its model's card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import dataset_build.ray_metrics
import emollm.evaluate.ray_metrics
import emollm.train.ray_metrics
from dataset_build import sources
from dataset_build.ray_local import Metric, Metrics
from emollm import model_card
from emollm.__main__ import main
from emollm.config import load_recipe
from tests.fixtures.ray_metrics import Found, exported

ALL = {
    "emobench_build_": dataset_build.ray_metrics.METRICS,
    "emollm_train_": emollm.train.ray_metrics.METRICS,
    "emollm_evaluate_": emollm.evaluate.ray_metrics.METRICS,
}


class Run(NamedTuple):
    """Folder, manifest, fold.json and results.json of a run called `seen`, and what Ray exported of it on the way."""

    folder: Path
    manifest: dict[str, Any]
    fold: dict[str, Any]
    results: dict[str, Any]
    metrics: Found


@pytest.fixture(scope="module")
def run(ray_session, foundations: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from dataset_build.recipe import load_recipe as load_build
    from emollm.evaluate.results import evaluate
    from emollm.train.loop import train_fold
    from tests.fixtures import plain_build
    from tests.fixtures.emoji_tree import smoke_overrides, write_emoji_tree

    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("runs") / "seen"
    write_emoji_tree(tree, emoji_per_feeling=1, clips=2, texts_per_kind=6)
    (tree / "emoji" / "google" / "img" / "1f600.png").write_bytes(b"no picture")
    build = load_build(
        "smoke", [*smoke_overrides(tree, folder / "emobench"), "name=seen", "reject_budget=1.0"]
    )
    manifest = plain_build.build(build)
    metrics = exported(
        ALL["emobench_build_"],
        "seen",
        lambda found: found["emobench_build_shards_done"] == found["emobench_build_shards_total"],
    )
    recipe = load_recipe(
        "smoke",
        [
            "name=seen",
            f"data={folder / 'emobench'}",
            f"out={folder / 'model'}",
            f"foundation.vision={foundations / 'dinov2-small'}",
            f"foundation.language={foundations / 'smollm2-135m-instruct'}",
        ],
    )
    fold = train_fold(recipe, 1, "seen")
    rows = {("1",): fold["samples_seen"]}
    metrics |= exported(ALL["emollm_train_"], "seen", lambda found: found["emollm_train_rows_total"] == rows)
    few = recipe.evaluate.model_copy(
        update={"baselines": ("majority",), "linear_probe": False, "nearest_neighbour": False, "limit": 4}
    )
    model = str(folder / "model" / "fold-1")
    results = evaluate(model, recipe.data, str(folder / "evaluation"), few)
    scored = {(): results["scoring"]["scored"]}
    metrics |= exported(
        ALL["emollm_evaluate_"], "seen", lambda found: found["emollm_evaluate_samples_total"] == scored
    )
    return Run(folder, manifest, fold, results, metrics)


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", sorted(ALL))
def test_names_and_kinds_go_together(prefix: str) -> None:
    for name, metric in ALL[prefix].items():
        assert name.startswith(prefix) and metric.tags[0] == "run"
        assert (metric.kind == "counter") == (
            name.endswith("_total") and name != "emobench_build_shards_total"
        )
        assert metric.kind != "histogram" or name.endswith("_seconds"), name


def test_outside_ray_nothing_is_recorded_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    Metrics({"a_total": Metric("counter", "a", ("run",))}, run="x").record("a_total", 1)


def test_build_training_and_evaluation_are_seen_on_the_nodes_metrics_port(run: Run) -> None:
    found = run.metrics
    assert set(found) == {name for known in ALL.values() for name in known}
    counts = [split for splits in run.manifest["sources"].values() for split in splits.values()]
    # One damaged picture is a record of each of two sub-tasks; unclear emoji are rejected before anything is converted.
    assert found["emobench_build_rejects_total"] == {("not_media",): 2}
    assert 0 < found["emobench_build_rows_total"][()] <= sum(split["records"] for split in counts)
    assert found["emobench_build_shards_done"] == found["emobench_build_shards_total"]
    steps, fold = run.fold["steps"], ("1",)
    assert found["emollm_train_step"] == {fold: steps} == found["emollm_train_planned_steps"]
    assert found["emollm_train_steps_total"] == {fold: steps}
    assert found["emollm_train_checkpoint_seconds"][fold] >= 1  # so often
    assert 0 <= found["emollm_train_data_wait_share"][fold] < 1
    assert found["emollm_evaluate_planned_samples"] == {(): run.results["scoring"]["questions"]}


# --- the card --------------------------------------------------------------------------------------------------------


def front(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_training_leaves_a_card_with_data_licences_and_limits(run: Run) -> None:
    folder = run.folder / "model" / "fold-1"
    card = (folder / "README.md").read_text()
    assert front(card)["pipeline_tag"] == "image-text-to-text" and "model-index" not in front(card)
    for name, fact in run.manifest["source_facts"].items():
        assert f"`{name}`" in card and fact["licence"] in card and fact["limits"] in card
    assert run.manifest["digest"][:16] in card and "`dinov2-small`" in card
    assert "those of fold 1" in card and "relation" in card
    for word in ("2024/1689", "Article 5(1)(f)", "medical or safety reasons", "Annex III", "Article 50(3)"):
        assert word in card
    assert "**Demonstration sub-tasks** (Humor, Sarcasm)" in card
    assert str(run.folder) not in card + (folder / "card.json").read_text(), "local paths stay at home"


def test_a_card_may_be_edited_without_the_fold_being_trained_again(run: Run) -> None:
    from emollm.train.loop import finished_fold

    recipe = load_recipe(
        "smoke", [f"data={run.folder / 'emobench'}", f"out={run.folder / 'model'}", "foundation.vision=v", "foundation.language=l"]
    )  # fmt: skip
    card = run.folder / "model" / "fold-1" / "README.md"
    before = card.read_text()
    card.write_text(before + "\nSeen and released by hand.\n")
    try:
        assert finished_fold(recipe, 1, "seen") is not None
    finally:
        card.write_text(before)


def test_an_export_finds_the_evaluation_beside_it_and_shows_its_scores(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from huggingface_hub import ModelCard

    fold = str(run.folder / "model" / "fold-1")
    assert main(["export", fold, str(tmp_path / "whole")]) == 0
    assert "scores in the card are those of" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "whole" / "README.md")
    said = {(one.task_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    for name, entry in run.results["sub_tasks"].items():
        if entry["n"]:
            title = model_card.SUB_TASK_NAMES[name]
            title += f" ({model_card.DEMONSTRATION})" if entry["demonstration"] else ""
            assert said[title, "accuracy"] == round(entry["accuracy"], 4)
            low, high = (f"{100 * bound:.1f}" for bound in entry["ci95"])
            assert f"{100 * entry['accuracy']:.1f} % ({low} to {high})" in card.text
    assert "majority" in card.text and "Scored with this model alone" in card.text

    results = run.folder / "evaluation" / "results.json"
    other = tmp_path / "other" / "results.json"
    other.parent.mkdir()
    changed = json.loads(results.read_text())
    changed["model"]["digest"] = "0" * 64
    other.write_text(json.dumps(changed))
    assert main(["export", fold, str(tmp_path / "no"), "--evaluation", str(other.parent)]) == 1
    assert "is an evaluation of another model" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_licences_that_keep_a_source_from_commercial_use_are_known_by_their_words() -> None:
    free = {name for name in sources.REGISTRY if not model_card.restricted(sources.adapter(name).LICENCE)}
    assert free == {"crema_d", "emoji_clips", "emoji_pictures", "gestures", "jokes", "sarcastic_jokes"}
