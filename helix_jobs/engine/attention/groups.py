"""Groups: a step's attention as a few dense problems, for backends that compute it with matrix products.

Slices with similar query and key lengths are packed side by side and form one *group*, which is one dense problem. The
linear layers then need no padding, and attention needs little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from helix_jobs.engine.attention.step_plan import PackedSlices, block_bucket, num_blocks_of
from helix_jobs.engine.devices.shape_sizes import largest_query_size, largest_row_size, query_size, row_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from helix_jobs.engine.attention.cache_geometry import BlockRows, CacheGeometry
    from helix_jobs.engine.attention.step_layout import TokenSlice
    from helix_jobs.engine.attention.step_plan import SharedTensors, StepPlan

    IntArray = NDArray[np.int64]

# A slice of at most this many queries is short. Short slices are grouped by exact length, so decoding wastes nothing.
# Where shapes must repeat, short slices are grouped whatever their lengths.
_SHORT_QUERY_LENGTH: Final = 8
_QUERY_BUCKET: Final = 32
# Longer prompt chunks are cut for attention, so that early queries do not pay for late keys.
_MAX_QUERY_LENGTH: Final = 256
# Bounds on the memory of one group, whatever the prompts' lengths. Scores: the softmax needs two copies in float32 (128
# MiB together). Gathered elements: as many of keys as of values (256 MiB together in half precision). ``step_memory``
# counts both. Trade-off: larger groups mean fewer operator calls; these keep a GPU busy for about as long as it takes
# to start the next group's operators.
MAX_GROUP_SCORES: Final = 1 << 24
MAX_GATHERED_ELEMENTS: Final = 1 << 26
# Far below any score, yet finite: DirectML turns -inf into NaN.
_MASKED_SCORE: Final = -1e30


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Slices (or pieces of long ones) with similar query and key lengths, as one dense problem.

    Attributes:
        num_rows: Number of slices, ``n`` below.
        num_queries: Queries of each, padded to the longest, ``q`` below.
        first_token: Where the group's queries start in the packed row, if they are consecutive there.
        query_rows: ``[n * q]`` packed positions of the queries, if they are not consecutive.
        gather_rows: ``[n * num_kv_heads * num_blocks]`` rows of the cache's gather view, for each kind of rows that
            layers have.
        masks: ``[n, 1, q, num_keys]`` additive fp32 mask of the layers with each window.
    """

    num_rows: int
    num_queries: int
    first_token: int
    query_rows: torch.Tensor | None
    gather_rows: Mapping[BlockRows, torch.Tensor]
    masks: Mapping[int | None, torch.Tensor]


@dataclass(frozen=True, slots=True)
class GroupedSlices:
    """A step's groups, on the device.

    Attributes:
        groups: Dense problems that cover every token once.
        output_rows: ``[T]`` row of each token's attention output in the concatenated group outputs; None if the
            concatenation is already in packed order.
    """

    groups: tuple[AttentionGroup, ...]
    output_rows: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """An ``AttentionGroup``, planned on the host.

    Attributes:
        num_rows: As in the group.
        num_queries: As in the group.
        num_keys: Keys gathered for each slice, padding included.
        first_token: As in the group.
        query_rows: As in the group.
        gather_rows: As in the group.
        visible: ``[n * q]`` number of gathered keys up to each query's own; the device makes the masks from it.
        windows: The windows of the model's layers, each once.
    """

    num_rows: int
    num_queries: int
    num_keys: int
    first_token: int
    query_rows: IntArray | None
    gather_rows: Mapping[BlockRows, IntArray]
    visible: IntArray
    windows: tuple[int | None, ...]

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        given = [] if self.query_rows is None else [self.query_rows]
        return [*given, *self.gather_rows.values(), self.visible]

    def on_device(self, uploaded: Iterator[torch.Tensor], shared: SharedTensors) -> AttentionGroup:
        """See ``AttentionPlan``. Masks are shared: they are large, and alike for all sections of one window."""
        query_rows = None if self.query_rows is None else next(uploaded)
        gather_rows = {rows: next(uploaded) for rows in self.gather_rows}
        visible = next(uploaded).view(self.num_rows, 1, self.num_queries, 1)
        origin = (self.num_rows, self.num_queries, self.num_keys, self.visible.tobytes())
        masks = {}
        for window in self.windows:
            if (window, origin) not in shared:
                shared[window, origin] = self._mask(visible, window)
            masks[window] = shared[window, origin]
        return AttentionGroup(self.num_rows, self.num_queries, self.first_token, query_rows, gather_rows, masks)

    def _mask(self, visible: torch.Tensor, window: int | None) -> torch.Tensor:
        """The mask of the layers with a window, ``[n, 1, q, num_keys]``; ``visible`` is ``[n, 1, q, 1]``."""
        keys = torch.arange(self.num_keys, dtype=torch.int64, device=visible.device)
        hidden = keys >= visible
        if window is not None:
            hidden = hidden | (keys < visible - window)  # DirectML changes no booleans in place
        return hidden.float() * _MASKED_SCORE


