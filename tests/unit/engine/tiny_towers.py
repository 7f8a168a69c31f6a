"""Tiny random models that also read images, around a language model of a served family."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.unit.engine.tiny_models import roughen, tiny_config

TRANSFORMER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
VISION: dict[str, dict[str, Any]] = {
    "mistral3": {**TRANSFORMER, "model_type": "pixtral", "head_dim": 8},
    "gemma3": {**TRANSFORMER, "model_type": "siglip_vision_model"},
    "gemma3n": {
        "model_type": "gemma3n_vision",
        "hidden_size": 16,
        "vocab_size": 8,
        "vocab_offset": 35,
        "architecture": "mobilenetv3_small_050",
    },
    "gemma4": {
        **{key: value for key, value in TRANSFORMER.items() if key != "image_size"},
        "model_type": "gemma4_vision",
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "llava": {**TRANSFORMER, "model_type": "clip_vision_model", "projection_dim": 16},
    "llava_next": {**TRANSFORMER, "model_type": "clip_vision_model", "projection_dim": 16},
    "vipllava": {**TRANSFORMER, "model_type": "clip_vision_model", "projection_dim": 16},
    "llava_onevision": {**TRANSFORMER, "model_type": "siglip_vision_model"},
    "lfm2_vl": {
        **{key: value for key, value in TRANSFORMER.items() if key != "image_size"},
        "model_type": "siglip2_vision_model",
        "num_patches": 16,
    },
    "internvl": {**TRANSFORMER, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]},
    "idefics3": {**TRANSFORMER, "model_type": "idefics3_vision"},
    "smolvlm": {**TRANSFORMER, "model_type": "smolvlm_vision"},
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2},
    "qwen2_5_vl": {**QWEN_VISION, "fullatt_block_indexes": [0]},
    "qwen3_5": {**QWEN_VISION, "num_position_embeddings": 16},
    "qwen3_5_moe": {**QWEN_VISION, "num_position_embeddings": 16},
    "qwen3_vl_moe": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    "qwen3_vl": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
}


def tiny_tower(outer: str, inner: str, settings: dict[str, Any]) -> Any:
    text = {**tiny_config(inner).to_dict(), **settings}
    text.pop("architectures", None)
    if outer.startswith("qwen"):
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        if outer.startswith("qwen3_5"):
            rope |= {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0], "mrope_interleaved": True}
        text |= {"model_type": f"{outer}_text", "rope_parameters": rope}
    image = {"image_token_id": 1} if outer.startswith(("qwen", "gemma4")) else {"image_token_index": 1}
    tied = settings.get("tie_word_embeddings", outer in {"mistral3", "gemma3", "gemma4"})
    config = AutoConfig.for_model(
        outer, text_config=text, vision_config=VISION[outer], tie_word_embeddings=tied, **image
    )
    torch.manual_seed(3)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return roughen(model.eval().requires_grad_(requires_grad=False))
