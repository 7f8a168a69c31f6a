"""Architectures of GGUF files with experts."""

from __future__ import annotations

from typing import Final

from helix_jobs.engine.loading.gguf_family import (
    HEAD_NORMS,
    LLAMA,
    PAIRS,
    GgufFamily,
    of,
    stacks,
)

_WIDTH: Final = "expert_feed_forward_length"
_SHARED_WIDTH: Final = "expert_shared_feed_forward_length"
# llama.cpp's numbers of a softmax over all logits, and of one over the chosen ones.
_SOFTMAX: Final = {"expert_gating_func": (0, 1)}
_COUNTS: Final = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_LOCAL_COUNTS: Final = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_EVERY_LAYER: Final = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_SPARSE: Final = {**LLAMA, "ffn_gate_inp": "mlp.gate"}
_NORMALISED: Final = {**_SOFTMAX, "expert_weights_norm": (True,)}
_NOT_NORMALISED: Final = {**_SOFTMAX, "expert_weights_norm": (False,)}

MIXTRAL: Final = GgufFamily(
    model_type="mixtral",
    modules=_SPARSE,
    parameters=stacks("mlp"),
    permuted=PAIRS,
    settings=_LOCAL_COUNTS,
    optional={_WIDTH: "intermediate_size"},
    neutral=_NORMALISED,
    has_frequencies=True,
    is_sparse=True,
)

EXPERT_FAMILIES: Final = {
    "qwen2moe": GgufFamily(
        model_type="qwen2_moe",
        modules={
            **_SPARSE,
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        },
        parameters={
            **stacks("mlp"),
            "mlp.shared_expert_gate.weight": of("ffn_gate_inp_shexp.weight", form="row"),
        },
        settings={**_COUNTS, _WIDTH: "moe_intermediate_size", _SHARED_WIDTH: "shared_expert_intermediate_size"},
        constants={**_EVERY_LAYER, "norm_topk_prob": False},
        neutral=_NOT_NORMALISED,
        is_sparse=True,
    ),
    "qwen3moe": GgufFamily(
        model_type="qwen3_moe",
        modules={**_SPARSE, **HEAD_NORMS},
        parameters=stacks("mlp"),
        settings={**_COUNTS, _WIDTH: "moe_intermediate_size"},
        constants={**_EVERY_LAYER, "norm_topk_prob": True},
        neutral=_NORMALISED,
        is_sparse=True,
    ),
    "olmoe": GgufFamily(
        model_type="olmoe",
        modules={**_SPARSE, **HEAD_NORMS},
        parameters=stacks("mlp"),
        settings=_COUNTS,
        optional={_WIDTH: "intermediate_size"},
        constants={"norm_topk_prob": False},
        neutral=_NOT_NORMALISED,
        is_sparse=True,
    ),
}
