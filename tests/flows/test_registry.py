"""The registry of models: promotions whole or not at all, one of two at once, and the way back, on a disk and on S3."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dataset_build import storage
from flows import registry, shared_file
from flows.registry import Champion, Conflict, NoSuchModel
from tests.fixtures.registry_files import evaluation, model
from tests.fixtures.s3_server import S3Server


def entry(digest: str) -> dict[str, Any]:
    return {"model_digest": digest * 64, "data_digest": "d" * 64, "overall": 0.5}


def promote(home: str, folder: Path, letter: str, champion: Champion | None = None) -> dict[str, Any]:
    """Promote a model whose digest is that letter, against today's champion if no other is given."""
    trained = folder / f"model-{letter}"
    if not trained.exists():
        model(trained, weights=letter)
    scores = folder / "evaluation"
    if not scores.exists():
        evaluation(scores, [True] * 4)
    against = registry.read_champion(home) if champion is None else champion
    return registry.write_decision(
        home, "promoted", "test", entry(letter), model=str(trained), evaluation=str(scores), champion=against
    )


def champion_of(home: str) -> str:
    return (registry.read_champion(home).model_digest or "-")[0]


def test_the_champion_survives_the_next_training_and_old_copies_go(tmp_path: Path) -> None:
    home = str(tmp_path / "registry")
    for letter in "abcde":
        promote(home, tmp_path, letter)
    (tmp_path / "model-e" / "fold-0" / "model.safetensors").write_text("overwritten by the next training")

    champion = registry.read_champion(home).entry
    assert champion is not None and champion["model_digest"] == "e" * 64
    copy = Path(home) / champion["model"]
    assert (copy / "fold-0" / "model.safetensors").read_text() == "e"
    assert not (copy / "checkpoints").exists()
    assert (Path(home) / champion["evaluation"] / "samples.parquet").exists()
    assert sorted(path.name[0] for path in (Path(home) / "models").iterdir()) == ["c", "d", "e"]
    assert [line["model_digest"][0] for line in registry.read_history(home)] == list("abcde")


def test_a_refusal_is_written_down_and_leaves_the_champion(tmp_path: Path) -> None:
    home = str(tmp_path / "registry")
    promote(home, tmp_path, "a")
    before = (Path(home) / "champion.json").read_bytes()
    registry.write_decision(
        home,
        "kept",
        "worse",
        {**entry("b"), "diff": -0.1},
        model="",
        evaluation="",
        champion=registry.read_champion(home),
    )
    assert (Path(home) / "champion.json").read_bytes() == before
    assert [line["decision"] for line in registry.read_history(home)] == ["promoted", "kept"]
    assert registry.read_history(home)[1]["diff"] == -0.1


def test_a_crash_while_copying_leaves_the_old_champion(tmp_path: Path) -> None:
    home = str(tmp_path / "registry")
    promote(home, tmp_path, "a")
    (tmp_path / "evaluation" / "samples.parquet").unlink()
    (
        tmp_path / "evaluation" / "samples.parquet"
    ).mkdir()  # reading it as a file fails in the middle of the copy
    (tmp_path / "evaluation" / "samples.parquet" / "x").touch()
    with pytest.raises(OSError):
        promote(home, tmp_path, "b")
    assert champion_of(home) == "a"
    assert len(registry.read_history(home)) == 1


