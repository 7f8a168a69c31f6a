"""A decoder in which compiled kernels replace every part that has one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.kernels.cpu.feed_forward import COMPILED_ACTIVATIONS, CompiledFeedForward
from helix_jobs.engine.kernels.cpu.int8_decoder import NativeInt8Decoder
from helix_jobs.engine.kernels.cpu.int8_linear import CompiledInt8Linear
from helix_jobs.engine.kernels.cpu.kernels import COMMON_HEAD_DIM, NativeKernels
from helix_jobs.engine.kernels.cpu.packed_int8_linear import CompiledPackedInt8Linear
from helix_jobs.engine.kernels.cpu.packed_linear import CompiledPackedLinear
from helix_jobs.engine.kernels.cpu.rms_norm import CompiledRmsNorm
from helix_jobs.engine.model.experts_beside import ExpertsBeside
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.model.decoder_layer import DecoderLayer
    from helix_jobs.engine.model.layer_inputs import LayerInput
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear

AnyNorm = TypeVar("AnyNorm")


def with_native(decoder: Decoder, native: NativeKernels) -> Decoder:
    """The same model over the same weights, computing with compiled kernels. Call it before ``pack``."""
    norm = partial(_norm, native, decoder.dtype)
    spec, inputs = decoder.attention.spec, decoder.layer_inputs
    attentions = tuple(
        replace(
            layer,
            query_norm=norm(layer.query_norm),
            key_norm=norm(layer.key_norm),
            value_norm=norm(layer.value_norm),
            latent=None if layer.latent is None else replace(layer.latent, norm=norm(layer.latent.norm)),
        )
        for layer in spec.layers
    )

    def changed(layer: DecoderLayer) -> DecoderLayer:
        lift = layer.query_lift
        feed_forward = CompiledFeedForward.of(layer.feed_forward, native)
        if isinstance(feed_forward, ExpertsBeside):
            feed_forward = feed_forward.with_norms(norm)
        return replace(
            layer,
            attention_norm=norm(layer.attention_norm),
            attention_out_norm=norm(layer.attention_out_norm),
            feed_forward_norm=norm(layer.feed_forward_norm),
            feed_forward_out_norm=norm(layer.feed_forward_out_norm),
            feed_forward=feed_forward,
            query_lift=None if lift is None else replace(lift, norm=norm(lift.norm)),
            layer_input=_layer_input(native, layer.layer_input, norm),
            altup=None if layer.altup is None else layer.altup.with_norms(norm),
        )

    changed_spec = replace(spec, layers=attentions)
    compiled = replace(
        decoder,
        attention=(
            CompiledAttention(changed_spec, native) if CompiledAttention.serves(spec) else DenseAttention(changed_spec)
        ),
        layers=tuple(changed(layer) for layer in decoder.layers),
        final_norm=norm(decoder.final_norm),
        layer_inputs=inputs if inputs is None else replace(inputs, norm=norm(inputs.norm)),
        small_steps=NativeInt8Decoder(decoder, native) if NativeInt8Decoder.supports(decoder, native) else None,
        native=native,
    )
    return compiled.with_linears(partial(_linear, native))


def kernel_head_dim(decoder: Decoder) -> int:
    """Width of the heads to compile kernels for.

    Trade-off: where plain products attend, any width serves all other kernels. Latent attention is such a case: its
    keys of 576 numbers are more than a processor has registers for, and attention compiled for that width takes longer
    than torch's products (docs/performance.md).
    """
    spec = decoder.attention.spec
    return max(spec.geometry.head_dims) if CompiledAttention.serves(spec) else COMMON_HEAD_DIM


def native_of(decoder: Decoder) -> NativeKernels | None:
    """The compiled kernels that the decoder computes with, if any; its attention may be computed without them."""
    return decoder.native if isinstance(decoder.native, NativeKernels) else None


def _norm(native: NativeKernels, dtype: torch.dtype, norm: AnyNorm) -> AnyNorm | CompiledRmsNorm:
    if isinstance(norm, RmsNorm) and CompiledRmsNorm.serves(norm, dtype):
        return CompiledRmsNorm(norm, native)
    return norm


def _layer_input(native: NativeKernels, own: LayerInput | None, norm: Callable[[Norm], Norm]) -> LayerInput | None:
    if own is None:
        return None
    name = COMPILED_ACTIVATIONS.get(own.activation)
    activation = own.activation if name is None else partial(native.activate, name, is_gated=False)
    return replace(own, norm=norm(own.norm), activation=activation)


def _linear(native: NativeKernels, linear: Linear) -> Linear:
    if isinstance(linear, PackedLinear):
        return CompiledPackedLinear(linear, native)
    if isinstance(linear, PackedInt8Linear):
        return CompiledPackedInt8Linear(linear, native)
    return CompiledInt8Linear(linear, native) if isinstance(linear, Int8Linear) else linear
