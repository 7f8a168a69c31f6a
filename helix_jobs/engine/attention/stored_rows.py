"""How keys and values are stored: in the model's dtype, or as int8 with a float32 scale for each row.

A row is the key, or the value, of one token and one key-value head. It is rounded when it is written, symmetrically,
and its scale lies beside it in the same block.

Trade-off: some channels of keys are far larger than others, so a scale for each channel over a group of tokens rounds
keys less (KIVI, arXiv:2402.02750), and a scale for each block would take less memory. But neither is known before the
last token of its group is: tokens before that would have to stay in the model's dtype, or be rounded again with every
token behind them, drafts that are rejected included. A row's own scale is known when the row is written and never
changes, so a token is rounded alike in any batch, after preemption and in a shared block. It takes 4 bytes a row.
"""

from __future__ import annotations

from typing import Final

import torch

from helix_jobs.engine.config import INT8_CACHE

_LEVELS: Final = 127
_SMALLEST: Final = 1e-12  # keeps an all-zero row from dividing by zero


def stored_dtype(kv_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a cache's numbers.

    Args:
        kv_dtype: As in ``CacheConfig``.
        dtype: The model's.
    """
    return torch.int8 if kv_dtype == INT8_CACHE else dtype


def has_scales(stored: torch.dtype) -> bool:
    """Whether each row has a scale."""
    return stored == torch.int8


def row_bytes(width: int, stored: torch.dtype) -> int:
    """Bytes that a row of so many elements takes, its scale included."""
    return width * stored.itemsize + (torch.float32.itemsize if has_scales(stored) else 0)


def round_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``[num_rows, width]`` to int8; return it with its float32 scales ``[num_rows, 1]``.

    The scale of a row that is not finite is not finite either, so whoever attends to it sees that.
    """
    exact = rows.float()
    scales = exact.abs().amax(dim=1, keepdim=True).clamp_(min=_SMALLEST).div_(_LEVELS)
    # Not divided in place: float() of a float32 tensor is that tensor.
    return exact.div(scales).round_().to(torch.int8), scales


def widen_rows(rows: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``rows * scales`` in ``dtype``, each product rounded once.

    Args:
        rows: int8.
        scales: float32, which broadcasts.
        dtype: One that holds whole numbers up to 127: any of a model's.
    """
    return rows.to(dtype).mul_(scales)
