"""Every optional field of the description changes what a model computes: one that changes nothing tests nothing."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.attention.backend import LayerAttention
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.decoder import Decoder, DecoderLayer
from tests.unit.engine.model.family_cases import Case, error, prompts
from tests.unit.engine.tiny_models import copy_of, decoder_logits

if TYPE_CHECKING:
    from collections.abc import Callable

# Field -> a model that uses it.
ATTENTION = {
    "query_norm": Case("qwen3"),
    "key_norm": Case("qwen3"),
    "norm_scope": Case("hunyuan_v1_dense"),
    "rotary": Case("llama"),
    "window": Case("mistral", {"sliding_window": 7}),
    "score_cap": Case("gemma2", {"attn_logit_softcapping": 2.0}),
    "clip": Case("olmo", {"clip_qkv": 1.5}),
    "query_factor": Case("ministral3"),
}
LAYER = {
    "attention_out_norm": Case("glm4"),
    "feed_forward_out_norm": Case("glm4"),
    "residual_scale": Case("granite", {"residual_multiplier": 0.3}),
    "is_parallel": Case("phi"),
}
WHOLE = {
    "embedding_scale": Case("gemma"),
    "embedding_norm": Case("nanochat"),
    "position_embedding": Case("opt"),
    "logit_scale": Case("cohere", {"logit_scale": 0.3}),
    "logit_cap": Case("gemma2", {"final_logit_softcapping": 2.0}),
}


def defaults(part: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in fields(part) if field.default is not MISSING}


def test_every_optional_field_is_tested() -> None:
    assert defaults(LayerAttention).keys() == ATTENTION.keys()
    assert defaults(DecoderLayer).keys() == LAYER.keys()
    assert defaults(Decoder).keys() - {"small_steps"} == WHOLE.keys()


def differs(case: Case, neutral: Callable[[Decoder], Decoder]) -> float:
    decoder = build_decoder(copy_of(case.model()))
    return error(decoder_logits(neutral(decoder), prompts()[3]), decoder_logits(decoder, prompts()[3]))


@pytest.mark.parametrize("name", ATTENTION)
def test_a_feature_of_attention_counts(name: str) -> None:
    # Norms of queries and keys come together.
    names = ("query_norm", "key_norm") if name in {"query_norm", "key_norm"} else (name,)
    changes = {one: defaults(LayerAttention)[one] for one in names}

    def neutral(decoder: Decoder) -> Decoder:
        spec = decoder.attention.spec
        layers = tuple(replace(layer, **changes) for layer in spec.layers)
        return replace(decoder, attention=DenseAttention(replace(spec, layers=layers)))

    assert differs(ATTENTION[name], neutral) > 1e-3


@pytest.mark.parametrize("name", LAYER)
def test_a_feature_of_a_layer_counts(name: str) -> None:
    change = {name: defaults(DecoderLayer)[name]}

    def neutral(decoder: Decoder) -> Decoder:
        return replace(decoder, layers=tuple(replace(layer, **change) for layer in decoder.layers))

    assert differs(LAYER[name], neutral) > 1e-3


@pytest.mark.parametrize("name", WHOLE)
def test_a_feature_of_the_whole_model_counts(name: str) -> None:
    change = {name: defaults(Decoder)[name]}
    assert differs(WHOLE[name], lambda decoder: replace(decoder, **change)) > 1e-3
