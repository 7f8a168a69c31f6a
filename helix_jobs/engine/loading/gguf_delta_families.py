"""Architectures of GGUF files with the gated delta rule: Qwen3-Next and Qwen 3.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_expert_families import (
    COUNTS,
    EVERY_LAYER,
    NORMALISED,
    SHARED_EXPERT,
    SHARED_GATE,
    SHARED_WIDTH,
    WIDTH,
)
from helix_jobs.engine.loading.gguf_family import ATTENTION, FEED_FORWARD, HEAD_NORMS, GgufFamily, of, stacks
from helix_jobs.engine.model.families.settings import FULL

if TYPE_CHECKING:
    from helix_jobs.engine.loading.gguf_file import GgufFile

_INTERVAL: Final = "full_attention_interval"


def _layers(gguf: GgufFile) -> dict[str, Any]:
    """Every n-th layer has full attention. The width of a value head is that of all of them by their number."""
    settings = gguf.settings
    interval = settings.get(_INTERVAL) or 4
    return {
        "layer_types": ["linear_attention" if (index + 1) % interval else FULL for index in range(gguf.num_layers)],
        "linear_value_head_dim": settings["ssm.inner_size"] // settings["ssm.time_step_rank"],
    }


_MODULES: Final = {
    **ATTENTION,
    **HEAD_NORMS,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ssm_norm": "linear_attn.norm",
}
_HEADS: Final = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
_QWEN35: Final = {
    "linear_attn.in_proj_qkv.weight": of("attn_qkv.weight", tiling="rows"),
    "linear_attn.in_proj_z.weight": of("attn_gate.weight", tiling="rows"),
    "linear_attn.in_proj_b.weight": of("ssm_beta.weight", tiling="rows"),
    "linear_attn.in_proj_a.weight": of("ssm_alpha.weight", tiling="rows"),
    "linear_attn.conv1d.weight": of("ssm_conv1d.weight", form="conv", tiling="rows"),
    "linear_attn.A_log": of("ssm_a", form="exponential", tiling="rows"),
    "linear_attn.dt_bias": of("ssm_dt.bias", tiling="rows"),
    "linear_attn.out_proj.weight": of("ssm_out.weight", tiling="columns"),
}
_EXPERTS: Final = {**COUNTS, WIDTH: "moe_intermediate_size", SHARED_WIDTH: "shared_expert_intermediate_size"}

DELTA_FAMILIES: Final = {
    "qwen3next": GgufFamily(
        model_type="qwen3_next",
        modules={
            **_MODULES,
            **SHARED_EXPERT,
            "ssm_in": "linear_attn.in_proj_qkvz",  # of files that were made at first
            "ssm_ba": "linear_attn.in_proj_ba",
            "ssm_out": "linear_attn.out_proj",
            "ffn_gate_inp": "mlp.gate",
        },
        parameters={
            **stacks("mlp"),
            **SHARED_GATE,
            "linear_attn.in_proj_qkvz.weight": of("attn_qkv.weight", "attn_gate.weight", form="delta"),
            "linear_attn.conv1d.weight": of("ssm_conv1d.weight", form="conv"),
            "linear_attn.A_log": of("ssm_a", form="exponential"),
            "linear_attn.dt_bias": of("ssm_dt.bias"),
        },
        settings={**_HEADS, **_EXPERTS},
        optional={_INTERVAL: _INTERVAL},
        constants={**EVERY_LAYER, "norm_topk_prob": True},
        made=_layers,
        read_by_made=frozenset({"ssm.inner_size"}),
        neutral=NORMALISED,
        rotates_part=True,
        is_sparse=True,
        has_draft_layers=True,
    ),
    "qwen35": GgufFamily(
        model_type="qwen3_5_text",
        modules={**_MODULES, **FEED_FORWARD},
        parameters=_QWEN35,
        settings=_HEADS,
        optional={_INTERVAL: _INTERVAL},
        made=_layers,
        read_by_made=frozenset({"ssm.inner_size"}),
        rotates_part=True,
        has_draft_layers=True,
    ),
    "qwen35moe": GgufFamily(
        model_type="qwen3_5_moe_text",
        modules={**_MODULES, **SHARED_EXPERT, "ffn_gate_inp": "mlp.gate"},
        parameters={**_QWEN35, **stacks("mlp"), **SHARED_GATE},
        settings={**_HEADS, **_EXPERTS},
        optional={_INTERVAL: _INTERVAL},
        made=_layers,
        read_by_made=frozenset({"ssm.inner_size"}),
        neutral=NORMALISED,
        rotates_part=True,
        is_sparse=True,
        has_draft_layers=True,
    ),
}
