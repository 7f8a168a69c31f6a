"""PagedKVCache: the key and value block tensors of one model."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from helix_jobs.engine.attention.stored_rows import has_scales, round_rows, stored_dtype, widen_rows
from helix_jobs.engine.cache_sections import LayerSections, pools_of
from helix_jobs.engine.devices.devices import DIRECTML_DEVICE_TYPE, compiles_each_shape
from helix_jobs.engine.devices.row_writer import row_writer
from helix_jobs.engine.devices.shape_sizes import MAX_PADDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
    from helix_jobs.engine.config import CacheConfig

# Blocks cleared at once: clearing must itself need little memory.
_CLEAR_CHUNK: Final = 64


class PagedKVCache:
    """Keys and values of every layer, in blocks.

    A row of the gather view is one block of one key-value head: a sequence's keys come out of ``index_select`` already
    in the ``[heads, keys, head_dim]`` order that the batched product wants, with no transposition after it.

    The pools start at zero. Attention gives a block's unwritten rows a weight of zero, and zero times an uninitialised
    NaN would not be zero. For the same reason blocks that held non-finite values are cleared.

    Layers of different sections (see ``CacheSections``) share pools: each block belongs to one section at a time.

    Attributes:
        dtype: Of the keys and values that go in and out.
        stored: Of the pools. With int8 each row of the token view has a float32 scale; see ``stored_rows``.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        config: CacheConfig,
        dtype: torch.dtype,
        device: torch.device,
        sections: LayerSections | None = None,
    ) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self.stored = stored_dtype(config.dtype, dtype)
        self.block_size = config.block_size
        self.num_blocks = config.num_blocks
        self.is_on_directml = device.type == DIRECTML_DEVICE_TYPE
        # The last blocks take the keys and values of tokens that only pad a step to one of few shapes.
        self.spare_block = config.num_blocks if compiles_each_shape(device) else None
        spare = 0 if self.spare_block is None else -(-MAX_PADDING // config.block_size)
        # each: [(num_blocks + spare) * num_kv_heads, block_size * width]; one pool where values are columns of the keys
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        # each: [(num_blocks + spare) * num_kv_heads, block_size] float32; none where the pools are in the model's dtype
        self.key_scales: list[torch.Tensor] = []
        self.value_scales: list[torch.Tensor] = []
        self.sections = sections or LayerSections()
        pools = pools_of(self.sections.layers or (0,) * len(geometry.layers))
        # The layer in whose name each layer's pool was made.
        self._owners: list[int] = []
        for layer, shape in enumerate(geometry.layers):
            self._owners.append(pools.index(pools[layer]) if shape.source is None else shape.source)
            if self._owners[layer] != layer:
                for pools_of_layers in (self.keys, self.values, self.key_scales, self.value_scales):
                    pools_of_layers.extend(pools_of_layers[self._owners[layer] : self._owners[layer] + 1])
                continue
            rows = (config.num_blocks + spare) * shape.num_kv_heads
            self.keys.append(_zeros((rows, config.block_size * shape.head_dim), self.stored, device))
            if self.has_scales:
                assert shape.has_values, "a latent and the rotated key beside it would need scales of their own"
                for scales in (self.key_scales, self.value_scales):
                    scales.append(_zeros((rows, config.block_size), torch.float32, device))
            if not shape.has_values:  # columns of the keys
                self.values.append(self.keys[-1])
                continue
            self.values.append(_zeros((rows, config.block_size * shape.value_width), self.stored, device))
        self._write_rows = row_writer(device.type)

    @property
    def has_scales(self) -> bool:
        """Whether each row has a scale."""
        return has_scales(self.stored)

    def pools_of(self, layer: int) -> tuple[torch.Tensor, ...]:
        """A layer's keys and values, and the scales of both where they have any."""
        scales = (self.key_scales[layer], self.value_scales[layer]) if self.has_scales else ()
        return (self.keys[layer], self.values[layer], *scales)

    @property
    def num_bytes(self) -> int:
        """Bytes of both pools over all layers that have their own, and of their scales."""
        own = self._own_layers()
        pools = [self.keys[layer] for layer, _ in own] + [
            self.values[layer] for layer, shape in own if shape.has_values
        ]
        if self.has_scales:
            pools += [scales[layer] for scales in (self.key_scales, self.value_scales) for layer, _ in own]
        return sum(pool.nbytes for pool in pools)

    def write(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        """Store the keys and values of a packed step.

        Args:
            layer: Index of a layer that keeps its own.
            rows: ``[num_tokens * num_kv_heads]`` row numbers of the token view, each at most once.
            keys: ``[num_tokens * num_kv_heads, head_dim]``
            values: ``[num_tokens * num_kv_heads, value_width]``; None where they are columns of the keys.
        """
        shape = self.geometry.layers[layer]
        if self.has_scales:
            assert values is not None, "values have scales of their own"
            keys, key_scales = round_rows(keys)
            values, value_scales = round_rows(values)
            # [num_blocks * num_kv_heads * block_size, 1]
            self._write_rows(self.key_scales[layer].view(-1, 1), rows, key_scales)
            self._write_rows(self.value_scales[layer].view(-1, 1), rows, value_scales)
        # [num_blocks * num_kv_heads * block_size, width]
        self._write_rows(self.keys[layer].view(-1, shape.head_dim), rows, keys)
        if values is not None:
            self._write_rows(self.values[layer].view(-1, shape.value_width), rows, values)

    def clear(self, blocks: Sequence[int]) -> None:
        """Set blocks back to zero: what they hold must not reach their next owner, not even with a weight of zero."""
        for start in range(0, len(blocks), _CLEAR_CHUNK):
            self._clear(blocks[start : start + _CLEAR_CHUNK])

    def _clear(self, blocks: Sequence[int]) -> None:
        device, dtype = self.keys[0].device, self.dtype
        places = torch.tensor(blocks, dtype=torch.int64)[:, None]
        rows_by_count = {}
        for count in self.geometry.head_counts:
            rows_per_block = count * self.block_size
            # [len(blocks) * rows_per_block]
            rows = (places * rows_per_block + torch.arange(rows_per_block)).reshape(-1)
            rows_by_count[count] = rows.to(device)
        own = self._own_layers()
        widths = {(shape.num_kv_heads, shape.head_dim) for _, shape in own}
        widths |= {(shape.num_kv_heads, shape.value_width) for _, shape in own if shape.has_values}
        zeros = {
            (count, width): torch.zeros((len(rows_by_count[count]), width), dtype=dtype, device=device)
            for count, width in widths
        }
        for layer, shape in own:
            count = shape.num_kv_heads
            values = zeros[count, shape.value_width] if shape.has_values else None
            self.write(layer, rows_by_count[count], zeros[count, shape.head_dim], values)

    def gather(self, layer: int, rows: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Collect the keys and values of a group of sequences.

        Args:
            layer: Layer index.
            rows: ``[num_heads * num_blocks_each]`` row numbers of the gather view.
            num_heads: Sequences times key-value heads.

        Returns:
            Keys ``[num_heads, num_keys, head_dim]`` and values ``[num_heads, num_keys, value_width]``; a view of the
            keys where values are columns of them.
        """
        shape = self.geometry.layers[layer]
        keys = self.keys[layer].index_select(0, rows).view(num_heads, -1, shape.head_dim)
        if not shape.has_values:
            return keys, keys.narrow(-1, 0, shape.value_width)
        values = self.values[layer].index_select(0, rows).view(num_heads, -1, shape.value_width)
        if self.has_scales:
            # each: [num_heads, num_keys, 1]
            key_scales, value_scales = (
                one[layer].index_select(0, rows).view(num_heads, -1, 1) for one in (self.key_scales, self.value_scales)
            )
            return widen_rows(keys, key_scales, self.dtype), widen_rows(values, value_scales, self.dtype)
        return keys, values

    def _own_layers(self) -> list[tuple[int, CacheShape]]:
        """Layers in whose names all pools were made, with their indices."""
        return [(index, shape) for index, shape in enumerate(self.geometry.layers) if self._owners[index] == index]


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
