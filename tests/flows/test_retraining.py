"""What a retraining decides about its model, run after run, with the artifacts on a real Prefect server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_build.schema import SCHEMA_VERSION
from emollm.config import load_recipe
from flows import registry, retrain_emollm
from infra.prefect_api import PrefectApi
from infra.servers import PrefectServer
from tests.fixtures.registry_files import evaluation, model

NEW = {"build": "submitted", "train": "submitted", "evaluate": "submitted"}
UNCHANGED = dict.fromkeys(NEW, "unchanged")
GOOD, BAD = [True] * 40, [False] * 40


@pytest.fixture
def api(prefect_server: PrefectServer) -> Iterator[PrefectApi]:
    from prefect.logging import disable_run_logger
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings = {PREFECT_API_URL: prefect_server.api_url, PREFECT_API_AUTH_STRING: prefect_server.auth_string}
    with temporary_settings(settings), disable_run_logger():
        yield PrefectApi(prefect_server.api_url, auth_string=prefect_server.auth_string)


class Retrainings:
    """Decisions about models whose digest is one letter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, str(folder / "registry")
        (folder / "data").mkdir()
        manifest = dict.fromkeys(("inputs_digest", "recipe", "code", "sources", "files"), {})
        content = {**manifest, "schema_version": SCHEMA_VERSION, "digest": "d" * 64}
        (folder / "data" / "manifest.json").write_text(json.dumps(content))

    def decide(
        self, letter: str, emo_c: list[bool], hate: list[bool], steps: dict[str, str] = NEW
    ) -> dict[str, Any]:
        trained, scores = self.folder / f"model-{letter}", self.folder / f"evaluation-{letter}"
        if not trained.exists():
            model(trained, letter)
            evaluation(scores, emo_c, others={"hate": hate})
        loaded = load_recipe("smoke", ["name=decisions", f"data={self.folder / 'data'}", f"out={trained}"])
        scored = {"out": str(scores), "overall": {"accuracy": 0.5}}
        return retrain_emollm._decide(loaded, self.home, 0.03, letter * 64, scored, steps)


def test_the_life_of_a_champion(api: PrefectApi, tmp_path: Path) -> None:
    run = Retrainings(tmp_path)
    first = run.decide("a", BAD, GOOD)
    assert (first["decision"], first["reason"]) == ("promoted", "there was no champion yet")

    second = run.decide("a", BAD, GOOD, UNCHANGED)
    assert second["decision"] == "unchanged"
    assert (
        f"nothing changed: data {'d' * 16}, recipe and code are those of model {'a' * 16}" in second["reason"]
    )

    one_sided = run.decide("b", GOOD, [True] * 30 + [False] * 10)
    assert one_sided["decision"] == "kept"
    assert "hate fell by 0.2500 (1.0000 → 0.7500 on 40 rows)" in one_sided["reason"]
    assert one_sided["diff"] == pytest.approx(0.375) and one_sided["guard_rail"] == 0.03

    better = run.decide("c", GOOD, GOOD)
    assert better["decision"] == "promoted" and "difference +0.5000" in better["reason"]
    worse = run.decide("e", BAD, GOOD)
    assert worse["decision"] == "kept" and worse["champion"] == "c" * 64

    registry.rollback(run.home)
    assert registry.read_champion(run.home).model_digest == "a" * 64
    again = run.decide("c", GOOD, GOOD, UNCHANGED)
    assert again["decision"] == "kept" and "rolled back" in again["reason"]
    assert registry.read_champion(run.home).model_digest == "a" * 64

    decisions = [entry["decision"] for entry in registry.read_history(run.home)]
    assert decisions == ["promoted", "unchanged", "kept", "promoted", "kept", "rolled_back", "kept"]
    body = {"artifacts": {"key": {"any_": ["decision-decisions"]}}, "sort": "CREATED_DESC"}
    shown = api.call("POST", "/artifacts/filter", body)
    assert len(shown) == 6 and "rolled back" in shown[0]["data"]


def test_a_champion_that_changes_while_a_run_decides_is_compared_anew(
    api: PrefectApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Retrainings(tmp_path)
    run.decide("a", BAD, BAD)
    compare = retrain_emollm.promotion.compare

    def while_another_promotes(*arguments: Any) -> Any:
        monkeypatch.setattr(retrain_emollm.promotion, "compare", compare)
        run.decide("b", GOOD, GOOD)
        return compare(*arguments)

    monkeypatch.setattr(retrain_emollm.promotion, "compare", while_another_promotes)
    late = run.decide("c", GOOD, GOOD)
    assert late["champion"] == "b" * 64 and late["decision"] == "kept"
    assert registry.read_champion(run.home).model_digest == "b" * 64
