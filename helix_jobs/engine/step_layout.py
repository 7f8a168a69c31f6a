"""StepLayout: how the tokens of one ragged step are packed, and which cache rows each of them reads and writes.

Planned once a step with NumPy and used by every layer. Sequences are cut into *slices* (a sequence's new tokens of this
step). Compiled kernels attend for every slice straight from the cache. Without them slices are ordered so that those
with like query and key lengths stand together, and each such *group* is one dense attention problem: no padding in the
linear layers, little in attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from helix_jobs.engine.devices import DIRECTML_DEVICE_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from helix_jobs.engine.kv_cache import CacheGeometry

    IntArray = NDArray[np.int64]

# Up to this many queries a slice forms groups of its exact length: decoding wastes nothing.
_EXACT_QUERY_LENGTH: Final = 8
_QUERY_BUCKET: Final = 32
# Compiled kernels take so many queries of a slice at once: the scores of a longer piece would not stay in the caches.
_DIRECT_QUERY_LENGTH: Final = 16
# Longer prompt chunks are cut for attention, so that early queries do not pay for late keys.
_MAX_QUERY_LENGTH: Final = 256
# Groups with fewer blocks than this are not split any further: a call costs more than the padding.
_MIN_BLOCK_BUCKET: Final = 8
# What one group holds in memory at once, whatever the prompts' lengths: so many scores, of which the softmax needs two
# copies in float32 (128 MiB together), and so many elements of gathered keys and as many of values (256 MiB together in
# half precision). ``step_memory`` reckons with both. Trade-off: larger groups mean fewer operator calls; these keep a
# GPU busy for about as long as it takes to start the next group's operators.
MAX_GROUP_SCORES: Final = 1 << 24
MAX_GATHERED_ELEMENTS: Final = 1 << 26
# Far below any score, yet finite: DirectML turns -inf into NaN.
_MASKED_SCORE: Final = -1e30


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
    """The packed step.

    Attributes:
        num_tokens: ``T``, tokens in the step.
        order: Slices in packed order (indices into the planner's input).
        offsets: For each input slice, where it starts in the packed row.
        positions: ``[T]`` position of each token in its sequence.
        num_positions: All positions are below it.
        write_rows: ``[T * num_kv_heads]`` rows of the cache's token view, token-major.
        direct: The whole step for compiled kernels, or None.
        groups: Without compiled kernels: dense attention problems that cover every token once.
        output_rows: ``[T]`` where each of these tokens' attention output stands in the concatenated group outputs; None
            when the concatenation is already in packed order.
    """

    num_tokens: int
    order: tuple[int, ...]
    offsets: tuple[int, ...]
    positions: torch.Tensor
    num_positions: int
    write_rows: torch.Tensor
    direct: DirectSlices | None
    groups: tuple[AttentionGroup, ...]
    output_rows: torch.Tensor | None


@dataclass(slots=True)
class _Piece:
    """Consecutive queries of one slice, at most ``_MAX_QUERY_LENGTH``."""

    slice_index: int
    offset: int  # of its first query within the slice
    num_queries: int
    num_blocks: int  # blocks its last query sees


def plan_step(
    slices: Sequence[TokenSlice],
    geometry: CacheGeometry,
    block_size: int,
    device: torch.device,
    *,
    num_heads: int,
    is_native: bool = False,
) -> StepLayout:
    """Pack slices and plan their attention.

    Args:
        slices: New tokens per sequence, each with at least one token.
        geometry: The model's key-value shape.
        block_size: Tokens a block.
        device: Where the index tensors go.
        num_heads: The model's query heads.
        is_native: Compiled kernels attend: nothing is grouped, gathered or reordered.
    """
    grouped = [] if is_native else _grouped(slices, num_heads, geometry, block_size)
    order = (
        tuple(range(len(slices)))
        if is_native
        else tuple(dict.fromkeys(piece.slice_index for pieces in grouped for piece in pieces))
    )
    offsets = [0] * len(slices)
    num_tokens = 0
    for index in order:
        offsets[index] = num_tokens
        num_tokens += slices[index].num_tokens

    tables = _tables(slices, block_size)
    positions = np.concatenate(
        [np.arange(slices[i].start, slices[i].start + slices[i].num_tokens, dtype=np.int64) for i in order]
    )
    owners = np.repeat(np.asarray(order), [slices[i].num_tokens for i in order])
    heads = np.arange(geometry.num_kv_heads, dtype=np.int64)
    blocks = tables[owners, positions // block_size]
    # [T, num_kv_heads]
    write_rows = (blocks[:, None] * geometry.num_kv_heads + heads) * block_size + (positions % block_size)[:, None]

    groups = []
    output_rows = np.empty(num_tokens, dtype=np.int64)
    done = 0
    for pieces in grouped:
        group, token_rows, places = _plan_group(pieces, slices, offsets, tables, heads, block_size, device)
        output_rows[token_rows] = done + places
        done += group.num_rows * group.num_queries
        groups.append(group)
    in_order = is_native or (done == num_tokens and bool((output_rows == np.arange(done)).all()))
    return StepLayout(
        num_tokens=num_tokens,
        order=order,
        offsets=tuple(offsets),
        positions=_upload(positions, device),
        num_positions=int(positions.max()) + 1,
        write_rows=_upload(write_rows.reshape(-1), device),
        direct=_direct_slices(slices, offsets, block_size) if is_native else None,
        groups=tuple(groups),
        output_rows=None if in_order else _upload(output_rows, device),
    )


def _direct_slices(slices: Sequence[TokenSlice], offsets: Sequence[int], block_size: int) -> DirectSlices:
    pieces: list[tuple[int, int, int, int]] = []
    blocks: list[int] = []
    for first_token, part in zip(offsets, slices, strict=True):
        for done in range(0, part.num_tokens, _DIRECT_QUERY_LENGTH):
            num_tokens = min(_DIRECT_QUERY_LENGTH, part.num_tokens - done)
            pieces.append((first_token + done, num_tokens, part.start + done, len(blocks)))
        blocks.extend(part.blocks[: _num_blocks(part.start + part.num_tokens, block_size)])
    return DirectSlices(torch.tensor(pieces, dtype=torch.int64), torch.tensor(blocks, dtype=torch.int32))


def _grouped(
    slices: Sequence[TokenSlice], num_heads: int, geometry: CacheGeometry, block_size: int
) -> list[list[_Piece]]:
    """Pieces of like query and key lengths, together as far as memory allows."""
    pieces_by_key: dict[tuple[int, int], list[_Piece]] = {}
    for piece in _cut(slices, num_heads, block_size):
        pieces_by_key.setdefault(_group_key(piece), []).append(piece)
    return [
        group for key in sorted(pieces_by_key) for group in _split(pieces_by_key[key], num_heads, geometry, block_size)
    ]


def _cut(slices: Sequence[TokenSlice], num_heads: int, block_size: int) -> list[_Piece]:
    """Cut slices into pieces, each short enough that its scores alone are no more than a group may have."""
    pieces = []
    for index, part in enumerate(slices):
        most_keys = _num_blocks(part.start + part.num_tokens, block_size) * block_size
        longest = min(_MAX_QUERY_LENGTH, max(1, MAX_GROUP_SCORES // (num_heads * most_keys)))
        if longest > _QUERY_BUCKET:
            longest -= longest % _QUERY_BUCKET
        for offset in range(0, part.num_tokens, longest):
            num_queries = min(longest, part.num_tokens - offset)
            pieces.append(
                _Piece(index, offset, num_queries, _num_blocks(part.start + offset + num_queries, block_size))
            )
    return pieces


def _split(pieces: list[_Piece], num_heads: int, geometry: CacheGeometry, block_size: int) -> Iterator[list[_Piece]]:
    """Divide pieces of like lengths into groups that are bounded in memory."""
    num_queries = max(piece.num_queries for piece in pieces)
    num_keys = max(piece.num_blocks for piece in pieces) * block_size
    by_scores = MAX_GROUP_SCORES // (num_heads * num_queries * num_keys)
    by_gathered = MAX_GATHERED_ELEMENTS // (geometry.num_kv_heads * geometry.head_dim * num_keys)
    most = max(1, min(by_scores, by_gathered))
    for start in range(0, len(pieces), most):
        yield pieces[start : start + most]


def _num_blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _group_key(piece: _Piece) -> tuple[int, int]:
    """Like query lengths and like key lengths: bucketed, so that groups are few and padding is bounded by a half."""
    queries = piece.num_queries
    if queries > _EXACT_QUERY_LENGTH:
        queries = -(-queries // _QUERY_BUCKET) * _QUERY_BUCKET
    blocks = max(_MIN_BLOCK_BUCKET, 1 << (piece.num_blocks - 1).bit_length())
    return queries, blocks


def _tables(slices: Sequence[TokenSlice], block_size: int) -> IntArray:
    """Block tables as one array ``[num_slices, max_blocks]``.

    Unused entries are always masked. They repeat the slice's own first block: a masked NaN would still spread, so
    nobody reads a block of somebody else's.
    """
    used = [_num_blocks(part.start + part.num_tokens, block_size) for part in slices]
    tables = np.empty((len(slices), max(used)), dtype=np.int64)
    for row, (part, count) in enumerate(zip(slices, used, strict=True)):
        tables[row, :count] = part.blocks[:count]
        tables[row, count:] = part.blocks[0]
    return tables


def _plan_group(  # noqa: PLR0917  (one call site; the step's arrays and its geometry)
    pieces: list[_Piece],
    slices: Sequence[TokenSlice],
    offsets: list[int],
    tables: IntArray,
    heads: IntArray,
    block_size: int,
    device: torch.device,
) -> tuple[AttentionGroup, IntArray, IntArray]:
    """Plan one group; also return its tokens' packed positions and their places within the group's output."""
    counts = np.asarray([piece.num_queries for piece in pieces])
    num_queries = int(counts.max())
    num_blocks = max(piece.num_blocks for piece in pieces)
    firsts = np.asarray([offsets[piece.slice_index] + piece.offset for piece in pieces])
    starts = np.asarray([slices[piece.slice_index].start + piece.offset for piece in pieces])
    # [n, q]; padding repeats the last query, and its output is never read
    steps = np.minimum(np.arange(num_queries)[None, :], counts[:, None] - 1)
    query_rows = firsts[:, None] + steps
    query_positions = starts[:, None] + steps
    keys = np.arange(num_blocks * block_size)
    # [n, q, num_keys]
    hidden = np.where(keys <= query_positions[:, :, None], np.float32(0.0), np.float32(_MASKED_SCORE))
    members = tables[[piece.slice_index for piece in pieces], :num_blocks]
    # [n, num_kv_heads, num_blocks]
    gather_rows = members[:, None, :] * len(heads) + heads[None, :, None]

    flat_rows = query_rows.reshape(-1)
    dense = bool((flat_rows == np.arange(flat_rows[0], flat_rows[0] + flat_rows.size)).all())
    real = np.arange(num_queries)[None, :] < counts[:, None]
    places = np.flatnonzero(real.reshape(-1))
    group = AttentionGroup(
        num_rows=len(pieces),
        num_queries=num_queries,
        first_token=int(flat_rows[0]),
        # A view with an offset is a copy with a write-back on DirectML; there rows are always selected.
        query_rows=None if dense and device.type != DIRECTML_DEVICE_TYPE else _upload(flat_rows, device),
        gather_rows=_upload(gather_rows.reshape(-1), device),
        mask=_upload(hidden, device).unsqueeze(1),
    )
    return group, flat_rows[places], places


def _upload(array: NDArray[np.int64] | NDArray[np.float32], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
