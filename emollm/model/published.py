"""Sizes of published foundations, so that a recipe can be planned where the hub cannot be asked.

Only the numbers that decide parameters and memory, as in the `config.json` of each model's page on the hub. Training
always reads the foundation's own files.
"""

from __future__ import annotations

from typing import Any

_VICUNA_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
_CLIP_L_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": _VICUNA_7B,
    "openai/clip-vit-large-patch14-336": _CLIP_L_336,
    "openai/whisper-small": {
        "model_type": "whisper", "d_model": 768, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "num_mel_bins": 80, "vocab_size": 51865,
    },
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava", "image_token_id": 32000, "vision_feature_layer": -2,
        "text_config": {**_VICUNA_7B, "vocab_size": 32064}, "vision_config": _CLIP_L_336,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl", "image_token_id": 151655, "video_token_id": 151656,
        "tie_word_embeddings": False,
        "text_config": {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000,
            "tie_word_embeddings": False,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": {
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 3, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49280,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        },
        "vision_config": {"model_type": "smolvlm_vision", **_SIGLIP_SO400M},
    },
}  # fmt: skip


def planning_config(path: str, role: str) -> Any:
    """The config of a foundation for planning: the published sizes of a hub name listed here, else its own files."""
    from transformers import AutoConfig

    from emollm.model.foundations import read_config

    if path not in PUBLISHED:
        return read_config(path, role)
    values = dict(PUBLISHED[path])
    return AutoConfig.for_model(values.pop("model_type"), **values)
