"""The int8 copy of a whole decoder, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.weights.linear import Linear


def quantize(decoder: Decoder) -> Decoder:
    """Return a decoder whose linear layers, output head included, are int8; embeddings and norms are the original's.

    The original must not be packed yet, and is not changed.

    Raises:
        ConfigurationError: The device has no int8 product that serves any batch.
    """
    if decoder.device.type != "cpu":
        # Elsewhere int8 products exist for certain shapes only; widened weights would cost more than they save.
        raise ConfigurationError(f"int8 layers run on a CPU only, not on {decoder.device.type}; use dtype auto")
    return decoder.with_linears(_quantized)


def dequantize(decoder: Decoder) -> Decoder:
    """Return a decoder whose int8 layers are layers of ``decoder.dtype`` again."""
    return decoder.with_linears(lambda linear: _dense(linear, decoder.dtype))


def is_fast(decoder: Decoder) -> bool:
    """Whether this processor multiplies the decoder's int8 layers fast with the decoder's kernels."""
    return all(linear.is_fast for linear in decoder.linears() if isinstance(linear, Int8Linear))


def _quantized(linear: Linear) -> Linear:
    assert isinstance(linear, DenseLinear), "only a dense model is quantised"
    return Int8Linear.from_dense(linear)


def _dense(linear: Linear, dtype: torch.dtype) -> Linear:
    assert isinstance(linear, Int8Linear), "only an int8 model is widened"
    return linear.to_dense(dtype)
