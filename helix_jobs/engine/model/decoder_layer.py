"""DecoderLayer: the parts of one transformer layer, and how their results are added to the residual."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.model.altup import AltUp
    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.layer_inputs import LayerInput
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.model.query_lift import QueryLift
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from helix_jobs.engine.weights.linear import Linear


class Block(Protocol):
    """A part of a layer that adds its result to the residual: a linear layer or a feed-forward."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Its result for packed tokens, ``[T, hidden_size]``."""

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``residual + self(hidden)``, each ``[T, hidden_size]``, in one operation where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One transformer layer. A default computes nothing.

    Attributes:
        attention_norm: Norm of what attention reads; None where attention reads the residual itself (OLMo 2).
        qkv: Queries, keys and values in one product, see ``AttentionStep.attend``. In a recurrent layer: what
            ``recurrence`` reads. None in a layer that is a feed-forward alone (Nemotron-H).
        attention_out: Projection from the heads, or from ``recurrence``, back to the hidden size; None where ``qkv``
            is.
        feed_forward_norm: Norm of what the feed-forward reads. None where it reads the residual itself, or in a
            parallel layer what attention reads.
        feed_forward: The part that computes each token by itself.
        attention_out_norm: Norm of attention's result before it is added to the residual (Gemma 2), or None.
        feed_forward_out_norm: Norm of the feed-forward's result before it is added, or None.
        residual_scale: Factor of both results before they are added (Granite).
        is_parallel: Whether the feed-forward reads the layer's input, as attention does (GPT-NeoX).
        has_gate: Whether attention's result is multiplied by the sigmoid of a gate: as many outputs of ``qkv`` as
            queries, behind the values (Qwen3-Next).
        gates_heads: Whether these are one for each head instead, and multiply it as a whole (LFM3).
        recurrence: What stands in the place of attention (LFM2's convolutions) or beside it (Falcon-H1), or None.
        query_lift: Makes queries of what ``qkv`` yields in their place (DeepSeek-V2), or None.
        attention_width: Where attention stands beside ``recurrence``, the outputs of ``qkv`` that it reads, before
            those that ``recurrence`` reads; else 0 (Falcon-H1). ``attention_out`` then reads both results side by side.
        layer_input: Works the layer's own input into the residual, behind the feed-forward (Gemma 4); or None.
        scale: Factor of the residual behind the layer (Gemma 4).
        altup: What the layer does with the other residual streams (Gemma 3n), or None.
    """

    attention_norm: Norm | None
    qkv: Linear | None
    attention_out: Linear | None
    feed_forward_norm: Norm | None
    feed_forward: FeedForward
    attention_out_norm: Norm | None = None
    feed_forward_out_norm: Norm | None = None
    residual_scale: float = 1.0
    is_parallel: bool = False
    has_gate: bool = False
    gates_heads: bool = False
    recurrence: Recurrence | None = None
    query_lift: QueryLift | None = None
    attention_width: int = 0
    layer_input: LayerInput | None = None
    scale: float = 1.0
    altup: AltUp | None = None

    def linears(self) -> tuple[Linear, ...]:
        """Its matrix products, in order of execution."""
        lift = None if self.query_lift is None else self.query_lift.product
        mixing = (one for one in (self.qkv, lift, self.attention_out) if one is not None)
        given = () if self.layer_input is None else self.layer_input.linears()
        beside = () if self.altup is None else self.altup.linears()
        return *mixing, *beside, *self.feed_forward.linears(), *given

    def with_linears(self, change: Callable[[Linear], Linear]) -> DecoderLayer:
        """The same layer with ``change`` applied to every linear layer."""
        return replace(
            self,
            qkv=None if self.qkv is None else change(self.qkv),
            query_lift=None if self.query_lift is None else self.query_lift.with_linears(change),
            attention_out=None if self.attention_out is None else change(self.attention_out),
            feed_forward=self.feed_forward.with_linears(change),
            layer_input=None if self.layer_input is None else self.layer_input.with_linears(change),
            altup=None if self.altup is None else self.altup.with_linears(change),
        )

    def add_attention(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add the projected heads ``[T, num_heads * value_width]`` to the residual ``[T, hidden_size]``."""
        assert self.attention_out is not None, "the layer is not a feed-forward alone"
        return self._add(self.attention_out, self.attention_out_norm, residual, attended)

    def add_feed_forward(self, residual: torch.Tensor, hidden: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        """Add the feed-forward to the residual.

        Args:
            residual: ``[T, hidden_size]``, attention's result in it.
            hidden: ``[T, hidden_size]``, the layer's input.
            normal: ``[T, hidden_size]``, what attention read.
        """
        given = hidden if self.is_parallel else residual
        if self.feed_forward_norm is not None:
            given = self.feed_forward_norm(given)
        elif self.is_parallel:
            given = normal
        return self._add(self.feed_forward, self.feed_forward_out_norm, residual, given)

    def finished(self, hidden: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """The residual ``[T, hidden_size]`` behind the layer; ``given`` is its own input ``[T, width]``, if any."""
        if self.layer_input is not None and given is not None:
            hidden = self.layer_input.add_to(hidden, given)
        return hidden if self.scale == 1.0 else hidden * self.scale

    def _add(self, block: Block, norm: Norm | None, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        if norm is None and self.residual_scale == 1.0:
            return block.add_to(residual, hidden)
        result = block(hidden)
        if norm is not None:
            result = norm(result)
        return residual + (result if self.residual_scale == 1.0 else result * self.residual_scale)
