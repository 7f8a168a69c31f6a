"""Decoder: the forward pass of a decoder-only transformer over one packed, ragged step.

transformers loads the weights; its modules are not called. Trade-off: the forward has to be kept equal to the
reference for every family (the tests do so token by token), and in return it has fused projections, packed weights, no
work on padding, and no operator that a device lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from helix_jobs.engine.attention.dense import attend, attend_natively
from helix_jobs.engine.devices.shape_sizes import padded_rows
from helix_jobs.engine.kernels.cpu.int8_decoder import NativeInt8Decoder
from helix_jobs.engine.model.activations import COMPILED_ACTIVATIONS
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.weights.int8_linear import Int8Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.attention.dense import AttentionClock
    from helix_jobs.engine.attention.kv_cache import CacheGeometry, PagedKVCache
    from helix_jobs.engine.attention.rotary import RotaryTable
    from helix_jobs.engine.attention.step_layout import StepLayout
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One transformer layer.

    Attributes:
        attention_norm: Before attention.
        qkv: Queries, keys and values in one product: ``(num_heads + 2 * num_kv_heads) * head_dim`` outputs.
        query_norm: Per head before rotation (Qwen3), or None.
        key_norm: The same for keys.
        attention_out: From the heads back to the hidden size.
        mlp_norm: Before the MLP.
        mlp_in: Gate and up projection in one product, or the one up projection of an MLP without a gate.
        mlp_out: Down projection.
        scaling: Factor of the attention scores.
    """

    attention_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    attention_out: Linear
    mlp_norm: Norm
    mlp_in: Linear
    mlp_out: Linear
    scaling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A whole model.

    Attributes:
        geometry: Shape of its keys and values.
        num_heads: Query heads.
        embedding: ``[num_embeddings, hidden_size]``
        embedding_scale: Factor of the embedded tokens (Gemma), or None.
        position_embedding: ``[max_positions, hidden_size]`` learned positions (GPT-2), or None.
        rotary: Rotary positions, or None.
        layers: In order.
        final_norm: After the last layer.
        head: Hidden size to vocabulary.
        activation: Of the MLP.
        is_gated: The MLP multiplies ``activation(gate)`` with the up projection.
        has_parallel_residual: Attention and MLP read the same input (GPT-NeoX).
        dtype: Of activations.
        device: Where everything is.
        native: Compiled kernels, or None; see ``with_native``.
        small_steps: Compiled code for all layers at once, for steps of few tokens, or None.
    """

    geometry: CacheGeometry
    num_heads: int
    embedding: torch.Tensor
    embedding_scale: torch.Tensor | None
    position_embedding: torch.Tensor | None
    rotary: RotaryTable | None
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    is_gated: bool
    has_parallel_residual: bool
    dtype: torch.dtype
    device: torch.device
    native: NativeKernels | None = None
    small_steps: NativeInt8Decoder | None = None

    @property
    def num_embeddings(self) -> int:
        """Token ids it can read."""
        return self.embedding.shape[0]

    @property
    def vocab_size(self) -> int:
        """Logits it yields."""
        return self.head.out_features

    def linears(self) -> list[Linear]:
        """Every matrix product of a step, in order of execution, the head last."""
        products: list[Linear] = []
        for layer in self.layers:
            products += (layer.qkv, layer.attention_out, layer.mlp_in, layer.mlp_out)
        return [*products, self.head]

    def with_linears(self, change: Callable[[Linear], Linear]) -> Decoder:
        """The same model with every linear layer, output head included, as ``change`` makes it."""
        layers = tuple(
            replace(
                layer,
                qkv=change(layer.qkv),
                attention_out=change(layer.attention_out),
                mlp_in=change(layer.mlp_in),
                mlp_out=change(layer.mlp_out),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, head=change(self.head))

    def with_native(self, native: NativeKernels) -> Decoder:
        """The same model, computing with compiled kernels where there is one. To be called before ``pack``."""
        assert native.head_dim == self.geometry.head_dim, "kernels are compiled for one size of heads"
        norms = [self.final_norm]
        for layer in self.layers:
            norms += [layer.attention_norm, layer.mlp_norm]
            norms += [norm for norm in (layer.query_norm, layer.key_norm) if norm is not None]
        for norm in norms:
            if isinstance(norm, RmsNorm):
                norm.use(native, self.dtype)
        for linear in self.linears():
            if isinstance(linear, Int8Linear):
                linear.use(native)
        small_steps = NativeInt8Decoder(self, native) if NativeInt8Decoder.supports(self, native) else None
        return replace(self, native=native, small_steps=small_steps)

    def pack(self) -> None:
        """Lay the weights out for this device's kernels, once and for all."""
        for linear in self.linears():
            linear.pack()

    def forward(
        self, tokens: torch.Tensor, layout: StepLayout, cache: PagedKVCache, clock: AttentionClock | None = None
    ) -> torch.Tensor:
        """Run every layer over a packed step; its keys and values are in the cache afterwards.

        Args:
            tokens: ``[T]`` token ids in packed order.
            layout: The step.
            cache: This model's.
            clock: Sums up the time spent in attention.

        Returns:
            ``[padded_rows(T), hidden_size]`` before the final norm: only the rows whose logits are wanted go on, see
            ``logits``.
        """
        # [T, hidden_size]
        hidden = functional.embedding(tokens, self.embedding)
        if self.embedding_scale is not None:
            hidden = hidden * self.embedding_scale
        if self.position_embedding is not None:
            # A draft may be asked past its own context, where any guess will do; a target never is.
            positions = layout.positions.clamp(max=len(self.position_embedding) - 1)
            hidden = hidden + functional.embedding(positions, self.position_embedding)
        if self.small_steps is not None and self.small_steps.serves(layout, cache):
            return self.small_steps.forward(hidden, layout, cache, clock)
        tables = None if self.rotary is None else self.rotary.tables(layout.num_positions)
        rotation = None
        if self.rotary is not None and self.native is None:
            rotation = self.rotary.at(layout.positions, layout.num_positions)
        num_tokens = layout.num_tokens
        num_rows = padded_rows(num_tokens)
        hidden = _pad(hidden, num_rows)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.attention_norm(hidden)).narrow(0, 0, num_tokens)
            if clock is not None:
                clock.start()
            # [T, num_heads * head_dim]
            if self.native is None:
                attended = attend(qkv, index, layer, self.num_heads, self.rotary, rotation, cache, layout)
            else:
                attended = attend_natively(qkv, index, layer, self.num_heads, tables, cache, layout, self.native)
            if clock is not None:
                clock.stop()
            attended = _pad(attended, num_rows)
            if self.has_parallel_residual:
                expanded = self._expand(layer, hidden)
                hidden = layer.mlp_out.add_to(layer.attention_out.add_to(hidden, attended), expanded)
            else:
                hidden = layer.attention_out.add_to(hidden, attended)
                hidden = layer.mlp_out.add_to(hidden, self._expand(layer, hidden))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab_size]`` of chosen rows ``[n, hidden_size]`` of what ``forward`` returned."""
        return self.head(self.final_norm(hidden))

    def _expand(self, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        """The MLP up to its activation, ``[T, intermediate_size]``."""
        inner = layer.mlp_in(layer.mlp_norm(hidden))
        compiled = COMPILED_ACTIVATIONS.get(self.activation)
        if self.native is not None and compiled is not None:
            return self.native.activate(compiled, inner, is_gated=self.is_gated)
        if not self.is_gated:
            return self.activation(inner)
        gate, up = inner.chunk(2, dim=-1)
        return self.activation(gate) * up


def _pad(rows: torch.Tensor, count: int) -> torch.Tensor:
    """``rows`` with zeros below, ``count`` in all. Every product works row by row: nothing spreads."""
    missing = count - rows.shape[0]
    if missing == 0:
        return rows
    return torch.cat((rows, torch.zeros((missing, rows.shape[1]), dtype=rows.dtype, device=rows.device)))
