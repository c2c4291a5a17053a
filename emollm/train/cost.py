"""What a picture and a sample cost in arithmetic: vision tower, projector, MVP and language model, each for itself.

FLOPs are the multiplications and additions of matrix products and convolutions, two for each weight and row, as
`torch.utils.flop_counter` counts them; what works element by element (norms, activations, the sums of the patch graph)
is left out, and attention counts the full square, causal or not.

A training step costs, in forwards: 3 for weights that learn (forward, gradient of the input, gradient of the weight), 2
for frozen weights that the gradient goes through, 1 for frozen weights before the first that learns; 3 for attention,
whose inputs both want a gradient (arXiv 2001.08361, 2.1). Activation checkpointing adds a forward of the language model.

Shape suffixes as in `model.projector`: P patches of a picture, D width of the tower, M visual tokens, L language width, C
inner width of MVP, K content queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emollm.config import TrainRecipe
from emollm.model.families import Size
from emollm.model.projector import patch_graph

# Words of a sample in tokens, where a cost is told for "a sample": question, options, text and answer.
WORDS = 128
# Of these, those that carry loss: the head of the language model runs on them alone.
SUPERVISED = 4


class Shape(NamedTuple):
    """One picture: `rows` tokens of the tower (P and a class token, if it has one), P patches, M visual tokens."""

    rows: int
    patches: int
    visual: int


class Cost(NamedTuple):
    """FLOPs of one forward: `tower`, `projector` (the foundation's own, or the scene) and `mvp` of a picture, `language` of
    a sample with one picture and WORDS tokens of words."""

    tower: float
    projector: float
    mvp: float
    language: float

    @property
    def total(self) -> float:
        return sum(self)


def forward(model: Any, recipe: TrainRecipe, words: int = WORDS, supervised: int = SUPERVISED) -> Cost:
    """The cost of a forward over a picture and `words` tokens of words; `model` may be on the meta device."""
    shape = picture_shape(model, recipe)
    return Cost(
        tower_flops(model, shape),
        2.0 * shape.visual * _weights(_scene(model)),
        mvp_flops(model, shape),
        language_flops(model, shape.visual + words, supervised),
    )


def training(model: Any, recipe: TrainRecipe, words: int = WORDS, supervised: int = SUPERVISED) -> Cost:
    """The cost of a training step over the same sample, by the rule above."""
    once = forward(model, recipe, words, supervised)
    scene_learns = bool(model.trained_names() & _names(model, _scene(model)))
    attention = attention_flops(model, picture_shape(model, recipe).visual + words)
    learns = 1.0 if recipe.full_language else _lora_share(model)
    language = (2.0 + learns) * (once.language - attention) + 3.0 * attention
    again = once.language if recipe.tune.activation_checkpointing else 0.0
    return Cost(
        once.tower,
        # Nothing before MVP learns, so a frozen projector beside it is not gone through backwards.
        once.projector * (3.0 if scene_learns else 1.0),
        once.mvp * 3.0,
        language + again,
    )


def picture_shape(model: Any, recipe: TrainRecipe) -> Shape:
    """The shape of a square picture of the largest size that the recipe takes."""
    if recipe.foundation.family == "attached":
        own = model.config.foundation()
        family, vision = model.family, own.vision_config
        side = recipe.foundation.max_side_px or 448 if own.model_type == "qwen2_5_vl" else vision.image_size
        patches = (side // vision.patch_size) ** 2
        if own.model_type == "qwen2_5_vl":
            _, rows, columns = family.grid(Size(0, side, side))
            patches = rows * columns
            visual = patches // family.merge**2
        else:
            # The tokens that come out of the projector; OneVision's new line is no picture's.
            visual = patches // getattr(own, "scale_factor", 1) ** 2
        kind = vision.model_type
    else:
        vision = model.config.vision_config
        patches = (recipe.foundation.image_size // vision.patch_size) ** 2
        visual, kind = recipe.mvp.tokens_per_image, vision.model_type
    has_class_token = kind in ("clip_vision_model", "dinov2")
    return Shape(patches + has_class_token, patches, visual)


def tower_flops(model: Any, shape: Shape) -> float:
    """A forward of the vision tower over one picture; Qwen2.5-VL's attention sees its windows, but for a few layers."""
    tower = tower_of(model)
    config = tower.config
    skipped = {id(p) for part in _beside(tower) for p in part.parameters()}
    embedding = sum(
        m.weight.numel()
        for m in tower.modules()
        if isinstance(m, nn.Conv2d | nn.Conv3d) and id(m.weight) not in skipped
    )
    linear = sum(
        m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear) and id(m.weight) not in skipped
    )
    layers = getattr(config, "num_hidden_layers", None) or config.depth
    seen = [float(shape.rows)] * layers
    if hasattr(config, "fullatt_block_indexes"):
        window = (config.window_size // config.patch_size) ** 2
        seen = [
            float(shape.rows) if layer in config.fullatt_block_indexes else float(min(window, shape.rows))
            for layer in range(layers)
        ]
    attention = sum(4.0 * shape.rows * keys * config.hidden_size for keys in seen)
    pooling = 0.0
    if (head := getattr(tower, "head", None)) is not None and hasattr(
        head, "attention"
    ):  # SigLIP's, one query
        width = config.hidden_size
        pooling = (
            4.0 * shape.rows * width**2 + 4.0 * width**2 + 4.0 * shape.rows * width + 2.0 * _weights(head.mlp)
        )
    return 2.0 * (shape.patches * embedding + shape.rows * linear) + attention + pooling


def mvp_flops(model: Any, shape: Shape) -> float:
    """A forward of MVP's own perspectives over one picture, without the scene."""
    mvp = model.projector
    patches, total = shape.patches, 0.0
    if mvp.content is not None:
        queries, width = mvp.content.queries_KC.shape
        found = 2.0 * queries * mvp.content.return_kv.weight.numel()
        attention = 2 * 4.0 * patches * queries * width  # to the patches, and back
        own = mvp.content.gather_kv.weight.numel() + mvp.content.return_q.weight.numel()
        total += 2.0 * patches * own + found + attention + 2.0 * shape.visual * mvp.content_out.weight.numel()
    if mvp.relation is not None:
        own = mvp.relation.receive.weight.numel() + mvp.relation.send.weight.numel()
        nearest = 2.0 * patches**2 * mvp.relation.send.in_features if mvp.neighbours else 0.0
        total += 2.0 * patches * own + nearest + 2.0 * shape.visual * mvp.relation_out.weight.numel()
    if (time_out := getattr(mvp, "time_out", None)) is not None:
        total += 2.0 * shape.visual * time_out.weight.numel()
    return total


def language_flops(model: Any, tokens: int, supervised: int) -> float:
    """A forward of the language model over a sequence, its head on the supervised tokens alone."""
    head = model.get_output_embeddings().weight.numel()
    layers = 2.0 * tokens * _weights(model.get_decoder())
    return layers + attention_flops(model, tokens) + 2.0 * supervised * head


def attention_flops(model: Any, tokens: int) -> float:
    """Of a forward of the language model: scores and their sums, which have no weights."""
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 4.0 * tokens**2 * text.num_attention_heads * head_dim * text.num_hidden_layers


def kept_bytes(model: Any, shape: Shape, width: int) -> float:
    """Bytes that MVP's own perspectives keep for the backward pass of one picture; 0 where both are switched off.

    Measured on a model of the meta device. `width` is that of an element, 2 in bf16 and 4 in float32; indices and masks
    have their own.
    """
    mvp = model.projector
    if mvp.content is None and mvp.relation is None:
        return 0.0
    vision = (mvp.content or mvp.relation).norm.normalized_shape[0]
    seen: dict[int, float] = {}
    weights = {p.untyped_storage()._cdata for p in mvp.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            storage = tensor.untyped_storage()
            element = width if tensor.is_floating_point() else tensor.element_size()
            seen[storage._cdata] = storage.nbytes() / tensor.element_size() * element
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no storage's address is used twice
    patches_NPD = torch.empty(1, shape.patches, vision, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if mvp.content is not None:
            mvp.content_out(mvp.content(patches_NPD))
        if mvp.relation is not None:
            rows, columns = _sides(shape.patches)
            edges = patch_graph(patches_NPD, mvp.neighbours, grid=(rows, columns))
            mvp.relation_out(mvp.relation(patches_NPD, edges))
    return sum(seen.values())


def _sides(patches: int) -> tuple[int, int]:
    rows = int(patches**0.5)
    while patches % rows:
        rows -= 1
    return rows, patches // rows


def tower_of(model: Any) -> Any:
    """The vision tower, of either family."""
    if hasattr(model, "vision_tower"):
        return model.vision_tower
    inner = model.foundation.model
    return next(
        getattr(inner, name) for name in ("vision_tower", "visual", "vision_model") if hasattr(inner, name)
    )


def _beside(tower: Any) -> list[nn.Module]:
    """What lies in the tower and is counted elsewhere: Qwen's merger (with MVP around it), SigLIP's pooling head."""
    return [part for name in ("merger", "head") if (part := getattr(tower, name, None)) is not None]


def _scene(model: Any) -> nn.Module:
    scene: nn.Module = model.projector.scene
    return scene


def _names(model: nn.Module, part: nn.Module) -> set[str]:
    own = {id(p) for p in part.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in own}


def _weights(part: nn.Module) -> int:
    """Numbers in the matrices of a part that every row goes through."""
    return sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Linear))


def _lora_share(model: Any) -> float:
    """LoRA's part of the weights of the language model's layers: these learn, the others are gone through."""
    parts: Iterable[tuple[str, nn.Module]] = model.get_decoder().named_modules()
    lora = sum(m.weight.numel() for name, m in parts if ".lora_" in name and isinstance(m, nn.Linear))
    return lora / max(1, _weights(model.get_decoder()))
