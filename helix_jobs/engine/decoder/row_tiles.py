"""Row tiles: matrix products in which a row's result does not depend on the rows beside it.

A library chooses its kernel by the number of rows, and two kernels may sum in another order. In bfloat16 that is often
enough to change a token, so an answer would depend on what else is in the batch and on what is drafted. Where a trial
finds such a dependence, products are asked for in numbers of rows that all round alike. See He et al., "Defeating
Nondeterminism in LLM Inference" (Thinking Machines Lab, 2025), for the same idea in kernels of one's own.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Product = Callable[[torch.Tensor], torch.Tensor]

logger = logging.getLogger(__name__)

# Numbers of rows that are tried: those of small decoding batches, and some on either side of where kernels change.
TRIED_ROWS: Final = (2, 3, 4, 8, 12, 16, 20, 32, 36, 48, 64, 80, 128, 256)
# At these sizes it is timed what tiles cost.
TIMED_ROWS: Final = (2, 8, 32, 64, 256)
# So many different rows repeat in a trial: no block of a kernel is a multiple of it, so each comes at every place.
_DISTINCT_ROWS: Final = 3
_TIMED_RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class RowTiles:
    """In which numbers of rows a product may be computed.

    Attributes:
        least: Fewer rows are padded to so many.
        most: More rows are computed so many at a time; None computes any number at once.
    """

    least: int = 2
    most: int | None = None

    def apply(self, product: Callable[..., torch.Tensor], *operands: torch.Tensor) -> torch.Tensor:
        """``product(*operands)``, ``[n, out_features]``, computed in permitted numbers of rows.

        Args:
            product: Works row by row.
            operands: Each ``[n, ...]``.
        """
        count = operands[0].shape[0]
        if count < self.least:
            padded = [functional.pad(one, (0, 0, 0, self.least - count)) for one in operands]
            return product(*padded).narrow(0, 0, count)
        if self.most is None or count <= self.most:
            return product(*operands)
        tiles = zip(*[one.split(self.most) for one in operands], strict=True)
        return torch.cat([self.apply(product, *tile) for tile in tiles])


ANY_ROWS: Final = RowTiles()


def rounding_classes(
    product: Product, in_features: int, dtype: torch.dtype, device: torch.device, counts: Sequence[int] = TRIED_ROWS
) -> tuple[int | None, ...]:
    """Which numbers of rows round alike.

    Args:
        product: ``[n, in_features]`` to ``[n, out_features]``.
        in_features: Columns of its input.
        dtype: Of its input.
        device: Where it computes.
        counts: Numbers of rows, at least 2 each.

    Returns:
        For each count its class: those of one class give each row the same bits. None where the result depends even on
        a row's place among the others.
    """
    generator = torch.Generator().manual_seed(1)
    # [_DISTINCT_ROWS, in_features]
    distinct = torch.randn((_DISTINCT_ROWS, in_features), generator=generator).to(dtype).to(device)
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


def candidates(classes: Sequence[int | None], counts: Sequence[int] = TRIED_ROWS) -> tuple[RowTiles, ...]:
    """Tiles within which every number of rows rounds alike; empty where there are none.

    Either the small numbers agree, and larger ones are cut; or the large ones agree, and smaller ones are padded. What
    was not tried between two numbers that agree is taken to agree with them.
    """
    if classes[0] is not None and len(set(classes)) == 1:
        return (ANY_ROWS,)
    offered = []
    if classes[0] is not None:
        agreeing = next(index for index, name in enumerate(classes) if name != classes[0])
        if agreeing > 1:
            offered.append(RowTiles(most=counts[agreeing - 1]))
    if classes[-1] is not None:
        first = len(classes) - 1
        while first and classes[first - 1] == classes[-1]:
            first -= 1
        if first < len(classes) - 1:
            offered.append(RowTiles(least=counts[first]))
    return tuple(offered)


def slowdown(product: Product, tiles: RowTiles, in_features: int, dtype: torch.dtype, device: torch.device) -> float:
    """How many times as long a product takes in tiles, at the worst of ``TIMED_ROWS``. The device is a CPU.

    Args:
        product: ``[n, in_features]`` to ``[n, out_features]``.
        tiles: The tiles.
        in_features: Columns of its input.
        dtype: Of its input.
        device: Where it computes.
    """
    rows = torch.randn((max(TIMED_ROWS), in_features)).to(dtype).to(device)
    worst = 1.0
    for count in TIMED_ROWS:
        part = rows[:count]
        # In turns, and the least of each: what else the machine does slows either.
        tiled, whole = [], []
        for _ in range(_TIMED_RUNS):
            whole.append(_seconds(partial(product, part)))
            tiled.append(_seconds(partial(tiles.apply, product, part)))
        worst = max(worst, min(tiled) / min(whole))
    return worst


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
