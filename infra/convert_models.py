"""Turns the packaged model files of the quickstart into plain transformers folders, once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

_CHANNEL_MEAN, _CHANNEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as DINOv2 was trained


def gguf_to_transformers(gguf: Path, folder: Path) -> None:
    """Dequantise a Llama-architecture GGUF file into a bf16 safetensors folder with its tokenizer.

    transformers reads the GGUF but leaves a quantisation config that `save_pretrained` refuses, so the weights move
    into a plain model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"{gguf}: holds a {config.model_type} model, expected llama")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config).bfloat16()
    model.load_state_dict(source.state_dict(), strict=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def onnx_to_dinov2(onnx_bytes: bytes, folder: Path) -> None:
    """Rebuild the DINOv2 ViT-S/14 backbone from an ONNX graph that kept the Hugging Face tensor names.

    Linear weights were renamed `onnx::MatMul_N` and transposed by the exporter: they are found through the name of the
    node that uses them. `mask_token`, which the graph does not need, is zero. Raises ValueError where the graph does
    not hold every other tensor.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save_file
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    graph = onnx.load_from_string(onnx_bytes).graph
    tensors = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    state = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors and node.name.startswith("/backbone/"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            state[name] = tensors[node.input[1]].T
    # Two tensors lost their names: the class token's position (1, 1, 384) and the 37×37 grid's (1, 1369, 384).
    (class_position,) = [
        value for name, value in tensors.items() if value.shape == (1, 1, 384) and "::" in name
    ]
    (grid_positions,) = [value for value in tensors.values() if value.shape == (1, 37 * 37, 384)]
    state["embeddings.position_embeddings"] = np.concatenate([class_position, grid_positions], axis=1)
    state["embeddings.mask_token"] = np.zeros((1, 384), dtype=np.float32)
    # The names are those of published DINOv2 checkpoints, so transformers' own loader maps them to its classes.
    with tempfile.TemporaryDirectory() as published:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in state.items()},
            f"{published}/model.safetensors",
        )
        config.save_pretrained(published)
        loaded: Any = Dinov2Model.from_pretrained(published, output_loading_info=True)
        model, found = loaded
    wrong = {
        kind: sorted(found[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if found[kind]
    }
    if wrong:
        raise ValueError(f"the ONNX graph does not hold DINOv2-S/14 as transformers names it: {wrong}")
    model.save_pretrained(folder)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=list(_CHANNEL_MEAN),
        image_std=list(_CHANNEL_STD),
    )
    processor.save_pretrained(folder)
