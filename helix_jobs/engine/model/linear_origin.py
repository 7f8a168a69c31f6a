"""LinearOrigin: which modules of a transformers model a decoder's linear layer was made of, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import RowFactor
    from helix_jobs.engine.weights.linear import Linear


@dataclass(frozen=True, slots=True, eq=False)
class LinearOrigin:
    """A linear layer's modules: what changes these changes the layer.

    Attributes:
        modules: Their names, relative to the base model (the model without its head).
        sizes: Outputs of each.
        order: ``[out_features]`` which of their outputs stands where; None for their own order.
        factors: What the outputs are multiplied with, see ``ProjectionDescription``.
    """

    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    order: torch.Tensor | None = None
    factors: tuple[RowFactor, ...] = ()

    def arranged(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[n, out_features]`` of the modules, side by side, as the layer has them."""
        if self.factors:
            factors = torch.cat([torch.full((one.count,), one.weight) for one in self.factors])
            outputs = outputs * factors
        return outputs if self.order is None else outputs[:, self.order]


class Origins:
    """Collects the origins of linear layers while a decoder is built.

    Attributes:
        prefix: Of the names of the part that is being built: empty, or ``layers.0.``.
    """

    def __init__(self, prefix: str = "", noted: list[tuple[Linear, LinearOrigin]] | None = None) -> None:
        self.prefix = prefix
        self._noted: list[tuple[Linear, LinearOrigin]] = [] if noted is None else noted

    def inside(self, name: str) -> Origins:
        """The same collection for the module of this name."""
        return Origins(f"{self.prefix}{name}.", self._noted)

    def note(self, linear: Linear, origin: LinearOrigin) -> None:
        """Note what a layer is made of."""
        self._noted.append((linear, origin))

    def of(self, linears: list[Linear]) -> tuple[LinearOrigin | None, ...]:
        """The origin of each of these layers; None for one that is made in another way."""
        noted = {id(linear): origin for linear, origin in self._noted}
        return tuple(noted.get(id(linear)) for linear in linears)
