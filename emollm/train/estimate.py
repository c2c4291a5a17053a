"""What a training would take: rows, steps, parameters, arithmetic, memory, and which ZeRO stage fits. No weights are loaded.

Parameters are counted on a model of the recipe's real classes whose tensors hold no data (torch's meta device).

Memory of one worker, in bytes a parameter (DeepSpeed ZeRO, arXiv 1910.02054, table 1), for a world of W workers:
  weights    bf16 2, fp32 4; stage 3 divides all of them by W
  gradients  as the weights, of trained parameters; stages 2 and 3 divide by W
  optimizer  AdamW's two float32 moments 8, and 4 for the float32 copy (that of bf16 weights, or ZeRO's own); stages 1
             to 3 divide by W
and activations of one micro-batch: with checkpointing one (tokens × hidden) tensor a layer and one layer in full, else
all layers in full (34 bytes a token and hidden unit in bf16, arXiv 2205.05198, formula 2, without the attention scores
that SDPA does not keep; twice that in float32).

Arithmetic is counted in `cost`, which says what a FLOP is here and what a training step costs in forwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import storage
from dataset_build.progress import data_size
from emollm.config import TrainRecipe
from emollm.data.index import outline
from emollm.data.plan import epoch_rows
from emollm.train.run import chosen_folds

if TYPE_CHECKING:
    from emollm.train.cost import Cost, Shape

_GIB = 2**30
# What of a GPU's memory a plan may use; the rest is for CUDA's context, NCCL and fragmentation.
_USABLE = 0.9
_GPUS = (24, 40, 80)


class Size(NamedTuple):
    """Parameters by what happens to them, of MVP's own perspectives and of the projector beside them, and the language
    model's layers and width."""

    trained: int
    frozen: int
    mvp: int
    projector: int
    layers: int
    hidden: int

    @property
    def total(self) -> int:
        return self.trained + self.frozen


class Plan(NamedTuple):
    """What is known of a recipe's model without its weights. `kept_bytes`: what MVP keeps of a picture for the backward
    pass."""

    size: Size
    shape: Shape
    forward: Cost
    training: Cost
    kept_bytes: float


