"""Architectures of GGUF files with Mamba-2: Granite 4 hybrids, Falcon-H1 and Nemotron-H."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_dense_families import GRANITE_SCALES
from helix_jobs.engine.loading.gguf_expert_families import NORMALISED, SHARED_WIDTH, WIDTH
from helix_jobs.engine.loading.gguf_family import ATTENTION, NORMS, PAIRS, GgufFamily, of, stacks
from helix_jobs.engine.loading.gguf_settings import KEY_HEADS, by_layer
from helix_jobs.engine.model.families.settings import FULL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.gguf_family import Source
    from helix_jobs.engine.loading.gguf_file import GgufFile

_LINEAR: Final = "linear_attention"
_HEADS, _INNER, _WIDTHS = "ssm.time_step_rank", "ssm.inner_size", "feed_forward_length"
_SIZES: Final = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    _HEADS: "mamba_n_heads",
}
_MADE: Final = frozenset({_INNER, _HEADS})
_BY_LAYER: Final = frozenset({KEY_HEADS})


def _modules(module: str) -> dict[str, str]:
    return {"ssm_in": f"{module}.in_proj", "ssm_out": f"{module}.out_proj", "ssm_conv1d": f"{module}.conv1d"}


def _parameters(module: str) -> dict[str, Source]:
    """What the converter gives another shape: a number of each head stands in a row of its own."""
    return {
        f"{module}.conv1d.weight": of("ssm_conv1d.weight", form="conv"),
        f"{module}.A_log": of("ssm_a", form="exponential"),
        f"{module}.D": of("ssm_d", form="flat"),
        f"{module}.dt_bias": of("ssm_dt.bias"),
        f"{module}.norm.weight": of("ssm_norm.weight", form="flat"),
    }


def _width(settings: Mapping[str, Any]) -> int:
    """Of a head."""
    return int(settings[_INNER] // settings[_HEADS])


def _granite(gguf: GgufFile) -> dict[str, Any]:
    """Layers without keys have Mamba-2."""
    heads = by_layer(gguf.settings[KEY_HEADS], gguf.num_layers)
    return {
        "layer_types": [FULL if count else _LINEAR for count in heads],
        "mamba_d_head": _width(gguf.settings),
        "mamba_expand": gguf.settings[_INNER] // gguf.settings["embedding_length"],
        "shared_intermediate_size": gguf.settings.get(SHARED_WIDTH) or gguf.settings[_WIDTHS],
    }


def _falcon(gguf: GgufFile) -> dict[str, Any]:
    """Factors are multiplied into the weights of the file."""
    return {"mamba_d_head": _width(gguf.settings), "mamba_d_ssm": gguf.settings[_INNER]}


def _nemotron(gguf: GgufFile) -> dict[str, Any]:
    """Layers with keys have attention, those with a width a feed-forward or experts, the others Mamba-2."""
    settings = gguf.settings
    heads, widths = (by_layer(settings[key], gguf.num_layers) for key in (KEY_HEADS, _WIDTHS))
    wide = "moe" if settings.get("expert_count") else "mlp"
    return {
        "layers_block_type": [
            FULL if keys else wide if width else _LINEAR for keys, width in zip(heads, widths, strict=True)
        ],
        "mamba_head_dim": _width(settings),
        "intermediate_size": max(widths),
    }


_GRANITE: Final = GgufFamily(
    model_type="granitemoehybrid",
    modules={**NORMS, **ATTENTION, **_modules("mamba"), "ffn_down": "shared_mlp.output_linear"},
    parameters={
        **_parameters("mamba"),
        "shared_mlp.input_linear.weight": of("ffn_gate.weight", "ffn_up.weight", form="rows"),
    },
    permuted=PAIRS,
    settings={**GRANITE_SCALES, **_SIZES},
    constants={"num_local_experts": 0, "position_embedding_type": None},
    made=_granite,
    read_by_made=_MADE | {KEY_HEADS},
    # Bamba's files say granitehybrid, too, and that they are rotated.
    neutral={"rope.scaling.finetuned": (False,)},
    by_layer=_BY_LAYER,
)
GRANITE_HYBRID_WITH_EXPERTS: Final = replace(
    _GRANITE,
    modules={
        **NORMS,
        **ATTENTION,
        **_modules("mamba"),
        "ffn_gate_inp": "block_sparse_moe.router",
        "ffn_down_shexp": "shared_mlp.output_linear",
    },
    parameters={
        **_parameters("mamba"),
        **stacks("block_sparse_moe"),
        "shared_mlp.input_linear.weight": of("ffn_gate_shexp.weight", "ffn_up_shexp.weight", form="rows"),
    },
    settings={
        **_GRANITE.settings,
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        SHARED_WIDTH: "shared_intermediate_size",
    },
    constants={"position_embedding_type": None},
    neutral={**_GRANITE.neutral, **NORMALISED},
    is_sparse=True,
)
_NEMOTRON: Final = GgufFamily(
    model_type="nemotron_h",
    modules={
        "attn_norm": "norm",
        "attn_q": "mixer.q_proj",
        "attn_k": "mixer.k_proj",
        "attn_v": "mixer.v_proj",
        "attn_output": "mixer.o_proj",
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        **_modules("mixer"),
    },
    parameters=_parameters("mixer"),
    outer={"token_embd": "embeddings", "output_norm": "norm_f", "output": "lm_head"},
    permuted=PAIRS,
    settings={
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.group_count": "n_groups",
        _HEADS: "mamba_num_heads",
    },
    made=_nemotron,
    read_by_made=_MADE | {KEY_HEADS},
    epsilon=("attention.layer_norm_rms_epsilon", "layer_norm_epsilon"),
    by_layer=frozenset({KEY_HEADS, _WIDTHS}),
)

MAMBA_FAMILIES: Final = {
    "granitehybrid": _GRANITE,
    "falcon-h1": GgufFamily(
        model_type="falcon_h1",
        modules={
            **ATTENTION,
            **_modules("mamba"),
            "attn_norm": "input_layernorm",
            "ffn_norm": "pre_ff_layernorm",  # of files that name it as all others do
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
        },
        parameters={**_parameters("mamba"), "pre_ff_layernorm.weight": of("ffn_norm")},
        outer={"token_embd": "embed_tokens", "output_norm": "final_layernorm", "output": "lm_head"},
        settings=_SIZES,
        # llama.cpp's converter leaves out the factor of a head that is the embedding.
        constants={"mamba_norm_before_gate": False, "tie_word_embeddings": False},
        made=_falcon,
        read_by_made=_MADE,
        present={"mamba_rms_norm": "mamba.norm.weight"},
    ),
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": replace(
        _NEMOTRON,
        modules={
            **_NEMOTRON.modules,
            "ffn_gate_inp": "mixer.gate",
            "ffn_up_shexp": "mixer.shared_experts.up_proj",
            "ffn_down_shexp": "mixer.shared_experts.down_proj",
        },
        parameters={
            **_NEMOTRON.parameters,
            "mixer.experts.up_proj": of("ffn_up_exps.weight", form="stack"),
            "mixer.experts.down_proj": of("ffn_down_exps.weight", form="stack"),
            "mixer.gate.e_score_correction_bias": of("exp_probs_b.bias"),
        },
        settings={
            **_NEMOTRON.settings,
            "expert_count": "n_routed_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_count": "n_shared_experts",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
            WIDTH: "moe_intermediate_size",
            SHARED_WIDTH: "moe_shared_expert_intermediate_size",
        },
        constants={"n_group": 1, "topk_group": 1},
        neutral={"expert_gating_func": (0, 2)},
        is_sparse=True,
        has_draft_layers=True,
    ),
}
