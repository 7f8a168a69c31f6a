"""A decoder written plainly, one sequence in one pass, over the same parts: what any combination of features means."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.model.experts import Experts
from helix_jobs.engine.model.feed_forward import NoFeedForward
from tests.unit.engine.model.plain_experts import plain_experts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.model.layer_inputs import LayerInputs
    from helix_jobs.engine.weights.linear import DenseLinear


def plain_logits(
    decoder: Decoder,
    tokens: Sequence[int],
    frequencies: torch.Tensor,
    growth: tuple[float, int],
    weights: Mapping[int, Any] = MappingProxyType({}),
) -> torch.Tensor:
    """Logits of every position, ``[len(tokens), vocab_size]``, in float64.

    Args:
        decoder: Its parts are read; none of its methods is called.
        tokens: The sequence.
        frequencies: ``[rotary_dim / 2]`` of every layer that rotates.
        growth: Beta and original context of every layer whose queries grow.
        weights: Of the parts that do not show their own, by the ``id`` of the part: a ``PlainRecurrence`` of each
            recurrence, and the matrix of each router.
    """
    hidden = decoder.embedding[list(tokens)].double() * decoder.embedding_scale
    if decoder.position_embedding is not None:
        hidden = hidden + decoder.position_embedding[: len(tokens)].double()
    hidden = normed(decoder.embedding_norm, hidden)
    inputs = plain_inputs(decoder.layer_inputs, tokens, hidden)
    attention = PlainAttention(decoder.attention.spec, frequencies, growth)
    index = 0  # among the layers with attention
    for place, layer in enumerate(decoder.layers):
        normal = normed(layer.attention_norm, hidden)
        inner, parts = linear(layer.qkv, normal), []
        width = layer.attention_width or (0 if layer.recurrence is not None else inner.shape[1])
        if width:
            qkv, gate = inner[:, :width], None
            if layer.has_gate:
                qkv, gate = qkv.split(
                    (width - decoder.attention.spec.width(index), decoder.attention.spec.width(index)), 1
                )
            heads = attention.attended(index, qkv)
            parts.append(heads if gate is None else heads * torch.sigmoid(gate))
            index += 1
        if layer.recurrence is not None:
            parts.append(weights[id(layer.recurrence)].results(inner[:, width:]))
        mixed = linear(layer.attention_out, torch.cat(parts, dim=1))
        first = normed(layer.attention_out_norm, mixed) * layer.residual_scale
        if layer.is_parallel:
            given = normal if layer.feed_forward_norm is None else normed(layer.feed_forward_norm, hidden)
        else:
            given = normed(layer.feed_forward_norm, hidden + first)
        second = fed_forward(layer.feed_forward, given, weights)
        hidden = hidden + first + normed(layer.feed_forward_out_norm, second) * layer.residual_scale
        if layer.layer_input is not None:
            own = linear(layer.layer_input.gate, hidden)
            own = own * torch.sigmoid(own) * inputs[:, place]
            hidden = hidden + normed(layer.layer_input.norm, linear(layer.layer_input.projection, own))
        hidden = hidden * layer.scale
    logits = linear(decoder.head, normed(decoder.final_norm, hidden)) * decoder.logit_scale
    return logits if decoder.logit_cap is None else decoder.logit_cap * torch.tanh(logits / decoder.logit_cap)


def fed_forward(own: Any, given: torch.Tensor, weights: Mapping[int, Any]) -> torch.Tensor:
    """What a feed-forward yields for ``[n, hidden_size]``."""
    if isinstance(own, NoFeedForward):
        return torch.zeros_like(given)
    if isinstance(own, Experts):
        return plain_experts(own, weights[id(own.router)], given, lambda one, rows: fed_forward(one, rows, weights))
    gate, up = linear(own.gate_up, given).chunk(2, dim=-1)
    return linear(own.down, gate * torch.sigmoid(gate) * up)


def plain_inputs(inputs: LayerInputs | None, tokens: Sequence[int], hidden: torch.Tensor) -> torch.Tensor:
    """``[len(tokens), num_layers, width]``; nothing where layers have no inputs."""
    if inputs is None:
        return torch.empty(0)
    projected = (linear(inputs.projection, hidden) * inputs.projection_scale).reshape(len(tokens), -1, inputs.width)
    looked_up = inputs.table[list(tokens)].double().reshape(projected.shape) * inputs.table_scale
    return (normed(inputs.norm, projected) + looked_up) / math.sqrt(2)


def linear(layer: DenseLinear, hidden: torch.Tensor) -> torch.Tensor:
    product = hidden @ layer.weight.double().t()
    return product if layer.bias is None else product + layer.bias.double()


def normed(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """``norm`` is an ``RmsNorm``, or None."""
    if norm is None:
        return hidden
    return hidden / torch.sqrt((hidden * hidden).mean(dim=-1, keepdim=True) + norm.eps) * norm.weight.double()


class PlainAttention:
    """Attention of all layers over one sequence; keeps the keys and values that later layers read.

    Args:
        spec: The model's attention.
        frequencies: As in ``plain_logits``.
        growth: As in ``plain_logits``.
    """

    def __init__(self, spec: AttentionSpec, frequencies: torch.Tensor, growth: tuple[float, int]) -> None:
        self._spec = spec
        self._frequencies = frequencies
        self._growth = growth
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attended(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """``[n, num_heads * value_width]``."""
        own, shape, num_heads, n = (
            self._spec.layers[layer],
            self._spec.geometry.layers[layer],
            self._spec.num_heads,
            len(qkv),
        )
        bound = math.inf if own.clip is None else own.clip
        norms_rows = own.norm_scope == "row" and own.query_norm is not None
        if not norms_rows:
            qkv = qkv.clamp(-bound, bound)
        num_new = 0 if shape.source is not None else shape.num_kv_heads
        num_values = num_new * shape.value_width if shape.has_values and not own.has_values_of_keys else 0
        queries, keys, values = qkv.split((num_heads * shape.head_dim, num_new * shape.head_dim, num_values), dim=1)
        if own.has_values_of_keys:
            values = keys
        if shape.source is None and shape.has_values:
            values = normed(own.value_norm, values.reshape(n, num_new, -1)).reshape(n, -1)
        if norms_rows:
            # OLMoE bounds what its norms yield, values included; other models bound what the product yields.
            queries, keys = normed(own.query_norm, queries), normed(own.key_norm, keys)
            queries, keys, values = (rows.clamp(-bound, bound) for rows in (queries, keys, values))
        queries, keys = queries.reshape(n, num_heads, -1), keys.reshape(n, num_new, shape.head_dim)
        queries, keys = (
            self._turned(own, heads, norm) for heads, norm in ((queries, own.query_norm), (keys, own.key_norm))
        )
        if own.query_factor is not None:
            beta, original = self._growth
            factors = [1 + beta * math.log(1 + position // original) for position in range(n)]
            queries = queries * torch.tensor(factors, dtype=torch.float64)[:, None, None]
        if shape.source is None:
            kept = values.reshape(n, num_new, -1) if shape.has_values else keys[..., : shape.value_width]
            self._kept[layer] = keys, kept
        keys, values = self._kept[layer if shape.source is None else shape.source]
        output = torch.empty(n, num_heads, shape.value_width, dtype=torch.float64)
        for head in range(num_heads):
            shared = head // (num_heads // shape.num_kv_heads)
            for position in range(n):
                start = 0 if own.window is None else max(0, position + 1 - own.window)
                scores = keys[start : position + 1, shared] @ queries[position, head] * own.scaling
                output[position, head] = shares_of(scores, own, head) @ values[start : position + 1, shared]
        return output.reshape(n, -1)

    def _turned(self, own: LayerAttention, heads: torch.Tensor, norm: Any) -> torch.Tensor:
        """Heads as far as they are normalised one by one, and rotated."""
        if own.norm_scope == "head":
            heads = normed(norm, heads)
        if own.rotary is not None:
            heads = rotated(heads, self._frequencies)
        return normed(norm, heads) if own.norm_scope == "rotated" else heads


def shares_of(scores: torch.Tensor, own: LayerAttention, head: int) -> torch.Tensor:
    """How much each key counts, of scaled scores ``[number of keys]``."""
    if own.score_cap is not None:
        scores = own.score_cap * torch.tanh(scores / own.score_cap)
    if own.sinks is not None:
        scores = torch.cat((scores, own.sinks[head : head + 1].double()))
        return torch.softmax(scores, dim=0)[:-1]
    return torch.softmax(scores, dim=0)


def rotated(heads: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Heads ``[n, heads, head_dim]``, whose leading dimensions are turned in pairs half that width apart."""
    width = len(frequencies)
    angles = (torch.arange(len(heads))[:, None] * frequencies).double()[:, None, :]
    first, second, rest = heads.split((width, width, heads.shape[-1] - 2 * width), dim=-1)
    return torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
            rest,
        ),
        dim=-1,
    )