class Memory(NamedTuple):
    """GiB of one worker."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def describe(recipe: TrainRecipe, made: Plan | None = None) -> str:
    """What a training of this recipe would do and take. Loads no weights and starts nothing. `made`: from `plan`."""
    lines = [f"recipe {recipe.name}: {recipe.data} -> {recipe.out}", *_rows(recipe)]
    made = made or plan(recipe)
    size = made.size
    lines += [
        f"parameters: {_millions(size.trained)} trained, {_millions(size.frozen)} frozen; MVP's own perspectives have "
        f"{_millions(size.mvp)} ({size.mvp / size.total:.2%}), the projector beside them {_millions(size.projector)}",
        *_cost_lines(recipe, made),
        *_memory_lines(recipe, made),
    ]
    return "\n".join(lines)


def plan(recipe: TrainRecipe) -> Plan:
    """Parameters and cost of the recipe's model, which is made without its weights."""
    import torch

    from emollm.train import cost

    with torch.device("meta"):
        model = _model(recipe)
    model.freeze_foundations()
    model.tie_weights()
    text = model.config.get_text_config()
    scene = {id(p): p.numel() for p in model.projector.scene.parameters()}
    everything = {id(p): p.numel() for p in model.projector.parameters()}
    projector = sum(scene.values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    size = Size(
        trained,
        total - trained,
        sum(everything.values()) - projector,
        projector,
        text.num_hidden_layers,
        text.hidden_size,
    )
    shape = cost.picture_shape(model, recipe)
    return Plan(
        size,
        shape,
        cost.forward(model, recipe),
        cost.training(model, recipe),
        cost.kept_bytes(model, shape, _width(recipe)),
    )


def memory(recipe: TrainRecipe, size: Size, stage: int, workers: int) -> Memory:
    """GiB of one of `workers` workers at a ZeRO stage; what is offloaded to the CPU does not count."""
    settings, tune = recipe.deepspeed, recipe.tune
    width = _width(recipe)
    weights = width * size.total / (workers if stage == 3 else 1)
    gradients = width * size.trained / (workers if stage >= 2 else 1)
    copies = 12 if stage or settings.precision == "bf16" else 8
    optimizer = copies * size.trained / (workers if stage else 1)
    if settings.offload_parameters and stage == 3:
        weights = 0.0
    if settings.offload_optimizer and stage:
        optimizer = 0.0
    tokens = tune.pack_tokens if tune.packing else tune.micro_batch * tune.pack_tokens
    layer = 34.0 * (width / 2) * tokens * size.hidden
    kept = width * tokens * size.hidden * size.layers
    activations = layer + kept if tune.activation_checkpointing else layer * size.layers
    return Memory(*(part / _GIB for part in (weights, gradients, optimizer, activations)))


def advised_stage(recipe: TrainRecipe, size: Size, gib: float, workers: int) -> int | None:
    """The lowest ZeRO stage (it communicates least) whose memory fits a GPU of so many GiB; None where none does."""
    fitting = [stage for stage in (0, 1, 2, 3) if memory(recipe, size, stage, workers).total <= _USABLE * gib]
    return fitting[0] if fitting else None


def _rows(recipe: TrainRecipe) -> list[str]:
    if not storage.exists(storage.join(recipe.data, "manifest.json")):
        return [
            f"data: {recipe.data} holds no finished EmoBench yet, so rows and steps are not known; build it first"
        ]
    lines = []
    index = outline(recipe.data)
    for fold in chosen_folds(recipe, index):
        keys = index.of_fold(fold).keys
        rows = epoch_rows(keys, recipe.mix, recipe.seed, 0)
        taken = {key: sum(1 for number in rows if keys[number] == key) for key in sorted(set(keys))}
        steps = -(-len(rows) // recipe.tune.batch_size) * recipe.tune.epochs
        detail = ", ".join(f"{key} {number} of {keys.count(key)}" for key, number in taken.items())
        lines.append(
            f"fold {fold}: {len(rows)} rows an epoch ({detail}); {steps} steps of {recipe.tune.batch_size}"
        )
    return lines


def _cost_lines(recipe: TrainRecipe, made: Plan) -> list[str]:
    from emollm.train.cost import SUPERVISED, WORDS

    once, step = made.forward, made.training
    tower = "once a picture, its features are kept" if _tower_once(recipe) else "every time"
    return [
        f"a picture ({made.shape.patches} patches, {made.shape.visual} visual tokens), forward: tower {_flops(once.tower)} "
        f"({tower}), projector {_flops(once.projector)}, MVP {_flops(once.mvp)} (its perspectives, "
        f"{once.mvp / (once.tower + once.projector):.1%} of tower and projector)",
        f"a sample (that picture and {WORDS} tokens of words, {SUPERVISED} with loss), training step: "
        f"{_flops(step.total)}, of which the language model {_flops(step.language)}, MVP {_flops(step.mvp)} "
        f"({step.mvp / step.total:.2%}); forward alone {_flops(once.total)}",
    ]


def _tower_once(recipe: TrainRecipe) -> bool:
    return recipe.foundation.family == "composed" and recipe.tune.cache_gib > 0


def _flops(number: float) -> str:
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} FLOP"


def _width(recipe: TrainRecipe) -> int:
    """Bytes of a weight or an activation."""
    return 2 if recipe.deepspeed.precision == "bf16" else 4


def _memory_lines(recipe: TrainRecipe, made: Plan) -> list[str]:
    stage, workers, size = recipe.deepspeed.stage, recipe.workers.count, made.size
    own = memory(recipe, size, stage, workers)
    mvp = memory(recipe, size._replace(trained=size.mvp, frozen=0), stage, workers)
    cache = f", and {recipe.tune.cache_gib:g} GiB of features kept" if recipe.tune.cache_gib else ""
    lines = [
        f"memory per worker: about {own.total:.1f} GiB (ZeRO {stage}, {recipe.deepspeed.precision}, {workers} workers: "
        f"weights {own.weights:.1f}, gradients {own.gradients:.1f}, optimizer {own.optimizer:.1f}, "
        f"activations {own.activations:.1f}){cache}",
        f"of this MVP's own perspectives: {data_size(2**30 * (mvp.total - mvp.activations))} of weights, gradients and "
        f"optimizer; {data_size(made.kept_bytes)} a picture are kept for the backward pass besides",
    ]
    if not recipe.workers.gpus:
        return lines
    for gib in _GPUS:
        fitting = [(gpus, advised_stage(recipe, size, gib, gpus)) for gpus in (1, 2, 4, 8, 16)]
        fewest = next(((gpus, found) for gpus, found in fitting if found is not None), None)
        here = advised_stage(recipe, size, gib, workers)
        lines.append(
            f"GPUs of {gib} GiB: "
            + (
                f"at least {fewest[0]} (ZeRO {fewest[1]})"
                if fewest
                else "more than 16, or offload the optimizer"
            )
            + (f"; with {workers} workers ZeRO {here} is enough" if here is not None else "")
        )
    return lines


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters < 1e9 else f"{parameters / 1e9:.2f} B"


def _model(recipe: TrainRecipe) -> Any:
    """The recipe's model, made from configs alone on the current device."""
    from emollm.model.published import planning_config

    lora = recipe.lora.model_dump(mode="json") if recipe.lora else None
    if recipe.foundation.family == "attached":
        from emollm.model.attached_model import AttachedConfig, AttachedEmoLLM

        return AttachedEmoLLM(
            AttachedConfig(
                foundation_config=planning_config(recipe.foundation.mllm, "foundation MLLM").to_dict(),
                mvp=recipe.mvp.model_dump(),
                lora=lora,
                full_language=recipe.full_language,
                max_side_px=recipe.foundation.max_side_px,
            )
        )
    from emollm.model.emollm import EmoLLM, EmoLLMConfig

    vision = planning_config(recipe.foundation.vision, "vision tower")
    audio = recipe.foundation.audio
    return EmoLLM(
        EmoLLMConfig(
            vision_config=getattr(vision, "vision_config", vision),
            text_config=planning_config(recipe.foundation.language, "language model"),
            mvp=recipe.mvp.model_dump(),
            lora=lora,
            image_size=recipe.foundation.image_size,
            audio_config=planning_config(audio, "audio encoder").to_diff_dict() if audio else None,
        )
    )
