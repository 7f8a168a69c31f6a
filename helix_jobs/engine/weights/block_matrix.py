"""BlockMatrix: a weight matrix as a file stores it, in blocks of whole numbers; no more than a tile is ever decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.weights.block_layouts import BlockLayout

# Weights that are decoded at once: their float32 numbers, and those of the steps in between, take some 10 MB.
_TILE_WEIGHTS: Final = 1 << 19


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix of blocks. A block never spans two rows, so rows can be taken and put in another order as they are.

    Attributes:
        layout: The type of its blocks.
        data: ``[rows, bytes of a row]`` uint8, in memory of its own.
        order: ``[columns]`` int64: which column of the matrix each stored column is; None if they are in order.
    """

    layout: BlockLayout
    data: torch.Tensor
    order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: outputs and inputs of a linear layer."""
        rows, nbytes = self.data.shape
        return rows, nbytes // self.layout.nbytes * self.layout.weights

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks, and of the order of its columns."""
        return self.data.nbytes + (0 if self.order is None else self.order.nbytes)

    def to(self, device: torch.device) -> BlockMatrix:
        """The same blocks on a device; this matrix if it is there already."""
        return BlockMatrix(self.layout, self.data.to(device), None if self.order is None else self.order.to(device))

    def with_rows(self, indices: torch.Tensor) -> BlockMatrix:
        """These rows ``[n]``, in this order."""
        return BlockMatrix(self.layout, self.data.index_select(0, indices), self.order)

    def is_like(self, other: BlockMatrix) -> bool:
        """Whether the rows of both can stand in one matrix."""
        if self.layout is not other.layout:
            return False
        if self.order is None or other.order is None:
            return self.order is other.order
        return torch.equal(self.order, other.order)

    def tiles(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The matrix decoded tile by tile: which rows, and their float32 weights ``[n, columns]``."""
        rows, columns = self.shape
        size = max(1, _TILE_WEIGHTS // columns)
        for first in range(0, rows, size):
            place = slice(first, min(rows, first + size))
            yield place, self._decoded(self.data[place])

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """``[rows, columns]`` in ``dtype``."""
        result = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        for place, weights in self.tiles():
            result[place] = weights
        return result

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows ``[n]`` decoded, ``[n, columns]`` in ``dtype``."""
        return self._decoded(self.data.index_select(0, indices)).to(dtype)

    def _decoded(self, data: torch.Tensor) -> torch.Tensor:
        stored = self.layout.decode(data)
        if self.order is None:
            return stored
        weights = torch.empty_like(stored)
        weights[:, self.order] = stored
        return weights


Matrix = torch.Tensor | BlockMatrix


def look_up(tokens: torch.Tensor, embedding: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """The embeddings ``[T, hidden_size]`` of tokens ``[T]``; those in blocks are decoded to ``dtype``."""
    if isinstance(embedding, BlockMatrix):
        return embedding.rows(tokens, dtype)
    return functional.embedding(tokens, embedding)
