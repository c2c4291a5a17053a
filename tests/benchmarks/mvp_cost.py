"""mvp-cost: a training step with MVP attached, beside the same step with the foundation's own projector alone.

    python -m tests.benchmarks.mvp_cost mvp|own

The model is LLaVA-1.5's own classes with random weights, LoRA on the language model, float32, ZeRO 2, one thread. It is
small enough for a CPU, but divided as a real one: MVP's perspectives get the share of the step's arithmetic that they
have in the shipped recipe where it is largest (smolvlm_2b_lora, 0.4 %; llava15_7b_lora 0.1 %, qwen25vl_7b_lora 0.2 %:
`emollm train RECIPE --dry-run` prints them). `notes.mvp_share` is the share here.

Equal work: rows, tokens, steps, and the loss of the first step: at step 0 the perspectives are closed, so both models
are the same function.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import training
from tests.benchmarks.harness import Benchmark, Side, Size, equal_work

SHAPES: dict[str, dict[str, int]] = {
    "smoke": {"hidden": 64, "layers": 2, "rows": 2, "steps": 2},
    "normal": {"hidden": 384, "layers": 8, "rows": 4, "steps": 8},
    "large": {"hidden": 1024, "layers": 16, "rows": 8, "steps": 8},
}
MVP_SHARE = 0.0038


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    def side(word: str, name: str) -> Side:
        return training.side("mvp_cost", word, size, folder, name=name, models=False)

    return side("mvp", "MVP"), [side("own", "the foundation's own projector")]


BENCHMARKS = [
    Benchmark(
        "mvp-cost",
        "a training step with MVP, beside the foundation's own projector",
        "s per step",
        1.05,
        sides,
        equal_work(first_loss=1e-5),
        better="less",
    )
]


def foundation(hidden: int, layers: int) -> dict[str, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    heads = max(2, hidden // 64)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=hidden // 2, intermediate_size=2 * hidden, num_hidden_layers=max(3, layers // 2),
            num_attention_heads=heads, image_size=168, patch_size=14, projection_dim=16,
        ),
        text_config=LlamaConfig(
            hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=heads, vocab_size=32_064,
        ),
        image_token_id=32_000,
        vision_feature_layer=-2,
    )  # fmt: skip
    found: dict[str, Any] = config.to_dict()
    return found


def attached(recipe: Any, values: dict[str, Any]) -> Any:
    """The recipe's model over random weights; the same weights for the same recipe, with or without perspectives."""
    import torch

    from emollm.model.attached_model import AttachedConfig, AttachedEmoLLM
    from emollm.train.build import part_seed

    torch.manual_seed(0)
    model = AttachedEmoLLM(
        AttachedConfig(
            foundation_config=values, mvp=recipe.mvp.model_dump(), lora=recipe.lora.model_dump(mode="json")
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" not in name and parameter.dim() > 1:
                torch.manual_seed(part_seed(0, name))
                parameter.normal_(0, 0.02)
    model.reset_projector(lambda name: torch.manual_seed(part_seed(0, name)), 0.02)
    model.freeze_foundations()
    return model


def shaped(shape: dict[str, int], perspectives: bool) -> tuple[Any, Any, float]:
    """Recipe, model, and MVP's share of a step: the narrowest MVP with at least `MVP_SHARE` of the arithmetic."""
    from emollm.config import load_recipe
    from emollm.train import cost

    values = foundation(shape["hidden"], shape["layers"])
    for width in (8, *range(16, 513, 16)):
        recipe = load_recipe(
            "llava15_7b_lora",
            [
                f"mvp={{width: {width}, heads: 2, content_queries: 8, neighbours: 8, content: {str(perspectives).lower()}, "
                f"relation: {str(perspectives).lower()}}}",
                "lora={rank: 16}",
                "deepspeed={stage: 2, precision: fp32}",
                f"tune={{micro_batch: {shape['rows']}, pack_tokens: 1024, activation_checkpointing: false, cache_gib: 0}}",
            ],
        )
        model = attached(recipe, values)
        step = cost.training(model, recipe)
        if not perspectives or step.mvp / step.total >= MVP_SHARE:
            break
    return recipe, model, step.mvp / step.total


def run(options: argparse.Namespace, perspectives: bool) -> dict[str, Any]:
    import torch

    from emollm.data.packing import even_fit, pack
    from emollm.train.deepspeed import ensure_process_group, make_engine
    from tests.benchmarks.gpu_step import sample

    ensure_process_group()
    torch.set_num_threads(1)
    shape = SHAPES[options.size]
    recipe, model, share = shaped(shape, perspectives)
    side = model.config.foundation().vision_config.image_size
    batches = []
    for step in range(shape["steps"]):
        rows = [sample(model, side, step * shape["rows"] + number) for number in range(shape["rows"])]
        bins = even_fit([len(row.input_ids) for row in rows], recipe.tune.pack_tokens)
        packed: dict[str, Any] = pack(rows, bins, 0)
        packed["visuals"] = [visual for one in bins for i in one for visual in rows[i].visuals]
        batches.append(packed)
    supervised = int((batches[0]["labels"][:, 1:] != -100).sum())
    model.train()
    engine = make_engine(model, recipe.deepspeed, recipe.tune, 1)

    def step_on(batch: dict[str, Any]) -> float:
        loss = engine(**batch, supervised_only=True, num_items_in_batch=supervised).loss
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    first = step_on(batches[0])  # warms up as well
    seconds = []
    for batch in batches[1:]:
        started = time.perf_counter()
        step_on(batch)
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": sorted(seconds)[len(seconds) // 2],  # one step, the median
        "units": 1,
        "work": {
            "steps": len(batches),
            "rows": shape["rows"],
            "tokens": sum(int(batch["input_ids"].numel()) for batch in batches),
            "first_loss": first,
        },
        "notes": {"mvp_share": share, "width": recipe.mvp.width, "seconds": seconds},
    }


if __name__ == "__main__":
    training.main(
        __doc__ or "",
        {"mvp": lambda options, _: run(options, True), "own": lambda options, _: run(options, False)},
    )
