"""CachePools: the tensors of a paged cache, and each layer's views of them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from helix_jobs.engine.attention.block_layout import BlockLayout
from helix_jobs.engine.attention.cache_geometry import BlockRows
from helix_jobs.engine.attention.stored_rows import has_scales
from helix_jobs.engine.cache_sections import pools_of

if TYPE_CHECKING:
    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.cache_sections import LayerSections


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the pools of a cache are made.

    Attributes:
        num_blocks: Blocks of each pool.
        block_size: Tokens a block.
        stored: The dtype of keys and values.
        device: Where they lie.
    """

    num_blocks: int
    block_size: int
    stored: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class CachePools:
    """Keys and values of every layer.

    Each list but the last has an entry for each layer. Those of scales are empty where the pools are in the model's
    dtype.

    Attributes:
        keys: ``[num_blocks * stride, block_size * width]``, the gather view of a layer's keys.
        values: The same of its values; the keys again where values are columns of them.
        key_scales: ``[num_blocks * stride, block_size]`` float32.
        value_scales: The same of the values.
        block_rows: Which rows of these views a block has.
        owners: The layer in whose name each layer's rows were made; layers of one owner share them.
        tensors: All that was allocated.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    key_scales: list[torch.Tensor] = field(default_factory=list)
    value_scales: list[torch.Tensor] = field(default_factory=list)
    block_rows: list[BlockRows] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def allocate(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Make one more tensor of zeros."""
        self.tensors.append(_zeros(shape, dtype, device))
        return self.tensors[-1]

    def repeat(self, owner: int) -> None:
        """Add a layer that shares the rows of an earlier one."""
        self.owners.append(owner)
        self.block_rows.append(self.block_rows[owner])
        for one in (self.keys, self.values, self.key_scales, self.value_scales):
            one.extend(one[owner : owner + 1])


def separate_pools(geometry: CacheGeometry, sections: LayerSections, settings: PoolSettings) -> CachePools:
    """Make a pool for each layer's keys, and one for its values. Layers of different sections share them.

    Args:
        geometry: Shapes of the model's keys and values; alike in all layers if there are several sections.
        sections: The sections of its layers.
        settings: See there.
    """
    made, num_blocks, block_size = CachePools(), settings.num_blocks, settings.block_size
    stored, device = settings.stored, settings.device
    own = [index for index, shape in enumerate(geometry.layers) if shape.source is None]
    places = pools_of([sections.of(index) for index in own])
    # The first layer of each pool.
    firsts = dict(reversed(list(zip(places, own, strict=True))))
    of_own = dict(zip(own, places, strict=True))
    for layer, shape in enumerate(geometry.layers):
        keeper = layer if shape.source is None else shape.source
        owner = firsts[of_own[keeper]]
        if owner != layer:
            made.repeat(owner)
            continue
        rows = num_blocks * shape.num_kv_heads
        made.owners.append(layer)
        made.block_rows.append(BlockRows(shape.num_kv_heads, shape.num_kv_heads))
        made.keys.append(made.allocate((rows, block_size * shape.head_dim), stored, device))
        if has_scales(stored):
            assert shape.has_values, "a latent and the rotated key beside it would need scales of their own"
            for scales in (made.key_scales, made.value_scales):
                scales.append(made.allocate((rows, block_size), torch.float32, device))
        if not shape.has_values:  # columns of the keys
            made.values.append(made.keys[-1])
            continue
        made.values.append(made.allocate((rows, block_size * shape.value_width), stored, device))
    return made


def shared_pool(geometry: CacheGeometry, sections: LayerSections, settings: PoolSettings) -> CachePools:
    """Make one pool for all layers, whose blocks each section divides in its own way; see ``BlockLayout``.

    Arguments as in ``separate_pools``.
    """
    made, num_blocks, block_size = CachePools(), settings.num_blocks, settings.block_size
    stored, device = settings.stored, settings.device
    layout = BlockLayout.of(geometry, sections.layers, block_size)
    # [num_blocks * size]
    pool = made.allocate((num_blocks, layout.size), stored, device).view(-1)
    # Row size -> [rows, block_size]. Every layer's rows have a place in the scales of rows of their size.
    scales = {}
    if has_scales(stored):
        for size in dict.fromkeys(layout.row_sizes):
            scales[size] = made.allocate((num_blocks * layout.size // size, block_size), torch.float32, device)
    for layer, shape in enumerate(geometry.layers):
        if shape.source is not None:
            made.repeat(shape.source)
            continue
        size, first = layout.row_sizes[layer], layout.firsts[layer]
        behind = first + shape.num_kv_heads
        made.owners.append(layer)
        made.block_rows.append(layout.rows_of(layer, shape.num_kv_heads))
        made.keys.append(pool[first * size :].view(-1, size))
        made.values.append(pool[behind * size :].view(-1, size))
        if scales:
            made.key_scales.append(scales[size][first:])
            made.value_scales.append(scales[size][behind:])
    return made


def _zeros(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make a pool of zeros.

    On the CPU the system commits its pages as blocks are first written, so a large pool costs nothing until it is used;
    ``torch.zeros`` would write them all. The pool begins with a page, so that no vector of 64 bytes lies across two
    cache lines: numpy begins 16 bytes behind a line, with which attention takes up to 1.17 times as long.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    pages = np.zeros(num_bytes + mmap.PAGESIZE, dtype=np.uint8)
    first = -pages.ctypes.data % mmap.PAGESIZE
    return torch.from_numpy(pages[first : first + num_bytes]).view(dtype).view(shape)
