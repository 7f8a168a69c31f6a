"""QueryLift: the second of two products that yield queries (DeepSeek-V2's low-rank queries)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear


@dataclass(frozen=True, slots=True)
class QueryLift:
    """A norm and a product of the first columns of what a layer's first product yields; the others stay.

    Attributes:
        norm: Norm between the two products.
        product: From the narrow queries to those of all heads.
    """

    norm: Norm
    product: Linear

    def __call__(self, inner: torch.Tensor) -> torch.Tensor:
        """``[T, out_features + rest]`` of ``[T, in_features + rest]``."""
        narrow, rest = inner.split((self.product.in_features, inner.shape[1] - self.product.in_features), dim=1)
        return torch.cat((self.product(self.norm(narrow)), rest), dim=1)

    def with_linears(self, change: Callable[[Linear], Linear]) -> QueryLift:
        """The same with ``change`` applied to its product."""
        return replace(self, product=change(self.product))