@dataclass(frozen=True, slots=True)
class GroupedPlan:
    """``GroupedSlices``, planned on the host (satisfies ``AttentionPlan``)."""

    groups: tuple[GroupPlan, ...]
    output_rows: IntArray | None

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        grouped = [array for group in self.groups for array in group.arrays()]
        return [*grouped, *([] if self.output_rows is None else [self.output_rows])]

    def on_device(self, uploaded: Iterator[torch.Tensor], shared: SharedTensors) -> GroupedSlices:
        """See ``AttentionPlan``."""
        groups = tuple(group.on_device(uploaded, shared) for group in self.groups)
        return GroupedSlices(groups, None if self.output_rows is None else next(uploaded))


@dataclass(slots=True)
class _Piece:
    """Consecutive queries of one slice, at most ``_MAX_QUERY_LENGTH``."""

    slice_index: int
    offset: int  # place of its first query within the slice
    num_queries: int
    num_blocks: int  # blocks its last query sees


def plan_groups(
    slices: Sequence[TokenSlice],
    geometry: CacheGeometry,
    block_size: int,
    *,
    num_heads: int,
    block_rows: tuple[BlockRows, ...],
    windows: tuple[int | None, ...] = (None,),
    spare_block: int | None = None,
    least_tokens: int = 0,
    section: int = 0,
    window: int | None = None,
) -> StepPlan:
    """Pack slices and divide their attention into groups.

    Args:
        slices: New tokens per sequence, each with at least one token.
        geometry: Shapes of the model's keys and values. Groups are the same for all layers, and bounded for the widest.
        block_size: Tokens a block.
        num_heads: The model's query heads.
        block_rows: The rows of the layers to plan for, each once.
        windows: The windows of the layers to plan for, each once.
        spare_block: First of the cache's blocks that padding is written to. Given if shapes must repeat because the
            device compiles each one (DirectML). Tokens, and the rows, queries and keys of groups, are then padded to
            one of few sizes.
        least_tokens: With a spare block, the least number of tokens to pad to; at most ``SMALL_STEP``.
        section: The section of layers to plan for.
        window: Keys that its queries see at most; None for all. No others are gathered.
    """
    repeats = spare_block is not None
    grouped = _grouped(slices, num_heads, geometry, block_size, repeats=repeats)
    order = tuple(dict.fromkeys(piece.slice_index for _, pieces in grouped for piece in pieces))
    packed = PackedSlices.of(
        slices,
        order,
        block_rows,
        block_size,
        spare_block=spare_block,
        least_tokens=least_tokens,
        section=section,
        window=window,
    )
    groups = []
    # Padding tokens may take any output row.
    output_rows = np.zeros(len(packed.positions), dtype=np.int64)
    done = 0
    for key, pieces in grouped:
        shape = key if repeats else None
        group, token_rows, places = _plan_group(pieces, slices, packed, block_size, shape, windows, window)
        output_rows[token_rows] = done + places
        done += group.num_rows * group.num_queries
        groups.append(group)
    in_order = not repeats and done == packed.num_tokens and bool((output_rows == np.arange(done)).all())
    return packed.planned(GroupedPlan(tuple(groups), None if in_order else output_rows))


