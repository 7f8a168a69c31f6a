"""StatePlan: how the recurrent layers of one step compute, planned on the host in NumPy.

A slice is cut into *pieces* where states are to be kept. A piece reads what the piece before it keeps, so the pieces of
a step run in rounds: first the first pieces of all slices, then the second ones. Pieces of similar length in a round
form a *group* and are computed side by side: the tokens up to the kept state end together, padding before them, and
the draft tokens behind begin together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.step_layout import TokenSlice
    from helix_jobs.engine.attention.step_plan import SharedTensors
    from helix_jobs.engine.recurrence.state_cache import StateCache

    IntArray = NDArray[np.int64]

# Tokens of a group, padding included, unless a single piece has more. Trade-off: larger groups mean fewer calls, and
# more memory for their inputs.
_MAX_GROUP_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class StateGroup:
    """Pieces that are computed side by side, on the device.

    Attributes:
        num_pieces: Number of pieces, ``n`` below.
        num_kept: Tokens of each up to the state that it keeps, padding included.
        num_tokens: All tokens of each, padding included, ``t`` below.
        read_rows: ``[n]`` rows of the states to begin with.
        sources: ``[n * (window + t)]`` for each layer window: which row of the group's material each input is, see
            ``StateStep``.
        replayed: Rows of the slots that hold the inputs to replay, or None.
        padding: ``[n, t]`` True for padding, or None.
        keep_rows: Rows that take the kept states, or None.
        keep_places: Which pieces keep one, or None for all.
    """

    num_pieces: int
    num_kept: int
    num_tokens: int
    read_rows: torch.Tensor
    sources: dict[int, torch.Tensor]
    replayed: torch.Tensor | None
    padding: torch.Tensor | None
    keep_rows: torch.Tensor | None
    keep_places: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class StateLayout:
    """A planned step's recurrent part, on the device.

    Attributes:
        groups: In order of computation.
        output_rows: ``[T]`` row of each token's result among the groups' results one after another.
        drafted_rows: Rows of the slots that take the inputs of draft tokens, or None.
        drafted_tokens: Packed positions of these tokens.
    """

    groups: tuple[StateGroup, ...]
    output_rows: torch.Tensor
    drafted_rows: torch.Tensor | None
    drafted_tokens: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class StateGroupPlan:
    """A ``StateGroup``, planned on the host."""

    num_pieces: int
    num_kept: int
    num_tokens: int
    read_rows: IntArray
    sources: dict[int, IntArray]
    replayed: IntArray | None
    padding: IntArray | None
    keep_rows: IntArray | None
    keep_places: IntArray | None

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        optional = (self.replayed, self.padding, self.keep_rows, self.keep_places)
        return [self.read_rows, *self.sources.values(), *(one for one in optional if one is not None)]

    def on_device(self, uploaded: Iterator[torch.Tensor]) -> StateGroup:
        """Make the group from the uploaded ``arrays``."""
        return StateGroup(
            self.num_pieces,
            self.num_kept,
            self.num_tokens,
            next(uploaded),
            {window: next(uploaded) for window in self.sources},
            None if self.replayed is None else next(uploaded),
            None if self.padding is None else next(uploaded).view(self.num_pieces, self.num_tokens) > 0,
            None if self.keep_rows is None else next(uploaded),
            None if self.keep_places is None else next(uploaded),
        )


@dataclass(frozen=True, slots=True)
class StatePlan:
    """A ``StateLayout``, planned on the host (satisfies ``AttentionPlan``)."""

    groups: tuple[StateGroupPlan, ...]
    output_rows: IntArray
    drafted_rows: IntArray | None
    drafted_tokens: IntArray | None

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        grouped = [array for group in self.groups for array in group.arrays()]
        drafted = (one for one in (self.drafted_rows, self.drafted_tokens) if one is not None)
        return [*grouped, self.output_rows, *drafted]

    def on_device(self, uploaded: Iterator[torch.Tensor], _shared: SharedTensors) -> StateLayout:
        """Make the layout from the uploaded ``arrays``; all recurrent layers have the one."""
        return StateLayout(
            tuple(group.on_device(uploaded) for group in self.groups),
            next(uploaded),
            None if self.drafted_rows is None else next(uploaded),
            None if self.drafted_tokens is None else next(uploaded),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive tokens of a slice.

    Attributes:
        read_row: The state it begins with.
        replayed: Rows of the slots with the inputs to replay first.
        first_token: Packed position of its first new token.
        num_known: New tokens up to the kept state.
        num_drafts: New tokens behind it.
        keep_row: The row that takes the state, or None.
    """

    read_row: int
    replayed: tuple[int, ...]
    first_token: int
    num_known: int
    num_drafts: int
    keep_row: int | None

    @property
    def num_kept(self) -> int:
        """Tokens before the kept state."""
        return len(self.replayed) + self.num_known

    @property
    def size_class(self) -> tuple[int, int]:
        """Pieces of one class are computed side by side with little padding."""
        return self.num_kept.bit_length(), self.num_drafts.bit_length()


