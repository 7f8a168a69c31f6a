"""AdaptedLinear: a linear layer to whose result low-rank products are added, for each row those of its own adapter.

All adapters stand in one matrix, side by side, and each row keeps the columns of its own: rows of several adapters and
of none are computed together, without a loop over requests. Punica (Chen et al., MLSys 2024) and S-LoRA (Sheng et al.,
MLSys 2024) do the same with kernels of their own; plain products run on every device.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from helix_jobs.engine.weights.adapter_rows import AdapterSwitch
    from helix_jobs.engine.weights.linear import Linear


@dataclass(frozen=True, slots=True, eq=False)
class StackedPairs:
    """The pairs of all adapters for one product, in the order of the adapters.

    Attributes:
        down: ``[columns, in_features]``.
        up: ``[columns, out_features]``, scaled. Trade-off: where a product stands for several modules, a pair's rows
            hold zeros for the outputs of the others. That takes some memory, and saves a product for each module.
        ranks: Columns of each adapter; 0 for one that does not change this product.
        columns: ``[columns]`` the adapter of each column, counted from 1.
        zero: ``[1]`` in the dtype of both matrices: what a row has in the columns of other adapters.
    """

    down: torch.Tensor
    up: torch.Tensor
    ranks: tuple[int, ...]
    columns: torch.Tensor
    zero: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory of both matrices."""
        return self.down.nbytes + self.up.nbytes


class AdaptedLinear:
    """A linear layer with adapters (satisfies ``Linear``), whatever form the layer's own weight has.

    Rows without an adapter come out as the layer alone yields them, bit for bit: zeros are added to them.

    Trade-off: a row is multiplied with the columns of all adapters of its group, of which it keeps its own. With eight
    adapters of rank 16 that is some 6 % of a product of 4,096 inputs and outputs. Larger groups are parted by row, see
    ``AdapterPlan``.

    Args:
        base: The layer itself.
        pairs: What is added.
        switch: Says which rows have which adapter.
    """

    def __init__(self, base: Linear, pairs: StackedPairs, switch: AdapterSwitch) -> None:
        self.base = base
        self.in_features = base.in_features
        self.out_features = base.out_features
        self._pairs = pairs
        self._switch = switch
        self._starts = tuple(itertools.accumulate(pairs.ranks, initial=0))

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return self.base.nbytes + self._pairs.nbytes

    def pack(self) -> None:
        """See ``Linear``."""
        self.base.pack()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        result = self.base(hidden)
        return result if self._switch.rows is None else self._added(result, hidden)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        result = self.base.add_to(residual, hidden)
        return result if self._switch.rows is None else self._added(result, hidden)

    def _added(self, result: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """``result``, which nobody else has yet, with the adapters' products of ``hidden`` added in place."""
        rows, pairs = self._switch.rows, self._pairs
        assert rows is not None, "the caller has looked"
        for index, group in enumerate(rows.groups):
            start, stop = self._starts[group.first - 1], self._starts[group.last]
            if start == stop:
                continue
            down, up, columns = (one.narrow(0, start, stop - start) for one in (pairs.down, pairs.up, pairs.columns))
            given = hidden if group.rows is None else hidden.index_select(0, group.rows)
            # [n, columns]
            narrow = functional.linear(given, down)
            if group.owners is not None:
                mask = rows.mask(index, pairs.ranks, columns)
                # Not a factor of zero: another adapter may overflow here, and infinity times zero is no number.
                narrow = torch.where(mask, narrow, pairs.zero)
            if group.rows is None:
                result.addmm_(narrow, up)
            else:
                result.index_add_(0, group.rows, narrow @ up)
        return result
