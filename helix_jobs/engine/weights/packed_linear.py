"""PackedLinear: a linear layer over weights that stay in the blocks of their file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from helix_jobs.engine.weights.block_matrix import BlockMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class PackedLinear:
    """A linear layer over block matrices, and a bias (satisfies ``Linear``).

    It computes what a dense layer over the decoded weights computes: each weight is decoded to float32 and rounded to
    the dtype of the activations. Only the order of the sums differs.

    Trade-off: without compiled kernels each call decodes every weight with torch's operators, tile by tile, which takes
    longer than the product. In return a model fits that would not fit dense.

    Args:
        parts: Matrices with equally many columns. The layer's outputs are theirs, side by side: stacked queries, keys
            and values may be of different layouts.
        bias: ``[out_features]`` in the dtype of the activations, or None.
    """

    def __init__(self, parts: Sequence[BlockMatrix], bias: torch.Tensor | None) -> None:
        self.parts = _merged(parts)
        self.bias = bias
        self.in_features = self.parts[0].shape[1]
        self.out_features = sum(part.shape[0] for part in self.parts)

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return sum(part.nbytes for part in self.parts) + (0 if self.bias is None else self.bias.nbytes)

    def placed_parts(self) -> Iterator[tuple[int, BlockMatrix]]:
        """Each part and the first output that it computes."""
        first = 0
        for part in self.parts:
            yield first, part
            first += part.shape[0]

    def with_outputs(self, order: torch.Tensor) -> PackedLinear:
        """The layer with its outputs in another order.

        Args:
            order: ``[out_features]`` which of its outputs stands where, each once.
        """
        # [out_features]: which part has each output, and as which of its rows
        starts = torch.tensor([first for first, _ in self.placed_parts()])
        owners = torch.bucketize(order, starts, right=True) - 1
        rows = order - starts[owners]
        parts = []
        for owner, indices in _runs(owners, rows):
            parts.append(self.parts[owner].with_rows(indices))
        return PackedLinear(parts, None if self.bias is None else self.bias[order])

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The decoded weight, ``[out_features, in_features]``."""
        weights = [part.dense(dtype) for part in self.parts]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def pack(self) -> None:
        """See ``Linear``: blocks stay as they are."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        product = hidden.new_empty((hidden.shape[0], self.out_features))
        for first, part in self.placed_parts():
            for place, weights in part.tiles():
                rows = slice(first + place.start, first + place.stop)
                bias = None if self.bias is None else self.bias[rows]
                product[:, rows] = functional.linear(hidden, weights.to(hidden.dtype), bias)
        return product

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return residual + self(hidden)


def _runs(owners: torch.Tensor, rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Neighbours ``[n]`` of one owner, and their rows."""
    values, counts = torch.unique_consecutive(owners, return_counts=True)
    yield from zip(values.tolist(), rows.split(counts.tolist()), strict=True)


def _merged(parts: Sequence[BlockMatrix]) -> tuple[BlockMatrix, ...]:
    """The parts, with neighbours that are alike made one. A single one keeps its memory: it may be an embedding too."""
    merged: list[list[BlockMatrix]] = []
    for part in parts:
        if merged and merged[-1][0].is_like(part):
            merged[-1].append(part)
        else:
            merged.append([part])
    return tuple(
        same[0]
        if len(same) == 1
        else BlockMatrix(same[0].layout, torch.cat([part.data for part in same]), same[0].order)
        for same in merged
    )