@dataclass(slots=True)
class _Drafted:
    """Where the inputs of draft tokens come from and go to."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def plan_states(slices: Sequence[TokenSlice], offsets: Sequence[int], num_rows: int, cache: StateCache) -> StatePlan:
    """Plan the recurrent layers of a step.

    Args:
        slices: New tokens per sequence. One without a span begins with the zero state, and nothing of it is kept.
        offsets: Where each slice starts in the packed row.
        num_rows: ``T``, tokens in the packed row, those that pad it included.
        cache: The model's states.
    """
    drafted = _Drafted()
    rounds: list[list[_Piece]] = []
    for part, offset in zip(slices, offsets, strict=True):
        for number, piece in enumerate(_pieces(part, offset, cache, drafted)):
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(piece)
    windows = sorted({shape.window for shape in cache.shapes})
    # Padding tokens may take any result.
    output_rows = np.zeros(num_rows, dtype=np.int64)
    groups: list[StateGroupPlan] = []
    done = 0
    for pieces in (group for one in rounds for group in _grouped(one)):
        group = _plan_group(pieces, windows)
        for index, piece in enumerate(pieces):
            first = done + index * group.num_tokens + group.num_kept - piece.num_known
            count = piece.num_known + piece.num_drafts
            output_rows[piece.first_token : piece.first_token + count] = np.arange(first, first + count)
        done += len(pieces) * group.num_tokens
        groups.append(group)
    return StatePlan(tuple(groups), output_rows, _array(drafted.rows), _array(drafted.tokens))


def _pieces(part: TokenSlice, offset: int, cache: StateCache, drafted: _Drafted) -> list[_Piece]:
    """Cut a slice where states are kept; its draft tokens belong to the last piece."""
    span = part.state
    if span is None:
        return [_Piece(cache.zero_row, (), offset, part.num_tokens, 0, None)]
    assert span.length <= part.start, "a checkpoint lies at or before the first new token"
    assert not span.keeps or span.keeps[-1].length >= part.start, "replayed tokens lie before a kept state"
    pieces: list[_Piece] = []
    row = cache.zero_row if span.row is None else span.row
    begin, end = span.length, part.start + part.num_tokens
    for kept in span.keeps or (None,):
        until = max(begin, part.start) if kept is None else kept.length
        replayed = tuple(
            span.slot * cache.ring + position % cache.ring for position in range(begin, min(until, part.start))
        )
        first = max(begin, part.start)
        num_known = max(0, until - first)
        is_last = kept is None or kept is span.keeps[-1]
        pieces.append(
            _Piece(
                row,
                replayed,
                offset + first - part.start,
                num_known,
                end - max(until, part.start) if is_last else 0,
                None if kept is None else kept.row,
            )
        )
        begin, row = until, row if kept is None else kept.row
    for position in range(max(begin, part.start), end):
        drafted.rows.append(span.slot * cache.ring + position % cache.ring)
        drafted.tokens.append(offset + position - part.start)
    return pieces


def _grouped(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces of one class each, within the bound on a group's tokens."""
    for _, alike in groupby(sorted(pieces, key=lambda piece: piece.size_class), key=lambda piece: piece.size_class):
        group: list[_Piece] = []
        kept = drafts = 0
        for piece in alike:
            kept, drafts = max(kept, piece.num_kept), max(drafts, piece.num_drafts)
            if group and (len(group) + 1) * (kept + drafts) > _MAX_GROUP_TOKENS:
                yield group
                group, kept, drafts = [], piece.num_kept, piece.num_drafts
            group.append(piece)
        yield group


def _plan_group(pieces: Sequence[_Piece], windows: Sequence[int]) -> StateGroupPlan:
    """Plan one group.

    Its material is, in this order: one row of zeros, the windows of its pieces, the replayed inputs, and the inputs of
    the whole step.
    """
    count = len(pieces)
    num_kept = max(piece.num_kept for piece in pieces)
    num_tokens = num_kept + max(piece.num_drafts for piece in pieces)
    replayed = [row for piece in pieces for row in piece.replayed]
    sources: dict[int, IntArray] = {}
    for window in windows:
        rows = np.zeros((count, window + num_tokens), dtype=np.int64)
        first_replayed = 1 + count * window
        first_new = first_replayed + len(replayed)
        for index, piece in enumerate(pieces):
            place = num_kept - piece.num_kept
            rows[index, place : place + window] = 1 + index * window + np.arange(window)
            place += window
            rows[index, place : place + len(piece.replayed)] = first_replayed + np.arange(len(piece.replayed))
            first_replayed += len(piece.replayed)
            place += len(piece.replayed)
            new = piece.num_known + piece.num_drafts
            rows[index, place : place + new] = first_new + piece.first_token + np.arange(new)
        sources[window] = rows.reshape(-1)
    padding = np.zeros((count, num_tokens), dtype=np.int64)
    for index, piece in enumerate(pieces):
        padding[index, : num_kept - piece.num_kept] = 1
        padding[index, num_kept + piece.num_drafts :] = 1
    kept = [(place, piece.keep_row) for place, piece in enumerate(pieces) if piece.keep_row is not None]
    return StateGroupPlan(
        count,
        num_kept,
        num_tokens,
        np.asarray([piece.read_row for piece in pieces], dtype=np.int64),
        sources,
        _array(replayed),
        padding.reshape(-1) if padding.any() else None,
        _array([row for _, row in kept]),
        _array([place for place, _ in kept]) if len(kept) < count else None,
    )


def _array(numbers: Sequence[int]) -> IntArray | None:
    return np.asarray(numbers, dtype=np.int64) if numbers else None
