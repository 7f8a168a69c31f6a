"""AdapterPlan: the adapters of a step's rows, planned on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from helix_jobs.engine.devices.shape_sizes import padded_rows
from helix_jobs.engine.weights.adapter_rows import AdapterRows, RowGroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.step_layout import TokenSlice
    from helix_jobs.engine.attention.step_plan import SharedTensors, StepPlan

    IntArray = NDArray[np.int64]

# Adapters whose columns one row is multiplied with, of which it keeps those of one.
# Trade-off: more of them waste products; fewer take more calls, and copies of the rows.
MOST_TOGETHER: Final = 8


@dataclass(frozen=True, slots=True)
class _PlannedGroup:
    """A ``RowGroup`` on the host."""

    first: int
    last: int
    owners: IntArray | None
    rows: IntArray | None = None

    def arrays(self) -> list[IntArray]:
        return [one for one in (self.owners, self.rows) if one is not None]

    def on_device(self, uploaded: Iterator[torch.Tensor]) -> RowGroup:
        owners = None if self.owners is None else next(uploaded)
        return RowGroup(self.first, self.last, owners, None if self.rows is None else next(uploaded))


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The groups of a pass (satisfies ``AttentionPlan``)."""

    groups: tuple[_PlannedGroup, ...]

    @classmethod
    def of(cls, slices: Sequence[TokenSlice], plan: StepPlan, num_adapters: int, *, repeats: bool) -> AdapterPlan:
        """Plan for slices of which at least one has an adapter.

        Args:
            slices: As they were given to the planner of ``plan``.
            plan: The step.
            num_adapters: How many adapters the model has.
            repeats: Whether shapes must repeat: all adapters then stand in one group, whichever are in use.
        """
        order = list(plan.order)
        owners = np.repeat(
            np.asarray([slices[index].adapter for index in order], dtype=np.int64),
            [slices[index].num_tokens for index in order],
        )
        used = np.unique(owners[owners > 0]).tolist()
        # Products are padded by repeating the last row.
        padded = np.concatenate((owners, np.repeat(owners[-1:], padded_rows(len(plan.positions)) - len(owners))))
        if repeats:
            return cls((_PlannedGroup(1, num_adapters, padded),))
        spans = _spans(used)
        if len(spans) == 1:
            first, last = spans[0]
            is_one = first == last and bool((owners == first).all())
            return cls((_PlannedGroup(first, last, None if is_one else padded),))
        return cls(tuple(_of_rows(owners, first, last) for first, last in spans))

    def arrays(self) -> list[IntArray]:
        """See ``AttentionPlan``."""
        return [array for group in self.groups for array in group.arrays()]

    def on_device(self, uploaded: Iterator[torch.Tensor], _shared: SharedTensors) -> AdapterRows:
        """See ``AttentionPlan``."""
        return AdapterRows(tuple(group.on_device(uploaded) for group in self.groups))


def _spans(used: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last adapter of each group; ``used`` is ascending."""
    spans: list[tuple[int, int]] = []
    for adapter in used:
        if spans and adapter - spans[-1][0] < MOST_TOGETHER:
            spans[-1] = (spans[-1][0], adapter)
        else:
            spans.append((adapter, adapter))
    return spans


def _of_rows(owners: IntArray, first: int, last: int) -> _PlannedGroup:
    rows = np.flatnonzero((owners >= first) & (owners <= last))
    return _PlannedGroup(first, last, None if first == last else owners[rows], rows)
