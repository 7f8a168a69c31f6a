"""Row tiles: matrix products in which a row's result does not depend on the rows beside it.

A library chooses its kernel by the number of rows, and two kernels may sum in different orders. In bfloat16 that often
suffices to change a token, so an answer would depend on the rest of the batch and on the drafts. Where a trial finds
such a dependence, products are computed only in numbers of rows that all round alike. See He et al., "Defeating
Nondeterminism in LLM Inference" (Thinking Machines Lab, 2025), for the same idea in custom kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from helix_jobs.engine.weights.rounding import TRIED_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class RowTiles:
    """The numbers of rows in which a product may be computed.

    Attributes:
        least: Fewer rows are padded to this number.
        most: More rows are computed this many at a time; None computes any number at once.
    """

    least: int = 2
    most: int | None = None

    def apply(self, product: Callable[..., torch.Tensor], *operands: torch.Tensor) -> torch.Tensor:
        """``product(*operands)``, ``[n, out_features]``, computed in permitted numbers of rows.

        Args:
            product: Works row by row.
            operands: Each ``[n, ...]``.
        """
        count = operands[0].shape[0]
        if count < self.least:
            padded = [functional.pad(one, (0, 0, 0, self.least - count)) for one in operands]
            return product(*padded).narrow(0, 0, count)
        if self.most is None or count <= self.most:
            return product(*operands)
        tiles = zip(*[one.split(self.most) for one in operands], strict=True)
        return torch.cat([self.apply(product, *tile) for tile in tiles])


ANY_ROWS: Final = RowTiles()


def candidates(classes: Sequence[int | None], counts: Sequence[int] = TRIED_ROWS) -> tuple[RowTiles, ...]:
    """Tiles within which every number of rows rounds alike; empty where there are none.

    Either the small numbers agree, and larger ones are cut; or the large ones agree, and smaller ones are padded.
    Untried numbers between two that agree are assumed to agree with them.
    """
    if classes[0] is not None and len(set(classes)) == 1:
        return (ANY_ROWS,)
    offered = []
    if classes[0] is not None:
        agreeing = next(index for index, name in enumerate(classes) if name != classes[0])
        if agreeing > 1:
            offered.append(RowTiles(most=counts[agreeing - 1]))
    if classes[-1] is not None:
        first = len(classes) - 1
        while first and classes[first - 1] == classes[-1]:
            first -= 1
        if first < len(classes) - 1:
            offered.append(RowTiles(least=counts[first]))
    return tuple(offered)
