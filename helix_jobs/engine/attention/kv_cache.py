"""PagedKVCache: the key and value block tensors of one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from helix_jobs.engine.devices.devices import DIRECTML_DEVICE_TYPE, compiles_each_shape
from helix_jobs.engine.devices.row_writer import row_writer
from helix_jobs.engine.devices.shape_sizes import MAX_PADDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.config import CacheConfig

# Blocks cleared at once: clearing must itself need little memory.
_CLEAR_CHUNK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGeometry:
    """Per-token shape of a model's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block of keys and values takes over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * block_size * dtype.itemsize


class PagedKVCache:
    """Keys and values of every layer, in blocks.

    A row of the gather view is one block of one key-value head: a sequence's keys come out of ``index_select`` already
    in the ``[heads, keys, head_dim]`` order that the batched product wants, with no transposition after it.

    The pools start at zero. Attention gives a block's unwritten rows a weight of zero, and zero times an uninitialised
    NaN would not be zero. For the same reason blocks that held non-finite values are cleared.
    """

    def __init__(self, geometry: CacheGeometry, config: CacheConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.block_size = config.block_size
        self.num_blocks = config.num_blocks
        self.is_on_directml = device.type == DIRECTML_DEVICE_TYPE
        # The last blocks take the keys and values of tokens that only pad a step to one of few shapes.
        self.spare_block = config.num_blocks if compiles_each_shape(device) else None
        spare = 0 if self.spare_block is None else -(-MAX_PADDING // config.block_size)
        shape = ((config.num_blocks + spare) * geometry.num_kv_heads, config.block_size * geometry.head_dim)
        # each: [(num_blocks + spare) * num_kv_heads, block_size * head_dim]
        self.keys = [_zeros(shape, dtype, device) for _ in range(geometry.num_layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(geometry.num_layers)]
        self._write_rows = row_writer(device.type)

    @property
    def num_bytes(self) -> int:
        """Bytes of both pools over all layers."""
        return sum(pool.nbytes for pool in (*self.keys, *self.values))

    def write(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the keys and values of a packed step.

        Args:
            layer: Layer index.
            rows: ``[num_tokens * num_kv_heads]`` row numbers of the token view, each at most once.
            keys: ``[num_tokens * num_kv_heads, head_dim]``
            values: ``[num_tokens * num_kv_heads, head_dim]``
        """
        for pool, new in ((self.keys[layer], keys), (self.values[layer], values)):
            # [num_blocks * num_kv_heads * block_size, head_dim]
            by_token = pool.view(-1, self.geometry.head_dim)
            self._write_rows(by_token, rows, new)

    def clear(self, blocks: Sequence[int]) -> None:
        """Set blocks back to zero: what they hold must not reach their next owner, not even with a weight of zero."""
        for start in range(0, len(blocks), _CLEAR_CHUNK):
            self._clear(blocks[start : start + _CLEAR_CHUNK])

    def _clear(self, blocks: Sequence[int]) -> None:
        rows_per_block = self.geometry.num_kv_heads * self.block_size
        device, dtype = self.keys[0].device, self.keys[0].dtype
        starts = torch.tensor(blocks, dtype=torch.int64) * rows_per_block
        # [len(blocks) * rows_per_block]
        rows = (starts[:, None] + torch.arange(rows_per_block)).reshape(-1).to(device)
        zeros = torch.zeros((len(rows), self.geometry.head_dim), dtype=dtype, device=device)
        for layer in range(self.geometry.num_layers):
            self.write(layer, rows, zeros, zeros)

    def gather(self, layer: int, rows: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Collect the keys and values of a group of sequences.

        Args:
            layer: Layer index.
            rows: ``[num_heads * num_blocks_each]`` row numbers of the gather view.
            num_heads: Sequences times key-value heads.

        Returns:
            Keys and values, each ``[num_heads, num_keys, head_dim]``.
        """
        head_dim = self.geometry.head_dim
        keys = self.keys[layer].index_select(0, rows).view(num_heads, -1, head_dim)
        values = self.values[layer].index_select(0, rows).view(num_heads, -1, head_dim)
        return keys, values


def _zeros(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make a pool of zeros.

    On the CPU the system commits its pages as blocks are first written, so a large pool costs nothing until it is used;
    ``torch.zeros`` would write them all.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(shape[0] * shape[1] * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
