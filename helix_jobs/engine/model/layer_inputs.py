"""LayerInputs: what each layer reads of a token beside the residual (Gemma 4's per-layer embeddings)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.feed_forward import Activation
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear

# The sum of two parts of about equal size gets the size of one.
_SUM_SCALE: Final = 2.0**-0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """Makes the inputs of all layers: ``(norm(projection(embedded)) + table[token]) / sqrt(2)``.

    The table is large, and only looked up: its rows are never multiplied.

    Attributes:
        table: ``[num_embeddings, num_layers * width]``.
        projection: From the embedded token to ``num_layers * width``.
        norm: Norm of each layer's part of the projection.
        width: Width of a layer's input.
        table_scale: Factor of the table's rows.
        projection_scale: Factor of the projection.
        has_every_token: Whether the table has a row for every token; one without reads the first row (Gemma 3n).
    """

    table: torch.Tensor
    projection: Linear
    norm: Norm
    width: int
    table_scale: float
    projection_scale: float
    has_every_token: bool = True

    def look_up(self, tokens: torch.Tensor) -> torch.Tensor:
        """The part that depends on the token alone, ``[T, num_layers * width]``, of tokens ``[T]``."""
        if not self.has_every_token:
            tokens = torch.where(tokens < len(self.table), tokens, torch.zeros_like(tokens))
        return functional.embedding(tokens, self.table) * self.table_scale

    def of(self, looked_up: torch.Tensor, embedded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The input of each layer, ``[T, width]``.

        Args:
            looked_up: From ``look_up``.
            embedded: ``[T, hidden_size]``, what the first layer reads.
        """
        projected = self.projection(embedded) * self.projection_scale
        # [T, num_layers, width]
        projected = self.norm(projected.unflatten(1, (-1, self.width)))
        inputs: tuple[torch.Tensor, ...] = ((projected.flatten(1) + looked_up) * _SUM_SCALE).split(self.width, dim=1)
        return inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput:
    """What a layer adds to the residual: ``norm(projection(activation(gate(residual)) * input))``.

    Attributes:
        gate: From the residual to the width of an input.
        projection: Back to the hidden size.
        norm: Norm of the result.
        activation: Of the gate.
    """

    gate: Linear
    projection: Linear
    norm: Norm
    activation: Activation

    def add_to(self, residual: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """The residual ``[T, hidden_size]`` with the layer's input ``[T, width]`` worked in."""
        return residual + self.of(residual, given)

    def of(self, residual: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """What ``add_to`` adds, ``[T, hidden_size]``."""
        return self.norm(self.projection(self.activation(self.gate(residual)) * given))

    def linears(self) -> tuple[Linear, ...]:
        """Its matrix products, in order of execution."""
        return self.gate, self.projection

    def with_linears(self, change: Callable[[Linear], Linear]) -> LayerInput:
        """The same with ``change`` applied to every linear layer."""
        return replace(self, gate=change(self.gate), projection=change(self.projection))
