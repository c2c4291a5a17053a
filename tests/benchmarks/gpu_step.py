"""A real bf16 training step of a shipped recipe's model, with random weights: tokens/s, memory and MFU. No downloads.

    python tests/benchmarks/gpu_step.py --recipe llava15_7b_lora                      # one GPU, the whole 7B model
    python tests/benchmarks/gpu_step.py --recipe qwen25vl_7b_full --layers 10         # all weights learn: fewer layers fit
    torchrun --nproc-per-node 8 tests/benchmarks/gpu_step.py --recipe qwen25vl_7b_full --stage 3
    python tests/benchmarks/gpu_step.py --recipe llava15_7b_lora --tiny               # on a CPU: only that it runs

The model is the recipe's own class at its published size (`emollm.model.published`), through the same engine, packing
and loss as a training; `--layers` cuts the language model's depth where memory asks for it, and the table says so.
One sample is one picture of the largest size the recipe takes and 128 tokens of words, 4 of them with loss; a micro-batch
is `tune.micro_batch` of them, packed. MFU counts the arithmetic of `emollm.train.cost` without the forward that
activation checkpointing does again, over the device's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emollm.config import TrainRecipe, load_recipe
from emollm.data.collate import Encoded
from emollm.data.masking import IGNORED
from emollm.data.packing import even_fit, pack
from emollm.model.attached_model import AttachedConfig, AttachedEmoLLM
from emollm.model.families import Size, Visual
from emollm.model.published import planning_config
from emollm.train import cost
from emollm.train.deepspeed import make_engine

# Dense bf16 peaks in TFLOP/s, from the data sheets of the SXM parts.
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "L40S": 362.0}
_TINY_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_TINY_VISION: dict[str, dict[str, Any]] = {
    "llava": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56},
    "qwen2_5_vl": {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
}  # fmt: skip


def small(recipe: TrainRecipe, layers: int | None, tiny: bool) -> dict[str, Any]:
    """The foundation's published config as a dict, with fewer layers or of a size for a CPU."""
    values: dict[str, Any] = planning_config(recipe.foundation.mllm, "foundation MLLM").to_dict()
    text, vision = values["text_config"], values["vision_config"]
    if tiny:
        text.update(_TINY_TEXT, head_dim=16)
        vision.update(_TINY_VISION[values["model_type"]])
        for rope in ("rope_scaling", "rope_parameters"):
            if text.get(rope) and "mrope_section" in text[rope]:
                text[rope] = {**text[rope], "mrope_section": [2, 3, 3]}
    if layers is not None:
        text["num_hidden_layers"] = layers
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:1] * layers
    elif tiny and text.get("layer_types"):
        text["layer_types"] = text["layer_types"][:2]
    return values


def build(recipe: TrainRecipe, values: dict[str, Any], device: torch.device) -> AttachedEmoLLM:
    """The recipe's model with random weights, made in bf16 where it will run."""
    config = AttachedConfig(
        foundation_config=values,
        mvp=recipe.mvp.model_dump(),
        lora=recipe.lora.model_dump(mode="json") if recipe.lora else None,
        full_language=recipe.full_language,
        max_side_px=recipe.foundation.max_side_px,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = AttachedEmoLLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.reset_projector(lambda name: torch.manual_seed(sum(name.encode())), 0.02)
    model.freeze_foundations()
    return model


def sample(model: AttachedEmoLLM, side: int, number: int) -> Encoded:
    """Words, a picture's places, words, an answer of four tokens; the picture is noise."""
    from PIL import Image

    rng = torch.Generator().manual_seed(number)
    own, family = model.config.foundation(), model.family
    size = Size(0, side, side)
    places = family.text(size).count(family.image_token)
    words = torch.randint(10, 30_000, (cost.WORDS,), generator=rng).tolist()
    half = cost.WORDS // 2
    ids = [*words[:half], *[own.image_token_id] * places, *words[half:]]
    labels = [IGNORED] * (len(ids) - cost.SUPERVISED) + ids[-cost.SUPERVISED :]
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=rng)
    picture: Visual = family.visual([Image.fromarray(pixels.numpy())], False)
    positions = family.positions(ids, [size]) if family.needs_positions else None
    return Encoded(f"noise/{number}", ids, labels, [], [0], [], 0, [picture], positions)


