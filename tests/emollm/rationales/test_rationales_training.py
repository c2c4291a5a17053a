"""A training that takes rationales, and what the page about EmoPrompt says."""

from __future__ import annotations

import json
from pathlib import Path

from emollm.config import load_recipe, train_inputs_digest
from emollm.model.load import load_processor
from emollm.prompting import SCAFFOLDS
from emollm.rationales import store, verify
from emollm.train.loop import train_fold
from tests.emollm.rationales.steered import row, write

ROOT = Path(__file__).resolve().parents[3]


def test_a_training_says_how_many_rows_reason_aloud_and_saves_how_it_asks(tmp_path, tiny_overrides, capfd):
    data = write(tmp_path / "data", [row(number) for number in range(8)])
    digest = json.loads((data / "manifest.json").read_text())["digest"]
    told = [
        dict.fromkeys(store.schema().names, "")
        | {"uid": f"drawn/all/{number:04d}", "source": "drawn", "sub_task": "emo_c", "status": status}
        | {"reason": "" if status == "accepted" else "empty", "rationale": text}
        for number, status, text in (
            (0, "accepted", "The ground is gold, which is bright."), (1, "accepted", "The ground is navy. " * 150),
            (2, "rejected", "No."),
        )
    ]  # fmt: skip
    store.write_shard(str(data), "r", "a.parquet", told)
    store.write_manifest(str(data), "r", {"planned": 3, "data_digest": digest}, ["a.parquet"])
    overrides = [*tiny_overrides, f"data={data}", "prompt=mixed", "mixed_share=0.0", "rationales=r"]
    recipe = load_recipe("smoke", [*overrides, "align.steps=0", "deepspeed.stage=0"])
    result = train_fold(recipe, 0, train_inputs_digest(recipe, digest))
    assert result["rows"] == 8
    said = capfd.readouterr().out
    assert (
        "rationales 'r': 1 rows reason aloud, 1 left out because the sequence would be longer than 512"
        in said
    )
    assert load_processor(str(Path(recipe.out) / "fold-0")).prompt == "mixed"


def test_the_page_names_every_scaffold_and_every_reason():
    page = (ROOT / "docs" / "emoprompt.md").read_text()
    for sub_task, scaffold in SCAFFOLDS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {sub_task} |")]
        assert line == f"| {sub_task} | {scaffold} |" or (
            sub_task == "emo_o" and scaffold.endswith("name it.")
        )
    assert not [reason for reason in verify.REASONS if f"`{reason}`" not in page]
    assert f"more than {verify.MAX_WORDS} words or {verify.MAX_CHARS} characters" in page
    assert f"fewer than {verify.MIN_WORDS} words" in page
