"""docs/operations.md names files, commands and settings that exist, its sums are right, and its walk-through runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dataset_build.recipe import BuildRecipe
from dataset_build.schema import REJECT_REASONS
from emollm.config import TrainRecipe

PROJECT = Path(__file__).resolve().parent.parent.parent
GUIDE = (PROJECT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"^```sh( walk)?\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = "\n".join(body for _, body in BLOCKS)


def test_files_that_the_guide_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/-])((?:infra|docs|dataset_build|flows|emollm)/[\w./-]*\w)", GUIDE))
    made = {"infra/compose/images.env"}
    assert len(named) > 5 and not [name for name in named - made if not (PROJECT / name).exists()]


def test_commands_that_the_guide_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", COMMANDS)) <= targets
    for module in set(re.findall(r"python -m ([\w.]+)", GUIDE)):
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_settings_and_reasons_that_the_guide_names_exist() -> None:
    for dotted in set(re.findall(r"`((?:media|tune|workers|checkpoint)\.\w+)`", GUIDE)):
        component, name = dotted.split(".")
        owner: Any = (BuildRecipe if component == "media" else TrainRecipe).model_fields[component].annotation
        assert name in owner.model_fields, dotted
    assert "reject_budget" in BuildRecipe.model_fields
    for reason in ("missing_media", "undecodable", "too_large"):
        assert f"`{reason}`" in GUIDE and reason in REJECT_REASONS


def test_the_sums_of_the_cost_table_are_right() -> None:
    rows, clips = 285_279, 46_000
    recipe = (PROJECT / "dataset_build/recipes/emobench.yaml").read_text()
    assert f"{rows:,} rows" in recipe and f"{rows:,} rows" in GUIDE
    pictures = round(rows - clips, -3)
    assert f"{pictures:,}" in GUIDE
    for name, language, tower in (("qwen25vl_7b_lora", 15.8, 1.3), ("qwen25vl_7b_full", 20.3, 1.3)):
        picture, clip = language + tower, 3 * language + 4 * tower
        flop = (pictures * picture + clips * clip) * 1e12
        h100, a100 = (flop / (peak * 1e12 * 0.35) / 3600 for peak in (989, 312))
        for row in (
            f"| `{name}` | {language} TFLOP | {tower} TFLOP | {picture:.1f} TFLOP | {clip:.1f} TFLOP |",
            f"| `{name}` | {flop / 1e18:.1f} | {h100:.1f} | {a100:.1f} | {h100 / 8:.1f} h |",
        ):
            assert row in GUIDE, row
    clip_kb = 8 * 40 + 4 * 32
    assert f"= {clip_kb} kB" in GUIDE
    for row in (
        f"| {pictures:,} × 40 kB | {pictures * 40e3 / 1e9:.1f} GB |",
        f"| {clips:,} × {clip_kb} kB | {clips * clip_kb * 1e3 / 1e9:.1f} GB |",
        f"| 0.2 G × (2 + 12) B × 2 kept | {0.2 * 14 * 2:.1f} GB |",
        f"| 7.6 G × (2 + 12) B × 2 kept | {7.6 * 14 * 2:.0f} GB |",
    ):
        assert row in GUIDE, row


def test_machines_by_ssh_have_a_file_that_ray_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((PROJECT / "infra/ray/cluster.yaml").read_text())
    validate_config(prepare_config(config))
    starts = [
        line
        for kind in ("head", "worker")
        for line in config[f"{kind}_start_ray_commands"]
        if " start" in line
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0] and "0.0.0.0" not in str(config)
    with pytest.raises(jsonschema.ValidationError, match="provier"):
        validate_config({**prepare_config(config), "provier": {}})


@pytest.mark.slow
def test_the_walk_through_runs_in_an_empty_folder(tmp_path: Path) -> None:
    [walk] = [body for marked, body in BLOCKS if marked]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PROJECT": str(PROJECT), "PATH": path}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", walk],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (tmp_path / "emobench" / "manifest.json").is_file()
    assert (tmp_path / "evaluation" / "report.html").is_file()
