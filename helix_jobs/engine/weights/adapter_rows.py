"""AdapterRows: which adapter each row of a pass is computed with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class RowGroup:
    """Rows that are computed together, with adapters whose columns stand side by side.

    Adapters count from 1; 0 is the model itself.

    Attributes:
        first: The first of these adapters.
        last: The last of them.
        owners: ``[n]`` the adapter of each row, which may be none of these; None if all rows have ``first``.
        rows: ``[n]`` which rows of the pass; None for all.
    """

    first: int
    last: int
    owners: torch.Tensor | None = None
    rows: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AdapterRows:
    """The rows of one pass that adapters change, in groups.

    Attributes:
        groups: Each row with an adapter is in one that has its adapter.
    """

    groups: tuple[RowGroup, ...]
    # By group and the ranks of a product's adapters: most products of a model share them.
    _masks: dict[tuple[int, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)

    def mask(self, index: int, ranks: tuple[int, ...], columns: torch.Tensor) -> torch.Tensor:
        """Which columns belong to the adapter of each row.

        Args:
            index: The group.
            ranks: Columns of each adapter, those of other groups included.
            columns: ``[columns of the group]`` the adapter of each column.

        Returns:
            ``[n, columns of the group]`` bool.
        """
        mask = self._masks.get((index, ranks))
        if mask is None:
            owners = self.groups[index].owners
            assert owners is not None, "rows of one adapter need no mask"
            mask = self._masks[index, ranks] = owners.unsqueeze(1) == columns
        return mask


@dataclass(slots=True)
class AdapterSwitch:
    """What all adapted products of a decoder share: the rows of the pass under way.

    Attributes:
        num_adapters: How many adapters they hold.
        rows: None while no row has an adapter: the products are then the model's own.
    """

    num_adapters: int
    rows: AdapterRows | None = None
