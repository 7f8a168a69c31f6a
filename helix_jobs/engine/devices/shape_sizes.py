"""The few sizes that steps are padded to. Matrix products always are, the rest only on devices that compile shapes.

Trade-off, on such a device: up to a half of the rows in the smallest steps is padding, a third in small ones, a fifth
in large ones. A small step spends its time on reading weights and starting operators, to which padding adds nothing,
and a new shape costs far more.
"""

from __future__ import annotations

from typing import Final

# Up to this many rows the sizes are powers of two; beyond it 1 and 1.5 times a power of two.
_FEW_ROWS: Final = 8
# Up to this many tokens the sizes are those of rows: a product of few rows takes as long as reading its weights.
SMALL_STEP: Final = 64
# Up to this many tokens there are four sizes to each doubling; beyond it multiples, with less padding
# (``MAX_PADDING``).
_MEDIUM_STEP: Final = 512
_LARGE_MULTIPLE: Final = 128
# The most rows that ``token_size`` or ``padded_rows`` adds.
MAX_PADDING: Final = _LARGE_MULTIPLE - 1
# Rows of a product, as (up to this many, multiples of this number); beyond them multiples of ``_LARGE_MULTIPLE``.
_ROW_MULTIPLES: Final = ((16, 1), (64, 4), (256, 16), (1024, 32))
# Up to this many queries the sizes are powers of two; beyond it multiples.
_FEW_QUERIES: Final = 16
_QUERY_MULTIPLE: Final = 32


def power_size(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def row_size(count: int) -> int:
    """Rows of a group: the next of 1, 2, 4, 8, 12, 16, 24, 32..."""
    power = power_size(count)
    return power * 3 // 4 if _FEW_ROWS < count <= power * 3 // 4 else power


def largest_row_size(limit: int) -> int:
    """The last of these sizes that is no more than ``limit``, at least 1."""
    power = 1 << (limit.bit_length() - 1)
    return power * 3 // 2 if power >= _FEW_ROWS and limit >= power * 3 // 2 else power


def token_size(count: int) -> int:
    """Tokens of a step, and rows of logits. Each is a size that ``padded_rows`` leaves as it is."""
    if count <= SMALL_STEP:
        return max(2, row_size(count))
    step = power_size(count) // 8 if count <= _MEDIUM_STEP else _LARGE_MULTIPLE
    return -(-count // step) * step


def query_size(count: int) -> int:
    """Queries of a slice: the next power of two, or multiple of 32."""
    return power_size(count) if count <= _FEW_QUERIES else -(-count // _QUERY_MULTIPLE) * _QUERY_MULTIPLE


def largest_query_size(limit: int) -> int:
    """The last of these sizes that is no more than ``limit``, at least 1."""
    if limit < _QUERY_MULTIPLE:
        return min(_FEW_QUERIES, 1 << (limit.bit_length() - 1))
    return limit - limit % _QUERY_MULTIPLE


def padded_rows(num_rows: int) -> int:
    """The number of rows that matrix products compute when ``num_rows`` are wanted.

    Kernels are made and kept by shape: on a CPU each new number of rows costs oneDNN some milliseconds once and
    megabytes for good, on DirectML even more. Trade-off: up to a fifth of the rows may be padding in small steps, less
    in large ones; in return there are some eighty shapes, not thousands.

    One row alone is never multiplied: matrix times vector is another kernel, which rounds differently, and an answer in
    bfloat16 would depend on whether other requests were in the batch.
    """
    if num_rows == 1:
        return 2
    for limit, multiple in _ROW_MULTIPLES:
        if num_rows <= limit:
            return -(-num_rows // multiple) * multiple
    return -(-num_rows // _LARGE_MULTIPLE) * _LARGE_MULTIPLE
