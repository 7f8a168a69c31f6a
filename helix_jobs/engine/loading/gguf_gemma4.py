"""Gemma 4 in GGUF files: heads of two sizes, feed-forwards of two widths, and experts in some of its models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_family import (
    LAYER_INPUTS_OUTER,
    OUTER,
    WITH_LAYER_INPUTS,
    GgufFamily,
    of,
)
from helix_jobs.engine.loading.gguf_settings import PATTERN, by_layer

if TYPE_CHECKING:
    from helix_jobs.engine.loading.gguf_file import GgufFile

_KEY_HEADS: Final = "attention.head_count_kv"
_WIDTH: Final = "feed_forward_length"


def _settings(gguf: GgufFile) -> dict[str, Any]:
    """Of layers with a window, of the others, and of the last ones, which read the keys of others."""
    settings = gguf.settings
    local, full = (settings[PATTERN].index(has_window) for has_window in (True, False))
    heads, widths = (by_layer(settings[key], gguf.num_layers) for key in (_KEY_HEADS, _WIDTH))
    return {
        "num_key_value_heads": heads[local],
        "num_global_key_value_heads": heads[full],
        "attention_k_eq_v": f"layers.{full}.self_attn.v_proj.weight" not in gguf.tensors,
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] != widths[0],
        "vocab_size_per_layer_input": gguf.tensors["embed_tokens.weight"].shape[0],
    }


GEMMA4: Final = GgufFamily(
    model_type="gemma4_text",
    modules={
        **WITH_LAYER_INPUTS,
        "ffn_gate_inp": "router.proj",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
    },
    parameters={
        "layer_scalar": of("layer_output_scale.weight"),
        "router.scale": of("ffn_gate_inp.scale"),
        "router.per_expert_scale": of("ffn_down_exps.scale"),
        "experts.gate_up_proj": of("ffn_gate_up_exps.weight", form="stack"),
        "experts.down_proj": of("ffn_down_exps.weight", form="stack"),
    },
    outer={**OUTER, **LAYER_INPUTS_OUTER},
    decoded=frozenset({"per_layer_token_embd"}),
    settings={
        "attention.key_length": "global_head_dim",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    },
    optional={"final_logit_softcapping": "final_logit_softcapping"},
    made=_settings,
    read_by_made=frozenset({PATTERN, "attention.key_length_swa"}),
    window=6,
    local_theta=10000.0,
    has_frequencies="proportional",
    local="_swa",
    by_kind=frozenset({_KEY_HEADS, _WIDTH}),
)
GEMMA4_WITH_EXPERTS: Final = replace(
    GEMMA4,
    settings={
        **GEMMA4.settings,
        "expert_count": "num_experts",
        "expert_used_count": "top_k_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    constants={"enable_moe_block": True},
    neutral={"expert_gating_func": (0, 1), "expert_weights_norm": (True,)},
    is_sparse=True,
)
