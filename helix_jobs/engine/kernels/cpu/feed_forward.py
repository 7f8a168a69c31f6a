"""CompiledFeedForward: a feed-forward whose activation is compiled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from torch.nn import functional

from helix_jobs.engine.kernels.cpu.experts import CompiledExperts
from helix_jobs.engine.model.activations import tanh_gelu
from helix_jobs.engine.model.experts import Experts, SwitchedFeedForward
from helix_jobs.engine.model.experts_beside import ExpertsBeside
from helix_jobs.engine.model.feed_forward import GatedFeedForward, PlainFeedForward

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.weights.linear import Linear

# Activations and their names in compiled code. torch cuts a tensor into equal parts for its threads, even within a row.
# It computes the rest of a part that does not fill a vector with another function, which rounds differently. A row's
# result thus depends on the number of rows. The others are computed alike wherever an element lies, and need no kernel.
COMPILED_ACTIVATIONS: Final[dict[Callable[[torch.Tensor], torch.Tensor], str]] = {
    functional.silu: "silu",
    functional.gelu: "gelu",
    tanh_gelu: "tanh_gelu",
}


@dataclass(frozen=True, slots=True)
class CompiledFeedForward:
    """Satisfies ``FeedForward``.

    Attributes:
        inner: The linear layer before the activation: gate and up projection, or the up projection alone.
        outer: Back to the hidden size.
        activation: Its name in compiled code.
        is_gated: Whether the activation is applied to a gate.
        native: The kernels.
    """

    inner: Linear
    outer: Linear
    activation: str
    is_gated: bool
    native: NativeKernels

    @classmethod
    def of(cls, feed_forward: FeedForward, native: NativeKernels) -> FeedForward:
        """The same feed-forward with a compiled activation, or itself if there is none.

        Of experts, all in one call, or where that is not compiled each by itself.
        """
        if isinstance(feed_forward, ExpertsBeside):
            dense, experts = cls.of(feed_forward.dense, native), cls._experts(feed_forward.experts, native)
            return replace(feed_forward, dense=dense, experts=experts)
        if isinstance(feed_forward, Experts):
            return cls._experts(feed_forward, native)
        if isinstance(feed_forward, SwitchedFeedForward):
            return replace(feed_forward, inner=cls.of(feed_forward.inner, native))
        if not isinstance(feed_forward, GatedFeedForward | PlainFeedForward):
            return feed_forward
        name = COMPILED_ACTIVATIONS.get(feed_forward.activation)
        if name is None:
            return feed_forward
        inner, outer = feed_forward.linears()
        return cls(inner, outer, name, isinstance(feed_forward, GatedFeedForward), native)

    @classmethod
    def _experts(cls, experts: Experts, native: NativeKernels) -> Experts:
        if experts.shared is not None:
            experts = replace(experts, shared=cls.of(experts.shared, native))
        return CompiledExperts.of(experts, native) or experts.with_experts(lambda expert: cls.of(expert, native))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.outer(self.native.activate(self.activation, self.inner(hidden), is_gated=self.is_gated))

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return self.outer.add_to(
            residual, self.native.activate(self.activation, self.inner(hidden), is_gated=self.is_gated)
        )

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return self.inner, self.outer

    def with_linears(self, change: Callable[[Linear], Linear]) -> CompiledFeedForward:
        """See ``FeedForward``."""
        return replace(self, inner=change(self.inner), outer=change(self.outer))
