"""Architectures of GGUF files with latent attention: DeepSeek V2 and V3, and those that compute the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_expert_families import CORRECTION, DEEPSEEK, GROUPS, SHARED_EXPERTS
from helix_jobs.engine.loading.gguf_family import FEED_FORWARD, NORMS, GgufFamily, of, stacks

if TYPE_CHECKING:
    from helix_jobs.engine.loading.gguf_file import GgufFile

# Files have the slope of YaRN's temperature for a depth of one within it.
_SLOPE: Final = 0.1
_KEYS, _VALUES, _ROTATED = "attention.key_length_mla", "attention.value_length_mla", "rope.dimension_count"


def _widths(gguf: GgufFile) -> dict[str, Any]:
    """Widths of a head. The file's own key head is the latent one, and transformers counts those made of it."""
    settings = gguf.settings
    heads, rotated = settings["attention.head_count"], settings[_ROTATED]
    return {
        "num_key_value_heads": heads,
        "head_dim": rotated,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": settings[_KEYS] - rotated,
        "v_head_dim": settings[_VALUES],
    }


def _widths_and_method(gguf: GgufFile) -> dict[str, Any]:
    has_groups = gguf.settings.get("expert_group_count", 0) > 1
    return {**_widths(gguf), "topk_method": "group_limited_greedy" if has_groups else "greedy"}


_EXPERTS: Final = {key: theirs for key, theirs in DEEPSEEK.items() if key != "expert_weights_norm"}


def _minicpm3_widths(gguf: GgufFile) -> dict[str, Any]:
    """Widths of a head; that of its values follows from the matrix that makes keys and values."""
    heads, rotated, keys = gguf.settings["attention.head_count"], gguf.settings[_ROTATED], gguf.head_dim
    made = gguf.tensors.get("layers.0.self_attn.kv_b_proj.weight")
    rows = 0 if made is None else made.shape[0]
    return {
        "num_key_value_heads": heads,
        "head_dim": rotated,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys - rotated,
        "v_head_dim": rows // heads - (keys - rotated),
    }


_LATENT: Final = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
}
DEEPSEEK_V2: Final = GgufFamily(
    model_type="deepseek_v2",
    modules={
        **NORMS,
        **FEED_FORWARD,
        **SHARED_EXPERTS,
        **_LATENT,
        "attn_q": "self_attn.q_proj",
        "ffn_gate_inp": "mlp.gate",
    },
    parameters={
        **stacks("mlp"),
        "self_attn.kv_b_proj.weight": of("attn_k_b.weight", "attn_v_b.weight", form="latent"),
    },
    settings={**_EXPERTS, "attention.kv_lora_rank": "kv_lora_rank"},
    optional={**GROUPS, "attention.q_lora_rank": "q_lora_rank"},
    constants={"q_lora_rank": None, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    made=_widths_and_method,
    read_by_made=frozenset({_KEYS, _VALUES, _ROTATED}),
    neutral={"expert_gating_func": (0, 1), "expert_weights_norm": (False,)},
    scalings=frozenset({"yarn"}),
    depth_slope=_SLOPE,
    is_sparse=True,
    is_latent=True,
)
DEEPSEEK_V3: Final = replace(
    DEEPSEEK_V2,
    model_type="deepseek_v3",
    parameters={**DEEPSEEK_V2.parameters, **CORRECTION},
    constants={"q_lora_rank": None, "norm_topk_prob": False, "n_group": 1, "topk_group": 1, "rope_interleave": True},
    optional={**DEEPSEEK_V2.optional, "expert_weights_norm": "norm_topk_prob"},
    made=_widths,
    neutral={"expert_gating_func": (2,)},
    has_draft_layers=True,
)
# llama.cpp knows the factors of embeddings, residuals and logits by heart, and files do not state them.
MINICPM3: Final = GgufFamily(
    model_type="minicpm3",
    modules={**NORMS, **FEED_FORWARD, **_LATENT, "attn_kv_b": "self_attn.kv_b_proj"},
    settings={"attention.kv_lora_rank": "kv_lora_rank"},
    optional={"attention.q_lora_rank": "q_lora_rank"},
    constants={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    made=_minicpm3_widths,
    read_by_made=frozenset({"attention.key_length", _ROTATED}),
    scalings=frozenset({"longrope"}),
    states_original=False,
    is_latent=True,
)
