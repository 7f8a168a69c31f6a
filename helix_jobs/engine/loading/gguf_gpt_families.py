"""Architectures of GGUF files in the succession of GPT: layer norms, biases, queries, keys and values in one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_dense_families import GPT2, GPT2_OUTER
from helix_jobs.engine.loading.gguf_family import ATTENTION, NO_HEAD_SETTINGS, NORMS, ROTARY, SPLIT, GgufFamily, of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.gguf_family import Source
    from helix_jobs.engine.loading.gguf_file import GgufFile

# Of Falcons with a norm for attention and another one for the feed-forward.
SECOND_NORM: Final = "blk.0.attn_norm_2.weight"
# Layers of GPT-NeoX 20B, whose activation is another one than that of Pythia and its kin. Files do not state it.
_LAYERS_OF_NEOX_20B: Final = 44
# Of every StarCoder 2, and of no file of one.
_STARCODER2_WINDOW: Final = 4096
_WINDOW: Final = "attention.sliding_window"
_FEED_FORWARD: Final = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
_LAYER_NORM: Final = "attention.layer_norm_epsilon"


def _grouped(module: str) -> Mapping[str, Source]:
    return {f"{module}.{kind}": of(f"attn_qkv.{kind}", form="grouped") for kind in ("weight", "bias")}


def _neox_activation(gguf: GgufFile) -> dict[str, Any]:
    return {"hidden_act": "gelu_fast" if gguf.num_layers == _LAYERS_OF_NEOX_20B else "gelu"}


def _starcoder2_window(gguf: GgufFile) -> dict[str, Any]:
    return {"sliding_window": gguf.settings.get(_WINDOW) or _STARCODER2_WINDOW}


def _falcon_heads(gguf: GgufFile) -> dict[str, Any]:
    return {"num_kv_heads": gguf.num_kv_heads}


_FALCON: Final = GgufFamily(
    model_type="falcon",
    modules={**_FEED_FORWARD, "attn_norm": "input_layernorm", "attn_output": "self_attention.dense"},
    parameters=_grouped("self_attention.query_key_value"),
    outer={"token_embd": "word_embeddings", "output_norm": "ln_f", "output": "lm_head"},
    layers="h",
    settings={"feed_forward_length": "ffn_hidden_size"},
    constants={"alibi": False, "parallel_attn": True, "new_decoder_architecture": False, "multi_query": True},
    made=_falcon_heads,
    epsilon=(_LAYER_NORM, "layer_norm_epsilon"),
    lacks=NO_HEAD_SETTINGS,
    present={"bias": "self_attention.dense.bias"},
)
# Falcon 40B and 180B.
FALCON_WITH_TWO_NORMS: Final = replace(
    _FALCON,
    modules={**_FALCON.modules, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"},
    constants={**_FALCON.constants, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
)
# Falcon 11B. Its rotary positions have a base of their own, which llama.cpp's converter leaves out.
FALCON_WITH_GROUPS: Final = replace(
    _FALCON,
    constants={**_FALCON.constants, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    needs_base=True,
)

GPT_FAMILIES: Final = {
    "starcoder": GgufFamily(
        model_type="gpt_bigcode",
        modules=GPT2,
        outer=GPT2_OUTER,
        layers="h",
        settings={"feed_forward_length": "n_inner"},
        constants={"multi_query": True},
        epsilon=(_LAYER_NORM, "layer_norm_epsilon"),
        lacks=NO_HEAD_SETTINGS | {ROTARY},
    ),
    "starcoder2": GgufFamily(
        model_type="starcoder2",
        modules={**NORMS, **ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        made=_starcoder2_window,
        epsilon=(_LAYER_NORM, "norm_epsilon"),
        window="all",
        present={"use_bias": "self_attn.q_proj.bias"},
    ),
    "gptneox": GgufFamily(
        model_type="gpt_neox",
        modules={
            **_FEED_FORWARD,
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_output": "attention.dense",
        },
        parameters=_grouped("attention.query_key_value"),
        outer={"token_embd": "embed_in", "output_norm": "final_layer_norm", "output": "lm_head"},
        settings={"use_parallel_residual": "use_parallel_residual"},
        made=_neox_activation,
        epsilon=(_LAYER_NORM, "layer_norm_eps"),
        rotates_part=True,
        present={"attention_bias": "attention.dense.bias"},
    ),
    "falcon": _FALCON,
    "phi2": GgufFamily(
        model_type="phi",
        modules={
            **ATTENTION,
            "attn_norm": "input_layernorm",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        parameters=SPLIT,
        outer={"token_embd": "embed_tokens", "output_norm": "final_layernorm", "output": "lm_head"},
        epsilon=(_LAYER_NORM, "layer_norm_eps"),
        rotates_part=True,
    ),
}
