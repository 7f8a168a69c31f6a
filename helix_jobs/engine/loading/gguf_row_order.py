"""The order of rows in GGUF files that is not transformers': rotated pairs, groups, and the heads of a delta rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.loading.gguf_settings import DELTA_SIZES
from helix_jobs.engine.model.row_order import row_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.gguf_tensors import Heads


def halves_order(num_rows: int, head_dim: int) -> torch.Tensor:
    """Which row of a file stands where in queries or keys: of each head first every pair's first number."""
    return torch.arange(num_rows).view(-1, head_dim // 2, 2).transpose(1, 2).reshape(-1)


def grouped_rows(heads: Heads) -> torch.Tensor:
    """Which row of all queries, all keys and all values stands where group by group."""
    stored = row_order(heads.queries, heads.keys, heads.width, is_grouped=True, interleaved_dim=0)
    assert stored is not None, "groups have an order of their own"
    return stored.argsort()


def value_order(num_rows: int, settings: Mapping[str, Any]) -> torch.Tensor | None:
    """Which row of a file stands where if its last rows are those of value heads; None if they stay in their order.

    llama.cpp repeats key heads one after another, so the file has first the first value head of each key head, then
    the second one of each. In transformers the value heads of a key head are neighbours.

    Args:
        num_rows: Rows; if they are no more than the value heads, each head has one, else the file says how many.
        settings: The file's settings.
    """
    _, num_keys, num_values, width = (settings[key] for key in DELTA_SIZES)
    if num_values == num_keys:
        return None
    last = min(num_rows, width)
    # [value heads of a key head, key heads, rows of a head]
    values = torch.arange(num_rows - last, num_rows).view(num_values // num_keys, num_keys, -1)
    return torch.cat((torch.arange(num_rows - last), values.transpose(0, 1).reshape(-1)))


def delta_rows(settings: Mapping[str, Any]) -> torch.Tensor:
    """Which row of queries, keys, values and gates stands where key head by key head."""
    key_dim, num_keys, _, width = (settings[key] for key in DELTA_SIZES)
    counts = (num_keys * key_dim, num_keys * key_dim, width, width)
    parts = torch.arange(sum(counts)).split(counts)
    return torch.cat([part.view(num_keys, -1) for part in parts], dim=1).reshape(-1)
