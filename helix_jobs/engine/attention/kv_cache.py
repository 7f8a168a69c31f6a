"""PagedKVCache: the key and value block tensors of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.engine.attention.cache_pools import PoolSettings, separate_pools, shared_pool
from helix_jobs.engine.attention.stored_rows import has_scales, round_rows, stored_dtype, widen_rows
from helix_jobs.engine.cache_sections import LayerSections
from helix_jobs.engine.devices.devices import compiles_each_shape
from helix_jobs.engine.devices.row_writer import row_writer
from helix_jobs.engine.devices.shape_sizes import MAX_PADDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.attention.cache_geometry import BlockRows, CacheGeometry
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
        block_rows: For each layer, which rows of the gather view a block has.
        num_bytes: Bytes of all pools, and of their scales.
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
        self.sections = sections or LayerSections()
        settings = PoolSettings(config.num_blocks + spare, config.block_size, self.stored, device)
        make = shared_pool if geometry.shares_blocks(self.sections.layers) else separate_pools
        pools = make(geometry, self.sections, settings)
        self.keys, self.values = pools.keys, pools.values
        self.key_scales, self.value_scales = pools.key_scales, pools.value_scales
        self.block_rows, self._owners = pools.block_rows, pools.owners
        self.num_bytes = sum(tensor.nbytes for tensor in pools.tensors)
        self._rows_in = tuple(
            tuple(dict.fromkeys(rows for layer, rows in enumerate(self.block_rows) if self.sections.of(layer) == place))
            for place in range(len(self.sections.windows))
        )
        self._write_rows = row_writer(device.type)

    @property
    def has_scales(self) -> bool:
        """Whether each row has a scale."""
        return has_scales(self.stored)

    def pools_of(self, layer: int) -> tuple[torch.Tensor, ...]:
        """A layer's keys and values, and the scales of both where they have any."""
        scales = (self.key_scales[layer], self.value_scales[layer]) if self.has_scales else ()
        return (self.keys[layer], self.values[layer], *scales)

    def rows_in(self, section: int) -> tuple[BlockRows, ...]:
        """The rows of the layers in a section, each once."""
        return self._rows_in[section]

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
        """Set blocks back to zero. A NaN that they hold would reach their next owner even with a weight of zero."""
        for start in range(0, len(blocks), _CLEAR_CHUNK):
            self._clear(blocks[start : start + _CLEAR_CHUNK])

    def _clear(self, blocks: Sequence[int]) -> None:
        device, dtype = self.keys[0].device, self.dtype
        places = torch.tensor(blocks, dtype=torch.int64)[:, None]
        own = [(layer, shape) for layer, shape in enumerate(self.geometry.layers) if self._owners[layer] == layer]
        rows_of = {}
        for kind in {self.block_rows[layer] for layer, _ in own}:
            # [len(blocks) * num_kv_heads * block_size]
            rows = places * (kind.stride * self.block_size) + torch.arange(kind.num_heads * self.block_size)
            rows_of[kind] = rows.reshape(-1).to(device)
        widths = {
            (self.block_rows[layer], width) for layer, shape in own for width in (shape.head_dim, shape.value_width)
        }
        zeros = {
            (kind, width): torch.zeros((len(rows_of[kind]), width), dtype=dtype, device=device)
            for kind, width in widths
        }
        for layer, shape in own:
            kind = self.block_rows[layer]
            values = zeros[kind, shape.value_width] if shape.has_values else None
            self.write(layer, rows_of[kind], zeros[kind, shape.head_dim], values)

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
