"""StepLayout: how the tokens of one ragged step are packed, and which cache rows each of them reads and writes.

Planned once a step (see ``step_plan``) and used by every layer. Sequences are cut into *slices* (a sequence's new
tokens of this step). Compiled kernels attend for every slice straight from the cache. Without them slices are ordered
so that those with like query and key lengths stand together, and each such *group* is one dense attention problem: no
padding in the linear layers, little in attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


@dataclass(frozen=True, slots=True)
class TokenSlice:
    """New tokens of one sequence in this step.

    Attributes:
        num_tokens: How many.
        start: Position of the first of them, which is also the number of tokens already in the cache.
        blocks: The sequence's block table, long enough for ``start + num_tokens`` tokens.
    """

    num_tokens: int
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Slices (or pieces of long ones) with like query and key lengths, as one dense problem.

    Attributes:
        num_rows: Number of slices, ``n`` below.
        num_queries: Queries of each, padded to the longest, ``q`` below.
        first_token: Where the group's queries start in the packed row, when they stand there densely.
        query_rows: ``[n * q]`` packed positions, when they do not.
        gather_rows: ``[n * num_kv_heads * num_blocks]`` rows of the cache's gather view.
        mask: ``[n, 1, q, num_keys]`` additive fp32 mask.
    """

    num_rows: int
    num_queries: int
    first_token: int
    query_rows: torch.Tensor | None
    gather_rows: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class DirectSlices:
    """Slices, cut into short pieces, that compiled kernels attend for straight from the cache.

    Attributes:
        pieces: ``[num_pieces, 4]`` int64: first token, number of tokens, start position, first entry in ``blocks``.
        blocks: The slices' block tables one behind the other, int32.
    """

    pieces: torch.Tensor
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The packed step, on the device.

    Attributes:
        num_tokens: ``T``, tokens in the step; those that a device's fixed shapes pad it with included.
        positions: ``[T]`` position of each token in its sequence.
        num_positions: All positions are below it.
        write_rows: ``[T * num_kv_heads]`` rows of the cache's token view, token-major.
        direct: The whole step for compiled kernels, or None.
        groups: Without compiled kernels: dense attention problems that cover every token once.
        output_rows: ``[T]`` where each of these tokens' attention output stands in the concatenated group outputs; None
            when the concatenation is already in packed order.
    """

    num_tokens: int
    positions: torch.Tensor
    num_positions: int
    write_rows: torch.Tensor
    direct: DirectSlices | None
    groups: tuple[AttentionGroup, ...]
    output_rows: torch.Tensor | None
