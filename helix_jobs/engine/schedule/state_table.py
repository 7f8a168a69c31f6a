"""StateTable: the recurrent states of one sequence. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.state_span import KeptState, StateSpan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.schedule.prefix_cache import Prefix
    from helix_jobs.engine.schedule.state_pool import StatePool

# Blocks from one snapshot of a long sequence to the next.
_SNAPSHOT_BLOCKS: Final = 32


class StateTable:
    """The rows of one sequence in one model's state cache.

    The *checkpoint* is a state behind verified tokens. A step reads it and writes the next one to another row, behind
    the tokens that it knows to be verified. Only once the step is committed, the next one begins there; until then the
    step can be repeated. A rejected draft needs no rollback: no row ever holds a state behind a draft token, only the
    slot holds its inputs.

    Args:
        pool: The model's rows and slots.
        block_size: Tokens a block of the cache of keys and values.
    """

    def __init__(self, pool: StatePool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._length = 0
        self._row: int | None = None
        # States that the step under way writes, each with whether it is to become a snapshot.
        self._written: list[tuple[KeptState, bool]] = []
        # The first token that this step computes.
        self._start = 0
        # Kept states that are not known to be finite yet: length -> row.
        self._unverified: dict[int, int] = {}
        self._wanted: set[int] = set()
        self.slot: int | None = None

    @property
    def rows(self) -> list[int]:
        """Every row that it holds, as often as it holds it."""
        checkpoint = [] if self._row is None else [self._row]
        return [*checkpoint, *(kept.row for kept, _ in self._written), *self._unverified.values()]

    def want_snapshot(self, num_tokens: int) -> None:
        """Keep a snapshot behind the full blocks of the first ``num_tokens`` tokens, when they are computed."""
        self._wanted.add(num_tokens // self._block_size * self._block_size)

    def longest(self, prefixes: Sequence[Prefix]) -> int:
        """See ``StatePool.longest``; where more blocks are cached than that, a snapshot is wanted at their end."""
        found = self._pool.longest(prefixes)
        if found < len(prefixes):
            self.want_snapshot(len(prefixes) * self._block_size)
        return found

    def share(self, prefixes: Sequence[Prefix]) -> None:
        """Begin behind these prefixes, at whose end ``longest`` has found a snapshot."""
        assert self._row is None, "only an empty table begins with a shared state"
        if prefixes:
            self._row = self._pool.find(prefixes[-1])
            self._length = len(prefixes) * self._block_size
            self._pool.share(self._row)

    def begin(self, start: int, end: int) -> StateSpan:
        """Plan a slice.

        Args:
            start: Its first token; all before it are computed.
            end: The end of its verified tokens; draft tokens may follow.
        """
        self.settle(start)
        self._start = start
        if self.slot is None:
            self.slot = self._pool.take_slot()
        for length in self._snapshot_lengths(self._length + 1, end):
            row = self._pool.take_for_snapshot()
            if row is not None:
                self._written.append((KeptState(length, row), True))
        if not self._written or self._written[-1][0].length < end:
            self._written.append((KeptState(end, self._pool.take()), False))
        return StateSpan(self.slot, self._length, self._row, tuple(kept for kept, _ in self._written))

    def behind(self) -> StateSpan:
        """Plan a slice of draft tokens behind the one that ``begin`` has planned, in a later pass of the same step."""
        assert self.slot is not None, "a slice of verified tokens comes first"
        last, _ = self._written[-1]
        return StateSpan(self.slot, last.length, last.row)

    def settle(self, num_computed: int) -> None:
        """Move on to the last state behind the first ``num_computed`` tokens; drop states behind more tokens.

        Where no more tokens are computed than before the step, it has failed, and all its states are dropped. It may
        have written none of them, not even those behind drafts that were accepted before.
        """
        written, self._written = self._written, []
        has_failed = num_computed <= self._start
        for kept, is_snapshot in written:
            if has_failed or kept.length > num_computed:
                self._pool.give_back(kept.row)
                continue
            if is_snapshot:
                self._unverified[kept.length] = kept.row
                self._pool.share(kept.row)
            if self._row is not None:
                self._pool.give_back(self._row)
            self._length, self._row = kept.length, kept.row

    def publish(self, prefixes: Sequence[Prefix], num_verified: int) -> None:
        """Let others begin with kept states behind at most ``num_verified`` tokens, all verified."""
        for length in [length for length in self._unverified if length <= num_verified]:
            self._pool.add(prefixes[length // self._block_size - 1], self._unverified.pop(length))

    def release(self, prefixes: Sequence[Prefix] = ()) -> None:
        """Give every row and the slot back. Safe to repeat.

        Args:
            prefixes: Snapshots behind these are not to be trusted, and dropped.
        """
        for prefix in prefixes:
            self._pool.forget(prefix)
        for row in self.rows:
            self._pool.give_back(row)
        if self.slot is not None:
            self._pool.give_back_slot(self.slot)
        self._length, self._row, self.slot = 0, None, None
        self._written, self._unverified = [], {}

    def _snapshot_lengths(self, first: int, last: int) -> list[int]:
        """Lengths from ``first`` to ``last`` behind which a snapshot is kept."""
        if not self._pool.keeps_snapshots:
            return []
        step = _SNAPSHOT_BLOCKS * self._block_size
        regular = range(-(-first // step) * step, last + 1, step)
        return sorted({*regular, *(length for length in self._wanted if first <= length <= last)} - {0})
