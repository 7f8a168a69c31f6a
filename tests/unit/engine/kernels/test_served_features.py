"""A compiled part serves a model only if it computes every feature the model uses; one added later is not dropped."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention.backend import LayerAttention
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.features import features_of
from helix_jobs.engine.attention.latent import LatentHeads
from helix_jobs.engine.attention.query_factor import QueryFactor
from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.kernels.cpu.int8_decoder import NativeInt8Decoder
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.model.altup import AltUp, Laurel
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.decoder_layer import DecoderLayer
from helix_jobs.engine.model.layer_inputs import LayerInput
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.query_lift import QueryLift
from helix_jobs.engine.recurrence.short_conv import ShortConv
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.router_linear import RouterLinear
from tests.unit.engine.kernels.native_models import HEAD_DIM
from tests.unit.engine.tiny_models import CPU, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.decoder import Decoder

HEAD_NORM = RmsNorm(torch.ones(HEAD_DIM), 1e-6)
# A value of each optional field that differs from its default.
ATTENTION_FEATURES: dict[str, Any] = {
    "query_norm": HEAD_NORM,
    "key_norm": HEAD_NORM,
    "norm_scope": "rotated",
    "rotary": None,  # the model below has one in each layer, as compiled int8 layers need
    "window": 4,
    "score_cap": 2.0,
    "clip": 1.0,
    "query_factor": QueryFactor(0.1, 8, torch.float32, CPU),
    "sinks": torch.zeros(6),
    "latent": LatentHeads(norm=HEAD_NORM, keys=torch.ones(6, 8, 16), values=torch.ones(6, 16, 8), rotary_dim=8),
    "value_norm": HEAD_NORM,
    "has_values_of_keys": True,
}
# What int8 layers in one call compute.
IN_ONE_CALL = {"query_norm", "key_norm", "window", "score_cap"}
LAYER_FEATURES: dict[str, Any] = {
    "attention_out_norm": RmsNorm(torch.ones(48), 1e-6),
    "feed_forward_out_norm": RmsNorm(torch.ones(48), 1e-6),
    "residual_scale": 0.5,
    "is_parallel": True,
    "has_gate": True,
    "gates_heads": True,
    "recurrence": ShortConv(torch.ones(3, 48), None),
    "query_lift": QueryLift(HEAD_NORM, DenseLinear(torch.ones(96, 16), None)),
    "attention_width": 48,
    "layer_input": LayerInput(
        gate=DenseLinear(torch.ones(4, 48), None),
        projection=DenseLinear(torch.ones(48, 4), None),
        norm=RmsNorm(torch.ones(48), 1e-6),
        activation=torch.relu,
    ),
    "scale": 0.5,
    "altup": AltUp(
        norm=RmsNorm(torch.ones(48), 1e-6),
        router=RouterLinear(torch.ones(2, 48)),
        prediction=RouterLinear(torch.ones(4, 2)),
        correction=RouterLinear(torch.ones(2, 2)),
        active=0,
        scale=None,
        laurel=Laurel(
            left=DenseLinear(torch.ones(4, 48), None),
            right=DenseLinear(torch.ones(48, 4), None),
            norm=RmsNorm(torch.ones(48), 1e-6),
        ),
    ),
}


@pytest.fixture
def native(compiled_folder: Path) -> NativeKernels:
    return load_kernels(compiled_folder, torch.float32, CPU, HEAD_DIM)


def plain_decoder() -> Decoder:
    return quantize(build_decoder(tiny_model(head_dim=HEAD_DIM, rms_norm_eps=1e-6)))


def with_attention(decoder: Decoder, **changes: Any) -> Decoder:
    spec = decoder.attention.spec
    layers = (spec.layers[0], replace(spec.layers[1], **changes))
    return replace(decoder, attention=DenseAttention(replace(spec, layers=layers)))


def optional_fields(part: Any) -> set[str]:
    return {field.name for field in fields(part) if field.default is not MISSING}


def test_the_tables_above_name_every_optional_field() -> None:
    assert optional_fields(LayerAttention) == ATTENTION_FEATURES.keys()
    assert optional_fields(DecoderLayer) == LAYER_FEATURES.keys()


def test_features_are_the_fields_that_differ_from_their_defaults() -> None:
    assert features_of(LayerAttention(0.5)) == frozenset()
    assert features_of(LayerAttention(0.5, window=4, norm_scope="row")) == {"window", "norm_scope"}


def test_int8_layers_in_one_call_serve_a_plain_model(native: NativeKernels) -> None:
    if not native.has_byte_products:
        pytest.skip("this processor multiplies no bytes")
    decoder = plain_decoder()
    assert NativeInt8Decoder.supports(decoder, native)
    changes = {name: ATTENTION_FEATURES[name] for name in IN_ONE_CALL}
    assert NativeInt8Decoder.supports(with_attention(decoder, **changes), native)


@pytest.mark.parametrize("name", sorted(ATTENTION_FEATURES.keys() - IN_ONE_CALL))
def test_int8_layers_in_one_call_refuse_a_feature_of_attention(native: NativeKernels, name: str) -> None:
    decoder = with_attention(plain_decoder(), **{name: ATTENTION_FEATURES[name]})
    assert not NativeInt8Decoder.supports(decoder, native)


@pytest.mark.parametrize("name", LAYER_FEATURES)
def test_int8_layers_in_one_call_refuse_a_feature_of_a_layer(native: NativeKernels, name: str) -> None:
    decoder = plain_decoder()
    layers = (decoder.layers[0], replace(decoder.layers[1], **{name: LAYER_FEATURES[name]}))
    assert not NativeInt8Decoder.supports(replace(decoder, layers=layers), native)


@pytest.mark.parametrize("name", ATTENTION_FEATURES)
def test_attention_that_a_backend_does_not_compute_stays_in_plain_products(native: NativeKernels, name: str) -> None:
    spec = with_attention(plain_decoder(), **{name: ATTENTION_FEATURES[name]}).attention.spec
    assert SdpaAttention.serves(spec) == (name not in {"score_cap", "sinks"})
    decoder = with_native(replace(plain_decoder(), attention=DenseAttention(spec)), native)
    assert isinstance(decoder.attention, CompiledAttention) == CompiledAttention.serves(spec)
    assert CompiledAttention.serves(spec) == (name != "latent")
