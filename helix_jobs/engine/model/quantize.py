"""How the weights of a whole decoder are stored: its int8 copy, its blocks decoded, and the way back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.int8_linear import Int8Linear, quantize_rows
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.weights.linear import Linear


def quantize(decoder: Decoder, *, keeps_blocks: bool = False) -> Decoder:
    """Return a decoder whose linear layers, output head included, are int8; embeddings and norms are the original's.

    The original must not be packed yet, and is not changed.

    Args:
        decoder: The original.
        keeps_blocks: Whether weights in blocks stay so, shared with the original: compiled kernels multiply them with
            activations rounded block by block. Else they are rounded anew, to int8 rows.

    Raises:
        ConfigurationError: The device has no int8 product that serves any batch.
    """
    if decoder.device.type != "cpu":
        # Elsewhere int8 products exist for certain shapes only; widened weights would cost more than they save.
        raise ConfigurationError(f"int8 layers run on a CPU only, not on {decoder.device.type}; use dtype auto")
    return decoder.with_linears(lambda linear: _quantized(linear, decoder.dtype, keeps_blocks=keeps_blocks))


def dequantize(decoder: Decoder) -> Decoder:
    """Return a decoder whose int8 layers are layers of ``decoder.dtype`` again; blocks stay blocks."""
    return decoder.with_linears(lambda linear: _dense(linear, decoder.dtype))


def is_fast(decoder: Decoder) -> bool:
    """Whether this processor multiplies the decoder's int8 layers fast with the decoder's kernels."""
    return all(linear.is_fast for linear in decoder.linears() if isinstance(linear, Int8Linear | PackedInt8Linear))


def without_blocks(decoder: Decoder) -> Decoder:
    """Return an int8 decoder in which layers that kept their blocks are int8 rows, as ``quantize`` makes them."""

    def changed(linear: Linear) -> Linear:
        return _quantized_blocks(linear.exact, decoder.dtype) if isinstance(linear, PackedInt8Linear) else linear

    return decoder.with_linears(changed)


def with_exact_blocks(decoder: Decoder) -> Decoder:
    """Return an int8 decoder in which layers that kept their blocks multiply activations as they are."""
    return decoder.with_linears(lambda linear: linear.exact if isinstance(linear, PackedInt8Linear) else linear)


def unpack(decoder: Decoder) -> Decoder:
    """Return a decoder whose weights in blocks are dense, in ``decoder.dtype``; one layer after another is decoded."""
    embedding, head = decoder.embedding, decoder.head
    is_tied = isinstance(head, PackedLinear) and head.parts[0] is embedding
    if isinstance(embedding, BlockMatrix):
        embedding = embedding.dense(decoder.dtype)
    changed = replace(decoder, embedding=embedding).with_linears(
        lambda linear: linear if is_tied and linear is head else _unpacked(linear, decoder.dtype)
    )
    if is_tied:
        assert isinstance(head, PackedLinear), "a tied head is the embedding"
        assert isinstance(embedding, torch.Tensor), "decoded above"
        changed = replace(changed, head=DenseLinear(embedding, head.bias))
    return changed


def packed_kind(decoder: Decoder) -> str | None:
    """The type of blocks that most weights of its products are stored in, such as ``q4_k``; None if they are dense."""
    sizes: Counter[str] = Counter()
    for linear in decoder.linears():
        if isinstance(linear, PackedLinear):
            for part in linear.parts:
                if part.layout.kind in FLOAT_LAYOUTS:
                    continue
                sizes[part.layout.name] += part.shape[0] * part.shape[1]
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else None


def _quantized(linear: Linear, dtype: torch.dtype, *, keeps_blocks: bool) -> Linear:
    if isinstance(linear, PackedLinear):
        if keeps_blocks and PackedInt8Linear.serves(linear):
            return PackedInt8Linear(linear)
        return _quantized_blocks(linear, dtype)
    assert isinstance(linear, DenseLinear), "only a dense or packed model is quantised"
    return Int8Linear.from_dense(linear)


def _quantized_blocks(linear: PackedLinear, dtype: torch.dtype) -> Linear:
    """As ``Int8Linear.from_dense`` of the decoded layer, of which only a tile is ever in memory."""
    weight = torch.empty((linear.out_features, linear.in_features), dtype=torch.int8)
    scale = torch.empty((linear.out_features, 1))
    for first, part in linear.placed_parts():
        for place, weights in part.tiles():
            rows = slice(first + place.start, first + place.stop)
            weight[rows], scale[rows] = quantize_rows(weights.to(dtype))
    return Int8Linear(weight, scale.squeeze(1), None if linear.bias is None else linear.bias.float())


def _unpacked(linear: Linear, dtype: torch.dtype) -> Linear:
    return DenseLinear(linear.weight(dtype), linear.bias) if isinstance(linear, PackedLinear) else linear


def _dense(linear: Linear, dtype: torch.dtype) -> Linear:
    if isinstance(linear, PackedInt8Linear):
        return linear.exact
    assert isinstance(linear, Int8Linear), "only an int8 model is widened"
    return linear.to_dense(dtype)
