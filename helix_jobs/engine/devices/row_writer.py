"""Writing rows of a pool on each kind of device: backends differ in their operators for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.device_names import DIRECTML_DEVICE_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    RowWriter = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def row_writer(device_type: str) -> RowWriter:
    """The function that sets rows ``[n]``, each at most once, of a pool ``[rows, size]`` to ``[n, size]``."""
    if device_type == DIRECTML_DEVICE_TYPE:
        return _scatter_rows
    return _put_rows if device_type == "mps" else _copy_rows


def _scatter_rows(pool: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> None:
    """DirectML has no ``index_copy`` kernel; its scatter needs unique rows, which these are."""
    pool.scatter_(0, rows.unsqueeze(1).expand_as(new), new)


def _put_rows(pool: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> None:
    """MPS has an ``index_copy`` kernel since torch 2.8 only, and until 2.13 it visits every element of the pool."""
    pool.index_put_((rows,), new)


def _copy_rows(pool: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> None:
    pool.index_copy_(0, rows, new)
