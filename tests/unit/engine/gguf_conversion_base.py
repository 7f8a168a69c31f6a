"""Conversion: what llama.cpp's converter makes of a tiny model of one family; and settings that several share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.gguf_converters import unchanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.engine.gguf_converters import Tensors


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
        stated: See ``write_gguf``.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[str, torch.Tensor, Any], Tensors] = unchanged
    leave_out: tuple[str, ...] = ()
    more: dict[str, torch.Tensor] = field(default_factory=dict)
    stated: Callable[[Any], dict[str, Any]] = lambda _: {}


GEMMA4 = {
    "attention.sliding_window": 9,
    "attention.sliding_window_pattern": [True, False, True, False],
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1000000.0,
    "rope.freq_base_swa": 500.0,
    "final_logit_softcapping": 7.0,
}
GEMMA4_OVERRIDES = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "initializer_range": 0.2,
    "sliding_window": 9,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 260,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 7.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
}
GEMMA4_FREQUENCIES = {"rope_freqs.weight": torch.tensor([1.0] * 4 + [1e30] * 12)}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
YARN_SETTINGS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GRANITE_SETTINGS = {"attention.scale": 0.3, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
# Each key head has three value heads.
DELTA = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 96,
    "full_attention_interval": 4,
    "rope.dimension_count": 8,
}
DELTA_OVERRIDES = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "head_dim": 16,
    "rope_parameters": HALF,
}
