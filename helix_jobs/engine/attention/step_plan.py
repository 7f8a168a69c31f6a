"""StepPlan: a step's layout as NumPy plans it on the host, before one upload makes a ``StepLayout`` of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from helix_jobs.engine.attention.step_layout import AttentionGroup, DirectSlices, StepLayout
from helix_jobs.engine.devices.shape_sizes import largest_query_size, largest_row_size, query_size, row_size, token_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from helix_jobs.engine.attention.kv_cache import CacheGeometry
    from helix_jobs.engine.attention.step_layout import TokenSlice

    IntArray = NDArray[np.int64]

# Up to this many queries a slice is short: it forms groups of its exact length, and decoding wastes nothing; or, where
# shapes are to repeat, one group with all other short ones.
_SHORT_QUERY_LENGTH: Final = 8
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
class GroupPlan:
    """An ``AttentionGroup`` to be.

    Attributes:
        num_rows: As in the group.
        num_queries: As in the group.
        num_keys: Keys gathered for each slice, padding included.
        first_token: As in the group.
        query_rows: As in the group.
        gather_rows: As in the group.
        visible: ``[n * q]`` how many of the first keys each query sees: the mask is made of it on the device.
    """

    num_rows: int
    num_queries: int
    num_keys: int
    first_token: int
    query_rows: IntArray | None
    gather_rows: IntArray
    visible: IntArray

    def arrays(self) -> list[IntArray]:
        """What the device needs."""
        given = [] if self.query_rows is None else [self.query_rows]
        return [*given, self.gather_rows, self.visible]

    def on_device(self, uploaded: Iterator[torch.Tensor]) -> AttentionGroup:
        """Make the group, given ``arrays`` on the device."""
        query_rows = None if self.query_rows is None else next(uploaded)
        gather_rows = next(uploaded)
        visible = next(uploaded).view(self.num_rows, 1, self.num_queries, 1)
        keys = torch.arange(self.num_keys, dtype=torch.int64, device=visible.device)
        # [n, 1, q, num_keys]
        mask = (keys >= visible).float() * _MASKED_SCORE
        return AttentionGroup(self.num_rows, self.num_queries, self.first_token, query_rows, gather_rows, mask)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The packed step, on the host.

    Attributes:
        num_tokens: Tokens of all slices.
        order: Slices in packed order (indices into the planner's input).
        offsets: For each input slice, where it starts in the packed row.
        positions: ``[T]`` as in the layout; ``T`` exceeds ``num_tokens`` where shapes are padded.
        num_positions: As in the layout.
        write_rows: As in the layout.
        direct: As in the layout.
        groups: As in the layout.
        output_rows: As in the layout.
    """

    num_tokens: int
    order: tuple[int, ...]
    offsets: tuple[int, ...]
    positions: IntArray
    num_positions: int
    write_rows: IntArray
    direct: DirectSlices | None
    groups: tuple[GroupPlan, ...]
    output_rows: IntArray | None

    def arrays(self) -> list[IntArray]:
        """What the device needs."""
        grouped = [array for group in self.groups for array in group.arrays()]
        return [self.positions, self.write_rows, *grouped, *([] if self.output_rows is None else [self.output_rows])]

    def on_device(self, uploaded: Iterator[torch.Tensor]) -> StepLayout:
        """Make the layout, given ``arrays`` on the device."""
        return StepLayout(
            num_tokens=len(self.positions),
            positions=next(uploaded),
            num_positions=self.num_positions,
            write_rows=next(uploaded),
            direct=self.direct,
            groups=tuple(group.on_device(uploaded) for group in self.groups),
            output_rows=None if self.output_rows is None else next(uploaded),
        )


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
    *,
    num_heads: int,
    is_native: bool = False,
    spare_block: int | None = None,
    least_tokens: int = 0,
) -> StepPlan:
    """Pack slices and plan their attention.

    Args:
        slices: New tokens per sequence, each with at least one token.
        geometry: The model's key-value shape.
        block_size: Tokens a block.
        num_heads: The model's query heads.
        is_native: Compiled kernels attend: nothing is grouped, gathered or reordered.
        spare_block: First of the cache's blocks that padding is written to. Given where shapes are to repeat, because
            the device compiles each (DirectML): then tokens, and the rows, queries and keys of groups, are padded to
            one of few sizes.
        least_tokens: With a spare block, pad to so many tokens at least; no more than ``SMALL_STEP``.
    """
    repeats = spare_block is not None
    grouped = [] if is_native else _grouped(slices, num_heads, geometry, block_size, repeats=repeats)
    order = (
        tuple(range(len(slices)))
        if is_native
        else tuple(dict.fromkeys(piece.slice_index for _, pieces in grouped for piece in pieces))
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
    num_positions = int(positions.max()) + 1
    slots = positions % block_size
    if spare_block is not None:
        padding = np.arange(token_size(max(num_tokens, least_tokens)) - num_tokens, dtype=np.int64)
        positions = np.concatenate((positions, np.zeros_like(padding)))
        blocks = np.concatenate((blocks, spare_block + padding // block_size))
        slots = np.concatenate((slots, padding % block_size))
    # [T, num_kv_heads]
    write_rows = (blocks[:, None] * geometry.num_kv_heads + heads) * block_size + slots[:, None]

    groups = []
    # Padding takes any output.
    output_rows = np.zeros(len(positions), dtype=np.int64)
    done = 0
    for key, pieces in grouped:
        shape = key if repeats else None
        group, token_rows, places = _plan_group(pieces, slices, offsets, tables, heads, block_size, shape)
        output_rows[token_rows] = done + places
        done += group.num_rows * group.num_queries
        groups.append(group)
    in_order = is_native or (not repeats and done == num_tokens and bool((output_rows == np.arange(done)).all()))
    return StepPlan(
        num_tokens=num_tokens,
        order=order,
        offsets=tuple(offsets),
        positions=positions,
        num_positions=num_positions,
        write_rows=write_rows.reshape(-1),
        direct=_direct_slices(slices, offsets, block_size) if is_native else None,
        groups=tuple(groups),
        output_rows=None if in_order else output_rows,
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
    slices: Sequence[TokenSlice], num_heads: int, geometry: CacheGeometry, block_size: int, *, repeats: bool
) -> list[tuple[tuple[int, int], list[_Piece]]]:
    """Pieces of like query and key lengths, together as far as memory allows, and their queries and blocks at most."""
    pieces_by_key: dict[tuple[int, int], list[_Piece]] = {}
    for index, part in enumerate(slices):
        for piece in _cut(index, part, num_heads, block_size, repeats=repeats):
            pieces_by_key.setdefault(_group_key(piece, repeats=repeats), []).append(piece)
    grouped = []
    for key in sorted(pieces_by_key):
        pieces = pieces_by_key[key]
        shape = (query_size(max(piece.num_queries for piece in pieces)), key[1]) if repeats else key
        grouped += [(shape, group) for group in _split(pieces, shape, num_heads, geometry, block_size, repeats=repeats)]
    return grouped


def _cut(index: int, part: TokenSlice, num_heads: int, block_size: int, *, repeats: bool) -> Iterator[_Piece]:
    """Cut a slice into pieces, each short enough that its scores alone are no more than a group may have."""
    most_keys = _block_bucket(_num_blocks(part.start + part.num_tokens, block_size)) * block_size
    longest = min(_MAX_QUERY_LENGTH, max(1, MAX_GROUP_SCORES // (num_heads * most_keys)))
    if repeats:
        longest = largest_query_size(longest)
    elif longest > _QUERY_BUCKET:
        longest -= longest % _QUERY_BUCKET
    for offset in range(0, part.num_tokens, longest):
        num_queries = min(longest, part.num_tokens - offset)
        yield _Piece(index, offset, num_queries, _num_blocks(part.start + offset + num_queries, block_size))


def _split(
    pieces: list[_Piece],
    shape: tuple[int, int],
    num_heads: int,
    geometry: CacheGeometry,
    block_size: int,
    *,
    repeats: bool,
) -> Iterator[list[_Piece]]:
    """Divide pieces of like lengths into groups that are bounded in memory, the padding of their rows included."""
    num_queries, num_keys = shape[0], shape[1] * block_size
    by_scores = MAX_GROUP_SCORES // (num_heads * num_queries * num_keys)
    by_gathered = MAX_GATHERED_ELEMENTS // (geometry.num_kv_heads * geometry.head_dim * num_keys)
    most = max(1, min(by_scores, by_gathered))
    if repeats:
        most = largest_row_size(most)
    for start in range(0, len(pieces), most):
        yield pieces[start : start + most]


def _num_blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _group_key(piece: _Piece, *, repeats: bool) -> tuple[int, int]:
    """Like query lengths and like key lengths: bucketed, so that groups are few and padding is bounded by a half.

    Where shapes are to repeat, short pieces are alike whatever their lengths, which drafts and chunks mix anew each
    step. Trade-off: one that verifies nothing is padded to as many queries as the deepest draft, up to eight; a group
    of its own would cost ten operators in each layer and reads the same keys.
    """
    queries = piece.num_queries
    if repeats:
        queries = 1 if queries <= _SHORT_QUERY_LENGTH else query_size(queries)
    elif queries > _SHORT_QUERY_LENGTH:
        queries = -(-queries // _QUERY_BUCKET) * _QUERY_BUCKET
    return queries, _block_bucket(piece.num_blocks)


def _block_bucket(num_blocks: int) -> int:
    return max(_MIN_BLOCK_BUCKET, 1 << (num_blocks - 1).bit_length())


def _tables(slices: Sequence[TokenSlice], block_size: int) -> IntArray:
    """Block tables as one array ``[num_slices, max_blocks]``.

    Unused entries are always masked. They repeat the slice's own first block: a masked NaN would still spread, so
    nobody reads a block of somebody else's.
    """
    used = [_num_blocks(part.start + part.num_tokens, block_size) for part in slices]
    tables = np.empty((len(slices), _block_bucket(max(used))), dtype=np.int64)
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
    shape: tuple[int, int] | None,
) -> tuple[GroupPlan, IntArray, IntArray]:
    """Plan one group; also return its tokens' packed positions and their places within the group's output.

    ``shape``, queries and blocks, is what a group is padded to where shapes are to repeat, and its rows with it.
    """
    counts = np.asarray([piece.num_queries for piece in pieces])
    if shape is None:
        num_queries, num_blocks, num_rows = int(counts.max()), max(p.num_blocks for p in pieces), len(pieces)
    else:
        (num_queries, num_blocks), num_rows = shape, row_size(len(pieces))
    firsts = np.asarray([offsets[piece.slice_index] + piece.offset for piece in pieces])
    starts = np.asarray([slices[piece.slice_index].start + piece.offset for piece in pieces])
    # [n, q]; padding repeats the last query and the last slice, and its output is never read
    steps = np.minimum(np.arange(num_queries)[None, :], counts[:, None] - 1)
    members = tables[[piece.slice_index for piece in pieces], :num_blocks]
    given = np.minimum(np.arange(num_rows), len(pieces) - 1)
    query_rows = (firsts[:, None] + steps)[given]
    visible = (starts[:, None] + steps)[given] + 1
    # [n, num_kv_heads, num_blocks]
    gather_rows = members[given][:, None, :] * len(heads) + heads[None, :, None]

    flat_rows = query_rows.reshape(-1)
    dense = bool((flat_rows == np.arange(flat_rows[0], flat_rows[0] + flat_rows.size)).all())
    real = np.arange(num_queries)[None, :] < counts[:, None]
    places = np.flatnonzero(real.reshape(-1))
    group = GroupPlan(
        num_rows=num_rows,
        num_queries=num_queries,
        num_keys=num_blocks * block_size,
        first_token=int(flat_rows[0]),
        # A view with an offset is a copy with a write-back on DirectML; there rows are always selected.
        query_rows=None if dense and shape is None else flat_rows,
        gather_rows=gather_rows.reshape(-1),
        visible=visible.reshape(-1),
    )
    return group, flat_rows[places], places
