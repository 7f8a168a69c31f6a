"""BlockLayout: where each layer's keys and values lie in a cache block whose sections keep rows of different shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention.cache_geometry import BlockRows
from helix_jobs.engine.attention.stored_rows import has_scales

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A block of a model whose layers keep keys of different shapes, in several sections (see ``CacheSections``).

    A block belongs to one section at a time, whose layers lie in it one behind another: first a layer's keys, then its
    values. So a layer of large heads takes the place of several layers of small ones in blocks of another section. The
    size of a block is a multiple of each layer's row, and each layer begins at a multiple of its own. Every layer can
    then see the whole pool as rows of its own size.

    Attributes:
        size: Elements of a block.
        row_sizes: For each layer, the elements of a row, ``block_size * head_dim``.
        firsts: For each layer, the first row of its keys in a block. Its values begin ``num_kv_heads`` rows later.
    """

    size: int
    row_sizes: tuple[int, ...]
    firsts: tuple[int, ...]

    @classmethod
    def of(cls, geometry: CacheGeometry, sections: Sequence[int], block_size: int) -> BlockLayout:
        """Lay out a block.

        Args:
            geometry: Shapes of the model's keys and values.
            sections: The section of each of its layers.
            block_size: Tokens a block.
        """
        assert geometry.can_share_blocks, "values must be rows of the same size"
        row_sizes = tuple(block_size * shape.head_dim for shape in geometry.layers)
        firsts = [0] * len(row_sizes)
        used = dict.fromkeys(sections, 0)
        # Large rows first: behind them smaller ones of a power of two need no padding.
        for layer in sorted(range(len(row_sizes)), key=lambda layer: -row_sizes[layer]):
            shape, row_size, section = geometry.layers[layer], row_sizes[layer], sections[layer]
            if shape.source is None:
                firsts[layer] = -(-used[section] // row_size)
                used[section] = (firsts[layer] + 2 * shape.num_kv_heads) * row_size
        for layer, shape in enumerate(geometry.layers):
            if shape.source is not None:
                firsts[layer] = firsts[shape.source]
        unit = lcm(*row_sizes)
        return cls(-(-max(used.values()) // unit) * unit, row_sizes, tuple(firsts))

    def rows_of(self, layer: int, num_heads: int) -> BlockRows:
        """The rows of a layer, given its key-value heads."""
        return BlockRows(num_heads, self.size // self.row_sizes[layer])

    def block_bytes(self, block_size: int, stored: torch.dtype) -> int:
        """Bytes of a block, and of the scales of all rows that it may have.

        Args:
            block_size: Tokens a block.
            stored: The dtype of the cache's numbers.
        """
        scales = 0
        if has_scales(stored):
            num_rows = sum(self.size // row_size for row_size in set(self.row_sizes))
            scales = num_rows * block_size * torch.float32.itemsize
        return self.size * stored.itemsize + scales
