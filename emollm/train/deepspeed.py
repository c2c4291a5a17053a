"""DeepSpeed around the model: ZeRO config, engine, process group, gathering what was trained, universal checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from emollm.config import DeepSpeedConfig, TuneConfig
from emollm.model.base import EmoLLMBase


def without_compiled_extensions() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication with gcc at start (a minute, and it fails without a
    compiler). The attribute is undocumented; DeepSpeed is pinned, and a test starts an engine on a cold extension cache.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def ensure_process_group() -> tuple[int, int]:
    """(rank, world size) of this process; a process that stands alone gets a group of its own."""
    if not dist.is_initialized():
        folder = tempfile.mkdtemp(prefix="emollm-")
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("RANK", str(dist.get_rank()))
    os.environ.setdefault("WORLD_SIZE", str(dist.get_world_size()))
    if dist.get_backend() == "nccl":  # else all workers of a machine would share its first GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return dist.get_rank(), dist.get_world_size()


def group_device() -> torch.device:
    """Where a tensor must lie that goes through the process group: NCCL takes only what is on a GPU."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def zero_config(config: DeepSpeedConfig, tune: TuneConfig, accumulation: int) -> dict[str, Any]:
    """The DeepSpeed config for a torch optimizer; in bf16 the optimizer keeps float32 weights."""
    zero: dict[str, Any] = {
        "stage": config.stage,
        "reduce_bucket_size": config.bucket_size,
        "allgather_bucket_size": config.bucket_size,
        "stage3_param_persistence_threshold": min(100_000, config.bucket_size),  # smaller ones stay whole
        "contiguous_gradients": True,
        "overlap_comm": False,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "bf16": {"enabled": config.precision == "bf16"},
        "train_micro_batch_size_per_gpu": tune.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": tune.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def make_engine(
    model: EmoLLMBase,
    config: DeepSpeedConfig,
    tune: TuneConfig,
    accumulation: int,
    *,
    universal: bool = False,
) -> Any:
    """A DeepSpeed engine that trains MVP and LoRA, each with its own learning rate. Rank 0's weights go to all.

    `universal`: the checkpoint that it will load is one that `to_universal` has written.
    """
    without_compiled_extensions()
    import deepspeed

    if config.precision == "bf16":
        for (
            parameter
        ) in model.parameters():  # not the buffers: rotary frequencies in bf16 are other positions
            parameter.data = parameter.data.bfloat16()
    if tune.activation_checkpointing:
        # Re-entrant checkpointing passes no gradient to the trained weights behind frozen embeddings.
        model.checkpoint_activations()
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    projector = model.projector_names()
    groups = [
        {
            "params": [p for name, p in named if (name in projector) == is_projector],
            "lr": rate,
            "base_lr": rate,
        }
        for is_projector, rate in ((True, tune.projector_learning_rate), (False, tune.learning_rate))
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], weight_decay=tune.weight_decay, betas=(0.9, 0.95)
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            **zero_config(config, tune, accumulation),
            "checkpoint": {"load_universal": universal},
        },
        dist_init_required=False,
    )
    return engine


def trained_state(engine: Any) -> dict[str, Tensor]:
    """The trained weights, whole, on the CPU. Every rank calls this; under ZeRO 3 rank 0 alone gets the values."""
    import deepspeed

    model: EmoLLMBase = engine.module
    names = model.trained_names()
    parameters = [(name, p) for name, p in model.named_parameters() if name in names]
    if engine.zero_optimization_stage() < 3:
        return {name: p.detach().cpu().clone() for name, p in parameters}
    with deepspeed.zero.GatheredParameters([p for _, p in parameters]):
        return {name: p.detach().cpu().clone() for name, p in parameters}


def to_universal(source: Path, destination: Path) -> None:
    """Write DeepSpeed's universal form of the checkpoint in `source`, which any number of ranks can load.

    One process does it. Frozen parameters are in neither: they come from the foundations.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(destination, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(destination),
        num_extract_workers=1,  # more would fork this process, which has threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # an entry about layouts of pipelines that plain engines do not write
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    (destination.parent / "latest_universal").unlink(missing_ok=True)


def load_universal(engine: Any, folder: Path, name: str) -> bool:
    """Load a universal checkpoint into an engine that was made with `universal=True`."""
    rates = [group["base_lr"] for group in engine.optimizer.param_groups]
    found, _ = engine.load_checkpoint(str(folder), tag=name, load_module_strict=False)
    # Under ZeRO 3 DeepSpeed gives all groups the settings of the first, and all weights one tensor that counts the
    # steps, which each group's turn would then move on.
    for group, rate in zip(engine.optimizer.param_groups, rates):
        group["base_lr"] = rate
    for state in engine.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    return found is not None


def put_trained_state(engine: Any, weights: dict[str, Tensor]) -> None:
    """Put trained weights, whole, into the model; the optimizer is left behind. Every rank calls this."""
    import deepspeed

    model: EmoLLMBase = engine.module
    parameters = [(name, p) for name, p in model.named_parameters() if name in model.trained_names()]

    def put() -> None:
        for name, parameter in parameters:
            parameter.data.copy_(weights[name])

    if engine.zero_optimization_stage() < 3:
        put()
        return
    with deepspeed.zero.GatheredParameters([p for _, p in parameters], modifier_rank=0):
        if dist.get_rank() == 0:
            put()