def _grouped(
    slices: Sequence[TokenSlice], num_heads: int, geometry: CacheGeometry, block_size: int, *, repeats: bool
) -> list[tuple[tuple[int, int], list[_Piece]]]:
    """Groups of pieces with similar query and key lengths, bounded in memory, each with its most queries and blocks."""
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
    """Cut a slice into pieces, each short enough for its scores to fit into one group."""
    most_keys = block_bucket(num_blocks_of(part.start + part.num_tokens, block_size)) * block_size
    longest = min(_MAX_QUERY_LENGTH, max(1, MAX_GROUP_SCORES // (num_heads * most_keys)))
    if repeats:
        longest = largest_query_size(longest)
    elif longest > _QUERY_BUCKET:
        longest -= longest % _QUERY_BUCKET
    for offset in range(0, part.num_tokens, longest):
        num_queries = min(longest, part.num_tokens - offset)
        yield _Piece(index, offset, num_queries, num_blocks_of(part.start + offset + num_queries, block_size))


def _split(
    pieces: list[_Piece],
    shape: tuple[int, int],
    num_heads: int,
    geometry: CacheGeometry,
    block_size: int,
    *,
    repeats: bool,
) -> Iterator[list[_Piece]]:
    """Divide pieces of similar lengths into groups that are bounded in memory, row padding included."""
    num_queries, num_keys = shape[0], shape[1] * block_size
    by_scores = MAX_GROUP_SCORES // (num_heads * num_queries * num_keys)
    by_gathered = MAX_GATHERED_ELEMENTS // (geometry.widest * num_keys)
    most = max(1, min(by_scores, by_gathered))
    if repeats:
        most = largest_row_size(most)
    for start in range(0, len(pieces), most):
        yield pieces[start : start + most]


def _group_key(piece: _Piece, *, repeats: bool) -> tuple[int, int]:
    """The bucket of a piece's query and key lengths: groups are then few, and padding is bounded by a half.

    Where shapes must repeat, all short pieces count as equally long, because drafts and chunks mix their lengths anew
    each step. Trade-off: a piece that verifies nothing is padded to the queries of the deepest draft, up to eight. A
    group of its own would read the same keys and cost ten more operators in each layer.
    """
    queries = piece.num_queries
    if repeats:
        queries = 1 if queries <= _SHORT_QUERY_LENGTH else query_size(queries)
    elif queries > _SHORT_QUERY_LENGTH:
        queries = -(-queries // _QUERY_BUCKET) * _QUERY_BUCKET
    return queries, block_bucket(piece.num_blocks)


def _plan_group(  # noqa: PLR0917  (one call site; the step's arrays and its geometry)
    pieces: list[_Piece],
    slices: Sequence[TokenSlice],
    packed: PackedSlices,
    block_size: int,
    shape: tuple[int, int] | None,
    windows: tuple[int | None, ...],
    window: int | None,
) -> tuple[GroupPlan, IntArray, IntArray]:
    """Plan one group; also return its tokens' packed positions and their places within the group's output.

    Where shapes must repeat, the group is padded to ``shape`` (queries and blocks), and its rows are padded too.
    """
    counts = np.asarray([piece.num_queries for piece in pieces])
    if shape is None:
        num_queries, num_blocks, num_rows = int(counts.max()), max(p.num_blocks for p in pieces), len(pieces)
    else:
        (num_queries, num_blocks), num_rows = shape, row_size(len(pieces))
    firsts = np.asarray([packed.offsets[piece.slice_index] + piece.offset for piece in pieces])
    starts = np.asarray([slices[piece.slice_index].start + piece.offset for piece in pieces])
    # [n, q]; padding repeats the last query and the last slice, and its output is never read
    steps = np.minimum(np.arange(num_queries)[None, :], counts[:, None] - 1)
    members = packed.tables[[piece.slice_index for piece in pieces], :num_blocks]
    if window is not None:
        # The first block that each piece sees; keys count from there.
        begins = np.maximum(starts - window + 1, 0) // block_size
        ends = np.asarray([piece.num_blocks for piece in pieces])
        most = block_bucket(num_blocks_of(window - 1 + num_queries, block_size) + 1)
        num_blocks = int((ends - begins).max()) if shape is None else min(num_blocks, most)
        columns = np.minimum(begins[:, None] + np.arange(num_blocks), members.shape[1] - 1)
        members = np.take_along_axis(members, columns, axis=1)
        starts = starts - begins * block_size
    given = np.minimum(np.arange(num_rows), len(pieces) - 1)
    query_rows = (firsts[:, None] + steps)[given]
    visible = (starts[:, None] + steps)[given] + 1
    blocks = members[given][:, None, :]
    gather_rows = {}
    for own in packed.write_rows:
        # [n, num_kv_heads, num_blocks]
        rows = blocks * own.stride + np.arange(own.num_heads, dtype=np.int64)[None, :, None]
        gather_rows[own] = rows.reshape(-1)

    flat_rows = query_rows.reshape(-1)
    dense = bool((flat_rows == np.arange(flat_rows[0], flat_rows[0] + flat_rows.size)).all())
    real = np.arange(num_queries)[None, :] < counts[:, None]
    places = np.flatnonzero(real.reshape(-1))
    group = GroupPlan(
        num_rows=num_rows,
        num_queries=num_queries,
        num_keys=num_blocks * block_size,
        first_token=int(flat_rows[0]),
        # On DirectML a view with an offset costs a copy and a write-back, so rows are always selected there.
        query_rows=None if dense and shape is None else flat_rows,
        gather_rows=gather_rows,
        visible=visible.reshape(-1),
        windows=windows,
    )
    return group, flat_rows[places], places
