"""CompiledExperts: all experts of a layer in one compiled call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from torch.nn import functional

from helix_jobs.engine.kernels.cpu.expert_table import MOST_PARTS, ExpertTable
from helix_jobs.engine.kernels.cpu.packed_linear import CompiledPackedLinear
from helix_jobs.engine.kernels.cpu.plain_linear import CompiledPlainLinear
from helix_jobs.engine.model.activations import ClampedSwiglu, tanh_gelu
from helix_jobs.engine.model.experts import Experts
from helix_jobs.engine.model.feed_forward import GatedFeedForward, PlainFeedForward
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.router import Routes
    from helix_jobs.engine.weights.linear import Linear

_GATES: Final[dict[Callable[[torch.Tensor], torch.Tensor], str]] = {
    functional.silu: "silu",
    functional.gelu: "gelu",
    tanh_gelu: "tanh_gelu",
}


@dataclass(frozen=True, slots=True)
class CompiledExperts(Experts):
    """Experts, from the router's choice to the weighted sum, in one call (satisfies ``FeedForward``).

    A step of few tokens has one to eight rows for each expert. With a call of torch for each product most of its time
    went by outside the products, and within them on kernels that are made for more rows.

    Attributes:
        native: The kernels.
    """

    native: NativeKernels = field(kw_only=True)
    _table: ExpertTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner, outer = zip(*(expert.linears() for expert in self.experts), strict=True)
        name = _activation(self.experts[0])
        assert name is not None, "these experts are served"
        clamp = self.experts[0].activation if name == "clamped" else None  # type: ignore[attr-defined]
        numbers = (clamp.alpha, clamp.limit) if isinstance(clamp, ClampedSwiglu) else (0.0, 0.0)
        object.__setattr__(self, "_table", ExpertTable.of(inner, outer, name, numbers))

    @classmethod
    def of(cls, experts: Experts, native: NativeKernels) -> CompiledExperts | None:
        """The same experts over the same weights; None if the kernels do not compute them."""
        first = _activation(experts.experts[0])
        linears = [linear for expert in experts.experts for linear in expert.linears()]
        if first is None or not all(_serves(linear, native) for linear in linears):
            return None
        if any(_activation(expert) != first for expert in experts.experts):
            return None
        compiled = tuple(expert.with_linears(lambda one: _compiled(one, native)) for expert in experts.experts)
        return cls(experts.router, compiled, experts.shared, native=native)

    def routed(self, hidden: torch.Tensor, routes: Routes) -> torch.Tensor:
        """See ``Experts``."""
        return self.native.experts(hidden, routes.experts, routes.weights, self._table)


def _activation(expert: FeedForward) -> str | None:
    """The name of a gated activation in compiled code, if it is there."""
    if isinstance(expert, GatedFeedForward):
        return _GATES.get(expert.activation)
    if isinstance(expert, PlainFeedForward) and isinstance(expert.activation, ClampedSwiglu):
        return "clamped"
    return None


def _serves(linear: Linear, native: NativeKernels) -> bool:
    if isinstance(linear, DenseLinear):
        return CompiledPlainLinear.serves(linear, native)
    if not isinstance(linear, PackedLinear) or len(linear.parts) > MOST_PARTS:
        return False
    return all(part.order is None for part in linear.parts)


def _compiled(linear: Linear, native: NativeKernels) -> Linear:
    if isinstance(linear, DenseLinear):
        return CompiledPlainLinear(linear, native)
    assert isinstance(linear, PackedLinear), "dense or in blocks"
    return CompiledPackedLinear(linear, native)
