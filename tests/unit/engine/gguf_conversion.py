"""What llama.cpp's converter makes of families: settings and tensors, for tiny models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.model_files import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Tensors = Iterator[tuple[str, torch.Tensor]]


def unchanged(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    yield name, weight


def with_whole_norms(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    yield name, weight + 1 if name.endswith("norm.weight") else weight


def with_pairs_together(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    """Of queries and keys the two numbers of a rotated pair side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((count for part, count in heads.items() if part in name), None)
    if count is not None:
        weight = weight.view(count, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    yield name, weight


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One family.

    Attributes:
        model_type: Transformers' name.
        settings: Settings beside those that every file has, by their name after the architecture's.
        overrides: Of the tiny model's configuration.
        convert: See ``write_gguf``.
        leave_out: See ``write_gguf``.
        more: See ``write_gguf``.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[str, torch.Tensor, Any], Tensors] = unchanged
    leave_out: tuple[str, ...] = ()
    more: dict[str, torch.Tensor] = field(default_factory=dict)


def _gemma(**overrides: Any) -> dict[str, Any]:
    return {"tie_word_embeddings": True, **overrides}


_GEMMA2 = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "sliding_window": 9}
_GEMMA3 = {
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
    "num_hidden_layers": 12,
    "initializer_range": 0.2,
    "sliding_window": 9,
    "query_pre_attn_scalar": 8,
}
_GEMMA3_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

_SHORT, _LONG = [1.0, 1.25, 2.0], [2.0, 4.0, 8.0]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": _SHORT,
    "long_factor": _LONG,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
}
# The square root of 1 + log(256 / 64) / log(64), of the whole context and the original one.
_LONGROPE_SCALE = 1.1547005383792515

CONVERSIONS = {
    "phi3:long": Conversion(
        model_type="phi3",
        settings={
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": _LONGROPE_SCALE,
            "attention.sliding_window": 0,
        },
        overrides={"rope_parameters": _LONGROPE, "original_max_position_embeddings": 64},
        more={"rope_factors_long.weight": torch.tensor(_LONG), "rope_factors_short.weight": torch.tensor(_SHORT)},
    ),
    "gemma": Conversion(model_type="gemma", overrides=_gemma(hidden_act="gelu_pytorch_tanh"), convert=with_whole_norms),
    "gemma2": Conversion(
        model_type="gemma2",
        settings={
            "attention.sliding_window": 9,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 7.0,
        },
        overrides=_gemma(**_GEMMA2, query_pre_attn_scalar=8, attn_logit_softcapping=5.0, final_logit_softcapping=7.0),
        convert=with_whole_norms,
    ),
    "gemma2:27b": Conversion(
        model_type="gemma2",
        settings={"attention.sliding_window": 9, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0},
        overrides=_gemma(
            num_hidden_layers=46,
            layer_types=["sliding_attention", "full_attention"] * 23,
            sliding_window=9,
            head_dim=16,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=7.0,
        ),
        convert=with_whole_norms,
    ),
    "gemma3": Conversion(
        model_type="gemma3_text",
        settings={
            "attention.sliding_window": 9,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        overrides=_gemma(
            **_GEMMA3,
            rope_parameters={
                **_GEMMA3_ROPE,
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        ),
        convert=with_whole_norms,
    ),
    "smollm3": Conversion(
        model_type="smollm3",
        overrides={"num_hidden_layers": 5, "no_rope_layer_interval": 4, "rope_theta": 10000.0},
        convert=with_pairs_together,
    ),
    "granite": Conversion(
        model_type="granite",
        settings={
            "attention.scale": 0.3,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 8.0,
        },
        overrides={
            "attention_multiplier": 0.3,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        convert=with_pairs_together,
    ),
    "olmo2": Conversion(model_type="olmo2"),
}


def write_converted(path: Path, architecture: str, **more: Any) -> Any:
    """A tiny model's file; returns the model.

    Args:
        path: Where to.
        architecture: A key of ``CONVERSIONS``.
        more: Further arguments of ``write_gguf``, whose settings and overrides count before the conversion's.
    """
    own = CONVERSIONS[architecture]
    settings = {**own.settings, **more.pop("settings", {})}
    leave_out = (*own.leave_out, *more.pop("leave_out", ()))
    return write_gguf(
        path,
        architecture.partition(":")[0],
        settings,
        model_type=own.model_type,
        convert=own.convert,
        leave_out=leave_out,
        more=own.more,
        **{**own.overrides, **more},
    )
