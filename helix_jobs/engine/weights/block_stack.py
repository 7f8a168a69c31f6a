"""BlockStack: equally large matrices of many experts, which stay in the blocks of their file."""

from __future__ import annotations

from dataclasses import dataclass

from helix_jobs.engine.weights.block_matrix import BlockMatrix


@dataclass(frozen=True, slots=True)
class BlockStack:
    """Matrices one upon another, as one parameter of a loaded model holds them.

    Attributes:
        parts: Each has the rows of every matrix, matrix after matrix. The outputs of a matrix are those of all parts,
            side by side: a gate and an up projection may be of different layouts.
        count: Number of matrices.
    """

    parts: tuple[BlockMatrix, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def matrix(self, index: int) -> list[BlockMatrix]:
        """The parts of one matrix; they share the stack's memory."""
        found = []
        for part in self.parts:
            rows = part.shape[0] // self.count
            found.append(BlockMatrix(part.layout, part.data[index * rows : (index + 1) * rows]))
        return found
