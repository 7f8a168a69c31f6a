"""Architectures of GGUF files with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_dense_families import (
    GRANITE_SCALES,
    HUNYUAN_NORMS,
    LFM2,
    LFM2_CONV,
    LFM2_OUTER,
    LFM2_WIDTH,
    layers_with_attention,
)
from helix_jobs.engine.loading.gguf_family import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_NORMS,
    LLAMA,
    NORMS,
    PAIRS,
    GgufFamily,
    of,
    stacks,
)

if TYPE_CHECKING:
    from helix_jobs.engine.loading.gguf_file import GgufFile

WIDTH: Final = "expert_feed_forward_length"
SHARED_WIDTH: Final = "expert_shared_feed_forward_length"
# llama.cpp's numbers of a softmax over all logits, and of one over the chosen ones.
_SOFTMAX: Final = {"expert_gating_func": (0, 1)}
COUNTS: Final = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_LOCAL_COUNTS: Final = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
EVERY_LAYER: Final = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_SPARSE: Final = {**LLAMA, "ffn_gate_inp": "mlp.gate"}
NORMALISED: Final = {**_SOFTMAX, "expert_weights_norm": (True,)}
_NOT_NORMALISED: Final = {**_SOFTMAX, "expert_weights_norm": (False,)}
SHARED_EXPERT: Final = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_GATE: Final = {"mlp.shared_expert_gate.weight": of("ffn_gate_inp_shexp.weight", form="row")}
SHARED_EXPERTS: Final = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
CORRECTION: Final = {"mlp.gate.e_score_correction_bias": of("exp_probs_b.bias")}
DEEPSEEK: Final = {
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    WIDTH: "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
}
GROUPS: Final = {"expert_group_count": "n_group", "expert_group_used_count": "topk_group"}
_GRANITE: Final = {
    **NORMS,
    **ATTENTION,
    "ffn_gate_inp": "block_sparse_moe.router",
    "ffn_down_shexp": "shared_mlp.output_linear",
}


def _has_head_bias(gguf: GgufFile) -> dict[str, Any]:
    return {"lm_head_bias": "lm_head.bias" in gguf.tensors}


MIXTRAL: Final = GgufFamily(
    model_type="mixtral",
    modules=_SPARSE,
    parameters=stacks("mlp"),
    permuted=PAIRS,
    settings=_LOCAL_COUNTS,
    optional={WIDTH: "intermediate_size"},
    neutral=NORMALISED,
    has_frequencies=True,
    is_sparse=True,
)

EXPERT_FAMILIES: Final = {
    "qwen2moe": GgufFamily(
        model_type="qwen2_moe",
        modules={
            **_SPARSE,
            **SHARED_EXPERT,
        },
        parameters={
            **stacks("mlp"),
            **SHARED_GATE,
        },
        settings={**COUNTS, WIDTH: "moe_intermediate_size", SHARED_WIDTH: "shared_expert_intermediate_size"},
        constants={**EVERY_LAYER, "norm_topk_prob": False},
        neutral=_NOT_NORMALISED,
        is_sparse=True,
    ),
    "qwen3moe": GgufFamily(
        model_type="qwen3_moe",
        modules={**_SPARSE, **HEAD_NORMS},
        parameters=stacks("mlp"),
        settings={**COUNTS, WIDTH: "moe_intermediate_size"},
        constants={**EVERY_LAYER, "norm_topk_prob": True},
        neutral=NORMALISED,
        is_sparse=True,
    ),
    "olmoe": GgufFamily(
        model_type="olmoe",
        modules={**_SPARSE, **HEAD_NORMS},
        parameters=stacks("mlp"),
        settings=COUNTS,
        optional={WIDTH: "intermediate_size"},
        constants={"norm_topk_prob": False},
        neutral=_NOT_NORMALISED,
        is_sparse=True,
    ),
    "gpt-oss": GgufFamily(
        model_type="gpt_oss",
        modules={
            **ATTENTION,
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
        },
        parameters={
            "self_attn.sinks": of("attn_sinks.weight"),
            "mlp.experts.gate_up_proj": of("ffn_gate_exps.weight", "ffn_up_exps.weight", form="paired"),
            "mlp.experts.gate_up_proj_bias": of("ffn_gate_exps.bias", "ffn_up_exps.bias", form="paired"),
            "mlp.experts.down_proj": of("ffn_down_exps.weight", form="flipped"),
            "mlp.experts.down_proj_bias": of("ffn_down_exps.bias", form="flipped"),
        },
        settings={**_LOCAL_COUNTS, WIDTH: "intermediate_size"},
        neutral={"expert_gating_func": (0, 3)},
        window=2,
        scalings=frozenset({"yarn"}),
        rope={"truncate": False},
        is_sparse=True,
    ),
    "granitemoe": GgufFamily(
        model_type="granitemoe",
        modules=_GRANITE,
        parameters=stacks("block_sparse_moe"),
        permuted=PAIRS,
        settings={**GRANITE_SCALES, **_LOCAL_COUNTS},
        neutral=NORMALISED,
        is_sparse=True,
    ),
    "glm4moe": GgufFamily(
        model_type="glm4_moe",
        modules={
            **ATTENTION,
            **HEAD_NORMS,
            **FEED_FORWARD,
            **SHARED_EXPERTS,
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.gate",
        },
        parameters={**stacks("mlp"), **CORRECTION},
        settings=DEEPSEEK,
        optional=GROUPS,
        constants={"n_group": 1, "topk_group": 1},
        neutral={"expert_gating_func": (2,)},
        rotates_part=True,
        is_sparse=True,
        present={"attention_bias": "self_attn.q_proj.bias", "use_qk_norm": "self_attn.q_norm.weight"},
        has_draft_layers=True,
    ),
    "dots1": GgufFamily(
        model_type="dots1",
        modules={**_SPARSE, **HEAD_NORMS, **SHARED_EXPERTS},
        parameters={**stacks("mlp"), **CORRECTION},
        settings=DEEPSEEK,
        optional=GROUPS,
        constants={"n_group": 1, "topk_group": 1},
        neutral={"expert_gating_func": (0, 2)},
        is_sparse=True,
    ),
    "minimax-m2": GgufFamily(
        model_type="minimax_m2",
        modules={**_SPARSE, **HEAD_NORMS},
        parameters={**stacks("mlp"), "mlp.e_score_correction_bias": of("exp_probs_b.bias")},
        settings={**_LOCAL_COUNTS, WIDTH: "intermediate_size"},
        neutral={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        rotates_part=True,
        is_sparse=True,
    ),
    "ernie4_5-moe": GgufFamily(
        model_type="ernie4_5_moe",
        modules={**_SPARSE, **SHARED_EXPERTS},
        parameters={
            **stacks("mlp"),
            "mlp.gate.moe_statics.e_score_correction_bias": of("exp_probs_b.bias", form="row"),
        },
        settings={
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            WIDTH: "moe_intermediate_size",
            "expert_shared_count": "moe_num_shared_experts",
            "leading_dense_block_count": "moe_layer_start_index",
            "interleave_moe_layer_step": "moe_layer_interval",
        },
        neutral=NORMALISED,
        is_sparse=True,
    ),
    "hunyuan-moe": GgufFamily(
        model_type="hunyuan_v1_moe",
        modules={
            **LLAMA,
            **HUNYUAN_NORMS,
            "ffn_gate_inp": "mlp.gate.wg",
            **{tensor: module.replace("experts", "mlp") for tensor, module in SHARED_EXPERTS.items()},
        },
        parameters=stacks("mlp"),
        settings={"expert_count": "num_experts", "expert_used_count": "moe_topk"},
        optional={WIDTH: "intermediate_size"},
        neutral={**NORMALISED, "expert_shared_count": (1,)},
        is_sparse=True,
    ),
    "phimoe": GgufFamily(
        model_type="phimoe",
        modules={**LLAMA, "ffn_gate_inp": "mlp.router"},
        parameters=stacks("mlp"),
        settings=_LOCAL_COUNTS,
        constants={"router_jitter_noise": 0.01},
        made=_has_head_bias,
        neutral={"expert_gating_func": (0,)},
        window="all",
        scalings=frozenset({"longrope"}),
        # Phi-3.5-MoE's own; llama.cpp's converter reckons another factor from the lengths of the contexts.
        rope={"short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122},
        is_sparse=True,
        present={"attention_bias": "self_attn.q_proj.bias"},
    ),
    "exaone-moe": GgufFamily(
        model_type="exaone_moe",
        modules={**_SPARSE, **HEAD_NORMS, **SHARED_EXPERTS},
        parameters={**stacks("mlp"), **CORRECTION},
        settings={
            **COUNTS,
            WIDTH: "moe_intermediate_size",
            "expert_shared_count": "num_shared_experts",
            "leading_dense_block_count": "first_k_dense_replace",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
        },
        optional=GROUPS,
        constants={"n_group": 1, "topk_group": 1},
        neutral={"expert_gating_func": (2,)},
        window=4,
        has_frequencies=True,
        is_sparse=True,
        has_draft_layers=True,
    ),
    "afmoe": GgufFamily(
        model_type="afmoe",
        modules={
            **ATTENTION,
            **HEAD_NORMS,
            **FEED_FORWARD,
            **SHARED_EXPERTS,
            "attn_gate": "self_attn.gate_proj",
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
        },
        parameters={**stacks("mlp"), "mlp.expert_bias": of("exp_probs_b.bias")},
        settings={
            **COUNTS,
            WIDTH: "moe_intermediate_size",
            "expert_shared_count": "num_shared_experts",
            "leading_dense_block_count": "num_dense_layers",
            "expert_weights_scale": "route_scale",
        },
        constants={"mup_enabled": True},
        neutral={"expert_gating_func": (0, 2), "expert_weights_norm": (True,)},
        window=4,
        is_sparse=True,
    ),
    "lfm2moe": GgufFamily(
        model_type="lfm2_moe",
        modules={
            **LFM2,
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
            "ffn_gate_inp": "feed_forward.gate",
        },
        parameters={
            **LFM2_CONV,
            **stacks("feed_forward"),
            "feed_forward.expert_bias": of("exp_probs_b.bias"),
        },
        outer=LFM2_OUTER,
        settings={
            **LFM2_WIDTH,
            **COUNTS,
            WIDTH: "moe_intermediate_size",
            "leading_dense_block_count": "num_dense_layers",
        },
        constants={"use_expert_bias": True, "norm_topk_prob": True},
        made=layers_with_attention,
        neutral={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        epsilon=("attention.layer_norm_rms_epsilon", "norm_eps"),
        is_sparse=True,
        by_layer=frozenset({"attention.head_count_kv"}),
    ),
}
# The language model of one that also reads images.
EXPERT_FAMILIES_OF_TOWERS: Final = {"qwen3vlmoe": EXPERT_FAMILIES["qwen3moe"]}
GRANITE_WITH_SHARED: Final = replace(
    EXPERT_FAMILIES["granitemoe"],
    model_type="granitemoeshared",
    parameters={
        **stacks("block_sparse_moe"),
        "shared_mlp.input_linear.weight": of("ffn_gate_shexp.weight", "ffn_up_shexp.weight", form="rows"),
    },
    settings={**GRANITE_SCALES, **_LOCAL_COUNTS, SHARED_WIDTH: "shared_intermediate_size"},
)
