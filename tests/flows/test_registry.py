"""Promotion: by a paired bootstrap on the same rows, written down either way, never half done."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import registry


def evaluation(
    folder: Path,
    correct: list[bool],
    first_uid: int = 0,
    demonstration: bool = False,
    others: dict[str, list[bool]] | None = None,
) -> str:
    """An evaluation folder with one Emo-C row per entry, two rows (drawings) per emoji; `others`: more sub-tasks."""
    folder.mkdir(parents=True)
    rows = []
    for task, values in {"emo_c": correct, **(others or {})}.items():
        rows += _rows(task, values, first_uid, demonstration)
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    (folder / "results.json").write_text("{}")
    (folder / "report.html").write_text("<html>")
    return str(folder)


def _rows(task: str, correct: list[bool], first_uid: int, demonstration: bool) -> list[dict[str, object]]:
    return [
        {
            "uid": f"emoji/{task}/{first_uid + number}",
            "prompt": "Which feeling? <image>",
            "options": ["joy", "sadness"],
            "gold_answers": ["joy"],
            "media_sha256": [f"{first_uid + number:064x}"],
            "sub_task": task,
            "group": f"emoji={number // 2}",
            "correct": value,
            "demonstration": demonstration,
        }
        for number, value in enumerate(correct)
    ]


def model(folder: Path, weights: str) -> str:
    (folder / "fold-0").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "fold-0" / "model.safetensors").write_text(weights)
    (folder / "checkpoints" / "step-5.pt").write_text("large")
    (folder / "training.json").write_text(json.dumps({"folds": [{"fold": 0, "path": "fold-0"}]}))
    return str(folder)


def entry(digest: str) -> dict[str, str]:
    return {"model_digest": digest * 64, "data_digest": "d" * 64}


def test_a_clear_gain_is_promoted_and_a_tie_is_not(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", [False, False, True, False] * 20)
    better = evaluation(tmp_path / "better", [True, True, True, False] * 20)
    twin = evaluation(tmp_path / "twin", [False, False, True, False] * 20)
    champion = {"model_digest": "old"}

    gain = registry.compare(better, base, draws=500, seed=0)
    assert gain.diff == pytest.approx(0.5) and gain.ci95[0] > 0.3 and gain.n == 80
    assert registry.decide(champion, "new", gain)[0] == "promoted"

    tie = registry.compare(twin, base, draws=500, seed=0)
    assert tie.diff == 0 and tie.ci95 == (0, 0)
    assert registry.decide(champion, "new", tie)[0] == "kept"

    loss = registry.compare(base, better, draws=500, seed=0)
    verdict, reason = registry.decide(champion, "new", loss)
    assert verdict == "kept" and "-0.5000" in reason and "80 rows" in reason


def test_a_gain_within_the_noise_is_not_promoted(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", [False, True] * 10 + [True, True])
    slightly = evaluation(tmp_path / "slightly", [True, True] + [True, False] * 9 + [True, True])
    result = registry.compare(slightly, base, draws=500, seed=0)
    assert result.diff > 0 > result.ci95[0] - 1e-12
    assert registry.decide({"model_digest": "old"}, "new", result)[0] == "kept"


def test_only_the_same_questions_are_compared(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", [True] * 40)
    shifted = evaluation(tmp_path / "shifted", [False] * 40, first_uid=10)
    result = registry.compare(one, shifted, draws=100, seed=0)
    assert (result.n, result.left_out, result.diff) == (30, 10, 1.0)

    mostly_new = evaluation(tmp_path / "new", [False] * 40, first_uid=30)
    verdict, reason = registry.decide(
        {"model_digest": "old"}, "new", registry.compare(one, mostly_new, 100, 0)
    )
    assert verdict == "kept" and "too much to compare emo_c" in reason and "emo_c 10 of 40" in reason

    demo = evaluation(tmp_path / "demo", [True] * 4, demonstration=True)
    for other in (evaluation(tmp_path / "elsewhere", [True] * 4, first_uid=900), demo):
        nothing = registry.compare(one, other, draws=100, seed=0)
        assert nothing.n == 0
        assert registry.decide({"model_digest": "old"}, "new", nothing)[0] == "kept"


def test_a_sub_task_that_cannot_be_compared_prevents_a_promotion(tmp_path: Path) -> None:
    champion = {"model_digest": "old"}
    worse, better = [False] * 40, [True] * 40
    base = evaluation(tmp_path / "base", worse, others={"intent": [True] * 20})

    gone = evaluation(
        tmp_path / "gone", better
    )  # the sub-task that the champion is good at is not asked any more
    result = registry.compare(gone, base, draws=100, seed=0)
    assert result.ci95[0] > 0 and result.rows["intent"] == (0, 0, 20)
    verdict, reason = registry.decide(champion, "new", result)
    assert verdict == "kept" and "too much to compare intent" in reason and "intent 0 of 20" in reason

    for rows, expected in ((9, "kept"), (10, "promoted"), (40, "promoted"), (41, "kept")):
        other = evaluation(tmp_path / str(rows), better, others={"intent": [True] * rows})
        result = registry.compare(other, base, draws=100, seed=0)
        verdict, reason = registry.decide(champion, "new", result)
        assert verdict == expected, (rows, reason)
        assert "emo_c 40 of 40" in reason and f"intent {min(rows, 20)} of {max(rows, 20)}" in reason
        assert f"{abs(rows - 20)} rows were put to one model only" in reason

    new = evaluation(tmp_path / "new", better, others={"intent": [True] * 20, "stance": [True] * 20})
    verdict, reason = registry.decide(champion, "new", registry.compare(new, base, draws=100, seed=0))
    assert verdict == "kept" and "too much to compare stance" in reason


def test_the_champion_survives_the_next_training_and_old_copies_go(tmp_path: Path) -> None:
    home, scores = str(tmp_path / "registry"), evaluation(tmp_path / "evaluation", [True] * 4)
    for letter in "abcde":
        trained = model(tmp_path / f"model-{letter}", weights=letter)
        registry.write_decision(home, "promoted", "test", entry(letter), model=trained, evaluation=scores)
    (tmp_path / "model-e" / "fold-0" / "model.safetensors").write_text("overwritten by the next training")

    champion = registry.read_champion(home)
    assert champion is not None and champion["model_digest"] == "e" * 64
    copy = Path(home) / champion["model"]
    assert (copy / "fold-0" / "model.safetensors").read_text() == "e"
    assert not (copy / "checkpoints").exists()
    assert (Path(home) / champion["evaluation"] / "samples.parquet").exists()
    assert sorted(path.name[0] for path in (Path(home) / "models").iterdir()) == ["c", "d", "e"]
    assert [line["model_digest"][0] for line in registry.read_history(home)] == list("abcde")


def test_a_refusal_is_written_down_and_leaves_the_champion(tmp_path: Path) -> None:
    home, scores = str(tmp_path / "registry"), evaluation(tmp_path / "evaluation", [True] * 4)
    first, second = model(tmp_path / "first", "first"), model(tmp_path / "second", "second")
    registry.write_decision(home, "promoted", "none yet", entry("a"), model=first, evaluation=scores)
    before = (Path(home) / "champion.json").read_bytes()
    registry.write_decision(
        home, "kept", "worse", {**entry("b"), "diff": -0.1}, model=second, evaluation=scores
    )
    assert (Path(home) / "champion.json").read_bytes() == before
    assert [line["decision"] for line in registry.read_history(home)] == ["promoted", "kept"]
    assert registry.read_history(home)[1]["diff"] == -0.1


def test_a_crash_while_copying_leaves_the_old_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, scores = str(tmp_path / "registry"), evaluation(tmp_path / "evaluation", [True] * 4)
    registry.write_decision(
        home, "promoted", "", entry("a"), model=model(tmp_path / "m", "1"), evaluation=scores
    )
    broken = model(tmp_path / "broken", "2")
    (tmp_path / "evaluation" / "samples.parquet").unlink()
    (
        tmp_path / "evaluation" / "samples.parquet"
    ).mkdir()  # reading it as a file fails in the middle of the copy
    (tmp_path / "evaluation" / "samples.parquet" / "x").touch()
    with pytest.raises(OSError):
        registry.write_decision(home, "promoted", "", entry("b"), model=broken, evaluation=scores)
    champion = registry.read_champion(home)
    assert champion is not None and champion["model_digest"] == "a" * 64
    assert len(registry.read_history(home)) == 1
