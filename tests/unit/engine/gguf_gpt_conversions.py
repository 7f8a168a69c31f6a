"""What llama.cpp's converter makes of tiny models in the succession of GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.gguf_conversion_base import HALF, Conversion

if TYPE_CHECKING:
    from tests.unit.engine.gguf_converters import Tensors


def _part_by_part(weight: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """All queries, all keys, all values of a weight or bias that has them group by group."""
    share = heads // kv_heads
    groups = weight.view(kv_heads, share + 2, -1, *weight.shape[1:])
    parts = groups.split((share, 1, 1), dim=1)
    return torch.cat([part.reshape(-1, *weight.shape[1:]) for part in parts])


def falcon(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if "query_key_value" in name:
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
        weight = _part_by_part(weight, config.num_attention_heads, kv_heads)
    yield name, weight


def gptneox(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if "query_key_value" in name:
        weight = _part_by_part(weight, config.num_attention_heads, config.num_attention_heads)
    yield name, weight


class InOne:
    """Files made of older checkpoints of a family, which have queries, keys and values in one tensor."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, torch.Tensor]] = []

    def __call__(self, name: str, weight: torch.Tensor, _config: Any) -> Tensors:
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            yield name, weight
            return
        self._parts.append((name, weight))
        if len(self._parts) == 6:  # weights and biases of a layer
            layer = f"blk.{name.split('.')[2]}"
            for kind in ("weight", "bias"):
                own = [part for theirs, part in self._parts if theirs.endswith(kind)]
                yield f"{layer}.attn_qkv.{kind}", torch.cat(own)
            self._parts.clear()


_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_RMS = "attention.layer_norm_rms_epsilon"
_BASE, _ROTATED, _KEYS, _WIDTH = (
    "rope.freq_base",
    "rope.dimension_count",
    "attention.head_count_kv",
    "attention.key_length",
)
_PHI = {"settings": {**_LAYER_NORM, _ROTATED: 8}, "overrides": {"rope_parameters": HALF}, "leave_out": (_RMS, _BASE)}
_GLM = {
    "model_type": "glm",
    "settings": {_ROTATED: 8},
    "overrides": {"attention_bias": True, "rope_parameters": HALF},
    "leave_out": (_WIDTH,),
}
_QUARTER = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
_NEOX = {
    "model_type": "gpt_neox",
    "convert": gptneox,
    "leave_out": (_RMS, _BASE, _KEYS, _WIDTH),
}
_NEOX_OVERRIDES = {"num_key_value_heads": 4, "rope_parameters": _QUARTER}
_FALCON = {"model_type": "falcon", "convert": falcon}
_FALCON_SETTINGS = {**_LAYER_NORM, "tensor_data_layout": "jploski"}
_FALCON_GROUPS = {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96}

GPT_CONVERSIONS = {
    "starcoder": Conversion(
        model_type="gpt_bigcode",
        settings={**_LAYER_NORM, _KEYS: 1},
        overrides={"n_inner": 96, "n_head": 4},
        leave_out=(_RMS, _BASE, _ROTATED, _WIDTH),
    ),
    "starcoder2": Conversion(
        model_type="starcoder2",
        settings=_LAYER_NORM,
        overrides={"sliding_window": 4096},
        leave_out=(_RMS, _WIDTH, _ROTATED),
    ),
    "starcoder2:windows": Conversion(
        model_type="starcoder2",
        settings={**_LAYER_NORM, "attention.sliding_window": 9},
        overrides={"sliding_window": 9},
        leave_out=(_RMS,),
    ),
    "gptneox": Conversion(
        **_NEOX,
        settings={**_LAYER_NORM, _ROTATED: 4, "use_parallel_residual": True},
        overrides=_NEOX_OVERRIDES,
    ),
    "gptneox:20b": Conversion(
        **_NEOX,
        settings={**_LAYER_NORM, _ROTATED: 4, "use_parallel_residual": False},
        overrides={
            **_NEOX_OVERRIDES,
            "use_parallel_residual": False,
            "num_hidden_layers": 44,
            "hidden_act": "gelu_fast",
        },
    ),
    "falcon": Conversion(
        **_FALCON,
        settings={**_FALCON_SETTINGS, _KEYS: 1},
        overrides={"ffn_hidden_size": 96},
        leave_out=(_RMS, _BASE, _ROTATED, _WIDTH),
    ),
    "falcon:40b": Conversion(
        **_FALCON,
        settings={**_FALCON_SETTINGS, _KEYS: 2},
        overrides={**_FALCON_GROUPS, "bias": True},
        leave_out=(_RMS, _BASE, _ROTATED, _WIDTH),
    ),
    "falcon:11b": Conversion(
        **_FALCON,
        settings={**_FALCON_SETTINGS, _KEYS: 2, _BASE: 500.0},
        overrides={
            **_FALCON_GROUPS,
            "num_ln_in_parallel_attn": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        leave_out=(_RMS, _ROTATED, _WIDTH),
    ),
    "phi2": Conversion(model_type="phi", **_PHI),
    "phi2:in one": Conversion(model_type="phi", convert=InOne(), **_PHI),
    "chatglm": Conversion(**_GLM),
    "chatglm:in one": Conversion(convert=InOne(), **_GLM),
}
