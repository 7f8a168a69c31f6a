"""FeedForward: the part of a layer that computes each token by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.weights.linear import Linear

    Activation = Callable[[torch.Tensor], torch.Tensor]


class FeedForward(Protocol):
    """Computes packed tokens ``[T, hidden_size]`` one by one."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Its result, ``[T, hidden_size]``."""

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``residual + self(hidden)``, each ``[T, hidden_size]``."""

    def linears(self) -> tuple[Linear, ...]:
        """Its matrix products, in order of execution."""

    def with_linears(self, change: Callable[[Linear], Linear]) -> FeedForward:
        """The same feed-forward with ``change`` applied to every linear layer."""


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """``down(activation(gate) * up)`` (satisfies ``FeedForward``).

    Attributes:
        gate_up: Gate and up projection in one product.
        down: Projection back to the hidden size.
        activation: Activation of the gate.
    """

    gate_up: Linear
    down: Linear
    activation: Activation

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.down(self._inner(hidden))

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.down.add_to(residual, self._inner(hidden))

    def _inner(self, hidden: torch.Tensor) -> torch.Tensor:
        # each: [T, intermediate_size]
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.activation(gate) * up

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return self.gate_up, self.down

    def with_linears(self, change: Callable[[Linear], Linear]) -> GatedFeedForward:
        """See ``FeedForward``."""
        return replace(self, gate_up=change(self.gate_up), down=change(self.down))


@dataclass(frozen=True, slots=True)
class PlainFeedForward:
    """``down(activation(up))`` (satisfies ``FeedForward``).

    Attributes:
        up: Projection to the intermediate size.
        down: Projection back to the hidden size.
        activation: Activation between the two.
    """

    up: Linear
    down: Linear
    activation: Activation

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.down(self.activation(self.up(hidden)))

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.down.add_to(residual, self.activation(self.up(hidden)))

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return self.up, self.down

    def with_linears(self, change: Callable[[Linear], Linear]) -> PlainFeedForward:
        """See ``FeedForward``."""
        return replace(self, up=change(self.up), down=change(self.down))


@dataclass(frozen=True, slots=True)
class NoFeedForward:
    """Nothing: the feed-forward of a layer that has attention or a recurrence alone (satisfies ``FeedForward``)."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return hidden.new_zeros(hidden.shape)

    def add_to(self, residual: torch.Tensor, _hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return residual

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return ()

    def with_linears(self, _change: Callable[[Linear], Linear]) -> NoFeedForward:
        """See ``FeedForward``."""
        return self
