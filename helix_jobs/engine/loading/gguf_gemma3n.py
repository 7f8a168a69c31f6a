"""Gemma 3n in GGUF files: the projections between residual streams in one tensor, and sparse gates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_family import (
    LAYER_INPUTS_OUTER,
    OUTER,
    WITH_LAYER_INPUTS,
    GgufFamily,
    of,
)
from helix_jobs.engine.loading.gguf_settings import SPARSITY, by_layer

if TYPE_CHECKING:
    from helix_jobs.engine.loading.gguf_file import GgufFile

_WIDTH: Final = "feed_forward_length"
# Shares of gates are stated to so many decimals; a file has a bound of each that follows from it.
_DECIMALS: Final = 6


def _settings(gguf: GgufFile) -> dict[str, Any]:
    settings, tensors = gguf.settings, gguf.tensors
    # [rank, hidden_size], [tokens, layers * width]; where they are missing, the layout is refused
    left, table = (
        tensors.get(name) for name in ("layers.0.laurel.linear_left.weight", "embed_tokens_per_layer.weight")
    )
    return {
        "intermediate_size": by_layer(settings[_WIDTH], gguf.num_layers),
        "activation_sparsity_pattern": [_share(bound) for bound in settings[SPARSITY][: gguf.num_layers]],
        "altup_correct_scale": "layers.0.altup.correct_output_scale" in tensors,
        "laurel_rank": 1 if left is None else left.shape[0],
        "vocab_size_per_layer_input": 1 if table is None else table.shape[0],
    }


def _share(bound: float) -> float:
    """The share of gates that lie below a bound, which is in standard deviations from their mean."""
    return round((1 + math.erf(bound / math.sqrt(2))) / 2, _DECIMALS)


GEMMA3N: Final = GgufFamily(
    model_type="gemma3n_text",
    modules={
        **WITH_LAYER_INPUTS,
        "altup_router": "altup.modality_router",
        "altup_router_norm": "altup.router_norm",
        "altup_predict_coef": "altup.prediction_coefs",
        "altup_correct_coef": "altup.correction_coefs",
        "laurel_l": "laurel.linear_left",
        "laurel_r": "laurel.linear_right",
        "laurel_post_norm": "laurel.post_laurel_norm",
    },
    parameters={"altup.correct_output_scale": of("altup_correct_scale.weight")},
    outer={**OUTER, **LAYER_INPUTS_OUTER},
    stacked={"altup_proj": "altup_projections", "altup_unembd_proj": "altup_unembed_projections"},
    decoded=frozenset({"per_layer_token_embd"}),
    settings={
        "altup.active_idx": "altup_active_idx",
        "altup.num_inputs": "altup_num_inputs",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    },
    # llama.cpp has this bound where a file has none.
    constants={"final_logit_softcapping": 30.0},
    optional={"final_logit_softcapping": "final_logit_softcapping"},
    made=_settings,
    read_by_made=frozenset({SPARSITY}),
    window=5,
    local_theta=10000.0,
    by_kind=frozenset({_WIDTH}),
)
