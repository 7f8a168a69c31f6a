"""A trial of the numbers of rows in which a matrix product rounds alike. It sees every difference in summation order.

Sums of the same products in different orders differ in float32's last bits. With ordinary data bfloat16 hides nearly
all of these differences: one or two in ten thousand results remain. A trial would miss them, but a long text would not.
The trial's products nearly cancel, so that each sum is mostly rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Numbers of rows that are tried: those of small decoding batches, and some on either side of where kernels change.
TRIED_ROWS: Final = (2, 3, 4, 8, 12, 16, 20, 32, 33, 48, 64, 80, 128, 256, 512, 1024)
# A trial repeats this many different rows. No kernel's block is a multiple of it, so each row comes at every place.
_DISTINCT_ROWS: Final = 3
# A trial repeats this many different outputs, for the same reason and to keep its memory small.
_DISTINCT_OUTPUTS: Final = 61
# Columns are scaled by powers of two from -_SCALES to _SCALES: sums of very different numbers round more.
_SCALES: Final = 4


def cancelling_operands(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and rows whose products come in pairs that cancel, far from each other.

    Returns:
        ``[out_features, in_features]`` and ``[3, in_features]``.
    """
    generator = torch.Generator().manual_seed(1)
    half = in_features // 2
    scales = torch.exp2(torch.randint(-_SCALES, _SCALES + 1, (half,), generator=generator).float())
    # each: [distinct, half]
    weight = (torch.randn((_DISTINCT_OUTPUTS, half), generator=generator) * scales).to(dtype)
    rows = torch.randn((_DISTINCT_ROWS, half), generator=generator).to(dtype)
    odd = in_features - 2 * half
    order = torch.randperm(in_features, generator=generator)
    # each: [distinct, in_features]
    weight = torch.cat((weight, -weight, weight.new_zeros((_DISTINCT_OUTPUTS, odd))), dim=1)[:, order]
    rows = torch.cat((rows, rows, rows.new_zeros((_DISTINCT_ROWS, odd))), dim=1)[:, order]
    return weight.repeat(-(-out_features // _DISTINCT_OUTPUTS), 1)[:out_features].contiguous(), rows.contiguous()


def rounding_classes(
    product: Callable[[torch.Tensor], torch.Tensor], distinct: torch.Tensor, counts: Sequence[int] = TRIED_ROWS
) -> tuple[int | None, ...]:
    """Find the numbers of rows that round alike.

    Args:
        product: ``[n, in_features]`` to ``[n, out_features]``.
        distinct: ``[3, in_features]``, rows to try it with.
        counts: Numbers of rows, at least 2 each.

    Returns:
        The class of each count. Counts of one class give each row the same bits. None if a row's result depends even on
        its place among the others.
    """
    repeats = -(-max(counts) // _DISTINCT_ROWS)
    # [max(counts) rounded up, in_features]
    rows = distinct.repeat(repeats, 1)
    found: list[torch.Tensor] = []
    classes: list[int | None] = []
    for count in counts:
        result = product(rows[:count])
        num_whole = count // _DISTINCT_ROWS * _DISTINCT_ROWS
        if num_whole:
            # [repeats, _DISTINCT_ROWS, out_features]
            blocks = result[:num_whole].view(-1, _DISTINCT_ROWS, result.shape[1])
            rest = result[num_whole:]
            if not (torch.equal(blocks, blocks[:1].expand_as(blocks)) and torch.equal(rest, blocks[0, : len(rest)])):
                classes.append(None)
                continue
        first = result[:_DISTINCT_ROWS]
        for name, other in enumerate(found):
            shared = min(len(first), len(other))
            if torch.equal(first[:shared], other[:shared]):
                classes.append(name)
                if len(first) > shared:
                    found[name] = first.clone()
                break
        else:
            classes.append(len(found))
            found.append(first.clone())
    return tuple(classes)
