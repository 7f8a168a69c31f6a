"""Every optional field of the description changes what a model computes: one that changes nothing tests nothing."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention.backend import LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.model.activations import SparseActivation
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.decoder import Decoder
from helix_jobs.engine.model.decoder_layer import DecoderLayer
from helix_jobs.engine.model.experts_beside import ExpertsBeside
from helix_jobs.engine.model.feed_forward import GatedFeedForward
from helix_jobs.engine.weights.linear import DenseLinear
from tests.unit.engine.model.case_settings import GEMMA_4_EXPERTS
from tests.unit.engine.model.family_case import Case, error, prompts
from tests.unit.engine.tiny_models import RECURRENT, copy_of, decoder_logits

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.weights.linear import Linear

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
    "sinks": Case("gpt_oss"),
    "value_norm": Case("gemma4_text"),
}
LAYER = {
    "attention_out_norm": Case("glm4"),
    "feed_forward_out_norm": Case("glm4"),
    "residual_scale": Case("granite", {"residual_multiplier": 0.3}),
    "is_parallel": Case("phi"),
    "layer_input": Case("gemma4_text"),
    "scale": Case("gemma4_text"),
    "altup": Case("gemma3n_text"),
}
# Fields that have a test of their own below: the layer's products, or other parts, go with them.
OWN_TEST = {
    "has_gate",
    "gates_heads",
    "recurrence",
    "query_lift",
    "attention_width",
    "latent",
    "has_values_of_keys",
    "layer_inputs",
    "streams",
}
BESIDE = Case("gemma4_text", GEMMA_4_EXPERTS)
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
    assert defaults(LayerAttention).keys() - OWN_TEST == ATTENTION.keys()
    assert defaults(DecoderLayer).keys() - OWN_TEST == LAYER.keys()
    assert defaults(Decoder).keys() - {"small_steps", "native", "adapters", "origins"} - OWN_TEST == WHOLE.keys()


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


@pytest.mark.parametrize(("family", "gates_heads"), [("qwen3_5_text", False), ("lfm3", True)])
def test_a_gate_of_attention_counts(family: str, *, gates_heads: bool) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def ungated(layer: DecoderLayer) -> DecoderLayer:
            if not layer.has_gate:
                return layer
            weight, spec = dense(layer.qkv).weight, decoder.attention.spec
            rows = len(weight) - (spec.num_heads if layer.gates_heads else spec.width(0))
            return replace(layer, has_gate=False, gates_heads=False, qkv=DenseLinear(weight[:rows], None))

        assert {layer.gates_heads for layer in decoder.layers if layer.has_gate} == {gates_heads}
        return replace(decoder, layers=tuple(map(ungated, decoder.layers)))

    assert differs(Case(family), neutral) > 1e-3


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrence_counts(family: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(layer: DecoderLayer) -> DecoderLayer:
            if layer.recurrence is None:
                return layer
            nothing = torch.zeros_like(dense(layer.attention_out).weight)
            return replace(layer, attention_out=DenseLinear(nothing, None))

        assert any(layer.recurrence is not None for layer in decoder.layers)
        return replace(decoder, layers=tuple(map(without, decoder.layers)))

    assert differs(Case(family), neutral) > 1e-3


@pytest.mark.parametrize("part", ["norm", "keys", "values"])
def test_a_part_of_latent_attention_counts(part: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(own: LayerAttention) -> LayerAttention:
            latent = own.latent
            assert latent is not None
            nothing = {"norm": torch.clone, "keys": latent.keys * 0, "values": latent.values * 0}
            return replace(own, latent=replace(latent, **{part: nothing[part]}))

        spec = decoder.attention.spec
        layers = tuple(map(without, spec.layers))
        return replace(decoder, attention=DenseAttention(replace(spec, layers=layers)))

    assert differs(Case("youtu"), neutral) > 1e-3


def test_the_norm_of_narrow_queries_counts() -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(layer: DecoderLayer) -> DecoderLayer:
            assert layer.query_lift is not None
            return replace(layer, query_lift=replace(layer.query_lift, norm=torch.clone))

        return replace(decoder, layers=tuple(map(without, decoder.layers)))

    assert differs(Case("youtu"), neutral) > 1e-3


@pytest.mark.parametrize("half", ["attention", "recurrence"])
def test_attention_and_a_recurrence_beside_it_count(half: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(layer: DecoderLayer) -> DecoderLayer:
            assert layer.attention_width == (6 + 2 * 2) * 8
            weight, width = dense(layer.attention_out).weight.clone(), decoder.attention.spec.width(0)
            weight[:, slice(width) if half == "attention" else slice(width, None)] = 0
            return replace(layer, attention_out=DenseLinear(weight, None))

        return replace(decoder, layers=tuple(map(without, decoder.layers)))

    assert differs(Case("falcon_h1"), neutral) > 1e-3


def test_values_of_keys_count() -> None:
    def neutral(decoder: Decoder) -> Decoder:
        spec = decoder.attention.spec
        layers = list(decoder.layers)
        for index, (own, shape) in enumerate(zip(spec.layers, spec.geometry.layers, strict=True)):
            if own.has_values_of_keys:
                weight = dense(layers[index].qkv).weight
                others = weight[-shape.num_kv_heads * shape.head_dim :].flip(0)
                layers[index] = replace(layers[index], qkv=DenseLinear(torch.cat((weight, others)), None))
        assert layers != list(decoder.layers)
        owns = tuple(replace(own, has_values_of_keys=False) for own in spec.layers)
        return replace(decoder, layers=tuple(layers), attention=DenseAttention(replace(spec, layers=owns)))

    assert differs(Case("gemma4_text", {"attention_k_eq_v": True}), neutral) > 1e-3


def test_whose_keys_a_layer_reads_counts() -> None:
    case = Case("gemma4_text", {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3})

    def neutral(decoder: Decoder) -> Decoder:
        spec = decoder.attention.spec
        assert [shape.source for shape in spec.geometry.layers] == [None, None, None, None, 2, 3]
        shapes = tuple(
            shape if shape.source is None else replace(shape, source=shape.source - 2) for shape in spec.geometry.layers
        )
        return replace(decoder, attention=DenseAttention(replace(spec, geometry=CacheGeometry(layers=shapes))))

    assert differs(case, neutral) > 1e-3


@pytest.mark.parametrize("part", ["table_scale", "projection_scale"])
def test_both_parts_of_layer_inputs_count(part: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        assert decoder.layer_inputs is not None
        return replace(decoder, layer_inputs=replace(decoder.layer_inputs, **{part: 0.0}))

    assert differs(Case("gemma4_text"), neutral) > 1e-3


@pytest.mark.parametrize("part", ["expanding", "merging"])
def test_what_makes_and_merges_streams_counts(part: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        assert decoder.streams is not None
        turned = tuple(DenseLinear(dense(one).weight.flip(0), None) for one in getattr(decoder.streams, part))
        return replace(decoder, streams=replace(decoder.streams, **{part: turned}))

    assert differs(Case("gemma3n_text"), neutral) > 1e-3


@pytest.mark.parametrize("part", ["norm", "router", "prediction", "correction", "scale"])
def test_a_part_of_alternating_updates_counts(part: str) -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(layer: DecoderLayer) -> DecoderLayer:
            assert layer.altup is not None
            own = getattr(layer.altup, part)
            changes = {"norm": unchanged, "scale": None}
            change = changes[part] if part in changes else lambda hidden: -own(hidden)
            return replace(layer, altup=replace(layer.altup, **{part: change}))

        return replace(decoder, layers=tuple(map(without, decoder.layers)))

    assert differs(Case("gemma3n_text"), neutral) > 1e-3


def test_a_sparse_activation_counts() -> None:
    def neutral(decoder: Decoder) -> Decoder:
        def without(layer: DecoderLayer) -> DecoderLayer:
            own = layer.feed_forward
            assert isinstance(own, GatedFeedForward)
            inner = own.activation.inner if isinstance(own.activation, SparseActivation) else own.activation
            return replace(layer, feed_forward=replace(own, activation=inner))

        return replace(decoder, layers=tuple(map(without, decoder.layers)))

    assert differs(Case("gemma3n_text"), neutral) > 1e-3


@pytest.mark.parametrize("name", ["dense_norm", "dense_out_norm", "experts_norm", "experts_out_norm"])
def test_each_norm_of_experts_beside_a_feed_forward_counts(name: str) -> None:
    def without(beside: ExpertsBeside) -> ExpertsBeside:
        return replace(beside, **{name: unchanged})

    assert differs(BESIDE, lambda decoder: with_beside(decoder, without)) > 1e-3


@pytest.mark.parametrize("name", ["norm", "expert_scale"])
def test_a_feature_of_a_router_counts(name: str) -> None:
    def without(beside: ExpertsBeside) -> ExpertsBeside:
        router = replace(beside.experts.router, **{name: None})
        return replace(beside, experts=replace(beside.experts, router=router))

    assert differs(BESIDE, lambda decoder: with_beside(decoder, without)) > 1e-3


def with_beside(decoder: Decoder, change: Callable[[ExpertsBeside], ExpertsBeside]) -> Decoder:
    def changed(layer: DecoderLayer) -> DecoderLayer:
        assert isinstance(layer.feed_forward, ExpertsBeside)
        return replace(layer, feed_forward=change(layer.feed_forward))

    return replace(decoder, layers=tuple(map(changed, decoder.layers)))


def unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def dense(linear: Linear | None) -> DenseLinear:
    assert isinstance(linear, DenseLinear)
    assert linear.bias is None
    return linear


@pytest.mark.parametrize("name", WHOLE)
def test_a_feature_of_the_whole_model_counts(name: str) -> None:
    change = {name: defaults(Decoder)[name]}
    assert differs(WHOLE[name], lambda decoder: replace(decoder, **change)) > 1e-3