def measure(recipe: TrainRecipe, values: dict[str, Any], steps: int, peak: float | None) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    world = join(device)
    model = build(recipe, values, device)
    shape = cost.picture_shape(model, recipe)
    side = recipe.foundation.max_side_px or values["vision_config"]["image_size"]
    plain = recipe.model_copy(
        update={"tune": recipe.tune.model_copy(update={"activation_checkpointing": False})}
    )
    per_sample = cost.training(model, plain).total
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [sample(model, side, dist.get_rank() * 10_000 + n) for n in range(recipe.tune.micro_batch)]
    bins = even_fit([len(row.input_ids) for row in rows], recipe.tune.pack_tokens)
    batch: dict[str, Any] = pack(rows, bins, 0)
    batch["visuals"] = [visual for one in bins for i in one for visual in rows[i].visuals]
    batch = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
    tokens = sum(len(row.input_ids) for row in rows)
    model.train()
    engine = make_engine(model, recipe.deepspeed, recipe.tune, 1)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for _ in range(steps + 2):  # the first two warm up
        wait(on_gpu)
        started = time.perf_counter()
        loss = engine(**batch, supervised_only=True, num_items_in_batch=len(rows) * cost.SUPERVISED).loss
        engine.backward(loss)
        engine.step()
        wait(on_gpu)
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    step_s = sorted(seconds[2:])[len(seconds[2:]) // 2]
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = peak or next((value for key, value in PEAKS.items() if key in name), None)
    return {
        "recipe": recipe.name,
        "device": name,
        "workers": world,
        "zero": recipe.deepspeed.stage,
        "precision": recipe.deepspeed.precision,
        "language_layers": values["text_config"]["num_hidden_layers"],
        "parameters": parameters,
        "trained": trained,
        "samples_per_step_and_worker": len(rows),
        "visual_tokens_per_picture": shape.visual,
        "tokens_per_step_and_worker": tokens,
        "step_s": round(step_s, 4),
        "tokens_per_s": round(world * tokens / step_s, 1),
        "samples_per_s": round(world * len(rows) / step_s, 2),
        "tflops_per_worker": round(per_sample * len(rows) / step_s / 1e12, 3),
        "mfu": round(per_sample * len(rows) / step_s / (peak * 1e12), 4) if peak else None,
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "process_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "losses": [round(value, 4) for value in losses],
    }


def join(device: torch.device) -> int:
    """Join the process group that torchrun made, or a group of this process alone; the number of processes."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
        folder = tempfile.mkdtemp(prefix="gpu-step-")
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return dist.get_world_size()


def wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe",
        default="llava15_7b_lora",
        choices=["llava15_7b_lora", "qwen25vl_7b_lora", "qwen25vl_7b_full"],
    )
    parser.add_argument("--layers", type=int, help="layers of the language model (default: all)")
    parser.add_argument("--stage", type=int, choices=[1, 2, 3], help="ZeRO stage (default: the recipe's)")
    parser.add_argument(
        "--micro-batch", type=int, help="samples of a step and worker (default: the recipe's)"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed; the median counts")
    parser.add_argument(
        "--peak-tflops", type=float, help="dense bf16 peak of the device, where it is not known here"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that this runs")
    parser.add_argument("--json", metavar="FILE", help="also append the result to FILE, one JSON line")
    chosen = parser.parse_args()  # fmt: skip
    if not torch.cuda.is_available() and not chosen.tiny:
        sys.exit("no GPU here, and 7 billion weights are too many for a CPU; --tiny shows that the step runs")
    recipe = load_recipe(chosen.recipe)
    stage = recipe.deepspeed.model_copy(update={"stage": chosen.stage or recipe.deepspeed.stage})
    tune = recipe.tune.model_copy(update={"micro_batch": chosen.micro_batch or recipe.tune.micro_batch})
    recipe = recipe.model_copy(update={"deepspeed": stage, "tune": tune})
    if chosen.tiny:
        foundation = recipe.foundation
        if foundation.max_side_px:
            foundation = foundation.model_copy(update={"max_side_px": 56})
        recipe = recipe.model_copy(update={"foundation": foundation, "lora": recipe.lora and recipe.lora.model_copy(update={"rank": 2}),
                                           "mvp": recipe.mvp.model_copy(update={"width": 16, "heads": 2})})  # fmt: skip
    found = measure(recipe, small(recipe, chosen.layers, chosen.tiny), chosen.steps, chosen.peak_tflops)
    if dist.get_rank() == 0:
        for key, value in found.items():
            print(f"{key:>28}  {value}")
        if found["device"] == "CPU":
            print("NOT RUN ON A GPU: these numbers only show that the step runs")
        if chosen.json:
            with open(chosen.json, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