def test_a_promotion_killed_before_its_line_in_the_history_is_completed_by_the_next_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(tmp_path / "registry")
    promote(home, tmp_path, "a")
    with monkeypatch.context() as killed:
        killed.setattr(
            shared_file, "append_line", lambda path, line: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            promote(home, tmp_path, "b")
    assert champion_of(home) == "b" and len(registry.read_history(home)) == 1
    promote(home, tmp_path, "c")
    assert [line["model_digest"][0] for line in registry.read_history(home)] == ["a", "b", "c"]
    assert registry.rollback(home)["model_digest"] == "b" * 64


@pytest.fixture(params=["disk", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "registry")
    server: S3Server = request.getfixturevalue("s3_server")
    return storage.join(server.bucket("registry-tests"), tmp_path.name)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(home: str, tmp_path: Path) -> None:
    promote(home, tmp_path, "a")
    seen = registry.read_champion(home)
    for letter in "bcde":  # made beforehand, so that the threads below meet at the pointer
        model(tmp_path / f"model-{letter}", weights=letter)
    won, lost = [], []

    def race(letter: str) -> None:
        try:
            won.append(promote(home, tmp_path, letter, champion=seen)["model_digest"][0])
        except Conflict:
            lost.append(letter)

    threads = [threading.Thread(target=race, args=(letter,)) for letter in "bcde"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 3
    assert champion_of(home) == won[0]
    assert [line["model_digest"][0] for line in registry.read_history(home)] == ["a", won[0]]


def test_a_decision_against_a_champion_that_is_gone_is_not_written_down(home: str, tmp_path: Path) -> None:
    promote(home, tmp_path, "a")
    seen = registry.read_champion(home)
    promote(home, tmp_path, "b")
    with pytest.raises(Conflict):
        registry.write_decision(home, "kept", "worse", entry("c"), model="", evaluation="", champion=seen)
    assert len(registry.read_history(home)) == 2


def test_lines_that_many_add_at_once_are_all_kept(home: str) -> None:
    path = storage.join(home, "history.jsonl")
    threads = [
        threading.Thread(target=shared_file.append_line, args=(path, json.dumps({"n": n}))) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["n"] for line in registry.read_history(home)) == list(range(6))


def test_rolling_back_goes_down_the_pile_and_what_was_given_up_is_not_promoted_by_itself(
    home: str, tmp_path: Path
) -> None:
    for letter in "abc":
        promote(home, tmp_path, letter)
    assert registry.rollback(home)["rolled_back_from"] == "c" * 64
    assert champion_of(home) == "b"
    champion = registry.read_champion(home).entry
    assert champion is not None and champion["overall"] == 0.5
    copy = storage.join(home, champion["model"], "fold-0", "model.safetensors")
    assert storage.read_bytes(copy) == b"b"
    assert "rolled back" in (registry.barred(home, "c" * 64) or "")
    assert registry.barred(home, "b" * 64) is None

    assert registry.rollback(home)["model_digest"] == "a" * 64
    with pytest.raises(NoSuchModel, match="no model to go back to"):
        registry.rollback(home)
    assert champion_of(home) == "a"

    registry.rollback(home, to="cccc")  # chosen on purpose
    assert champion_of(home) == "c" and registry.barred(home, "c" * 64) is None
    with pytest.raises(NoSuchModel, match="is the champion already"):
        registry.rollback(home, to="c")


def test_models_are_copied_between_disk_and_s3_in_every_direction(
    s3_server: S3Server, tmp_path: Path
) -> None:
    trained, scores = (
        Path(model(tmp_path / "model", "weights")),
        Path(evaluation(tmp_path / "scores", [True])),
    )
    bucket = s3_server.bucket("copy-tests")
    s3_server.upload(trained, f"{bucket}/model")
    s3_server.upload(scores, f"{bucket}/scores")
    for source in (str(tmp_path), bucket):
        for home in (str(tmp_path / f"of-{source[:2].strip('/')}"), f"{bucket}/of-{source[:2].strip('/')}"):
            registry.write_decision(
                home,
                "promoted",
                "test",
                entry("a"),
                model=storage.join(source, "model"),
                evaluation=storage.join(source, "scores"),
                champion=registry.read_champion(home),
            )
            folder = storage.join(home, f"models/{'a' * 16}")
            assert storage.list_files(folder) == [
                "evaluation/report.html",
                "evaluation/results.json",
                "evaluation/samples.parquet",
                "model/fold-0/model.safetensors",
                "model/training.json",
            ]
            assert storage.read_bytes(storage.join(folder, "model/fold-0/model.safetensors")) == b"weights"


def test_a_copy_that_was_forgotten_is_not_gone_back_to(tmp_path: Path) -> None:
    home = str(tmp_path / "registry")
    for letter in "abcd":
        promote(home, tmp_path, letter)
    with pytest.raises(NoSuchModel, match="is gone .the last 3 promoted models are kept"):
        registry.rollback(home, to="a")
    assert champion_of(home) == "d"


def test_the_command_shows_lists_and_rolls_back(
    home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.main(["show", home]) == 1
    assert registry.main(["list", home]) == 1
    for letter in "ab":
        promote(home, tmp_path, letter)
    capsys.readouterr()
    assert registry.main(["show", home]) == 0
    assert json.loads(capsys.readouterr().out)["model_digest"] == "b" * 64
    assert registry.main(["rollback", home]) == 0
    assert "the champion is " + "a" * 16 + " again" in capsys.readouterr().out
    assert registry.main(["list", home]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("*") and "rolled_back" in lines[2]
    assert registry.main(["rollback", home]) == 1
    assert "no model to go back to" in capsys.readouterr().err
    assert registry.main(["show", "https://bucket/registry"]) == 2
