"""Admission: which of the waiting sequences starts next. Pure functions; no torch.

A higher priority goes first. Among equals, first come, first served is the base order. Within the look-ahead a request
may *overtake* earlier ones, to run while the blocks it shares are cached or beside prompts of similar length. A request
is *deferred* while a running sequence computes blocks that it could share a step later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf
    from collections.abc import Set as AbstractSet

    from helix_jobs.engine.schedule.prefix_cache import Prefix
    from helix_jobs.engine.schedule.sequence import Sequence

# Waiting requests to consider, in batch sizes. Trade-off: a wider window finds more requests that go together, but each
# admission examines all of them.
LOOK_AHEAD: Final = 4
# Later requests that may start before a waiting one; then the waiting one is next. Trade-off: a higher bound keeps
# groups with a common prefix together for longer, a lower one keeps answers closer to the order of arrival.
MAX_OVERTAKEN: Final = 64
# Steps a slot may stay empty while every request that could take it is deferred. Trade-off: waiting longer computes
# fewer prefixes twice. A running prompt that fits the token budget needs only one such step.
MAX_DEFERRED: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting sequence within the look-ahead.

    Attributes:
        sequence: The sequence.
        num_cached: Leading tokens whose cached blocks it would share.
        next_prefix: The first full block behind them that it could share once cached; None when none is left.
    """

    sequence: Sequence
    num_cached: int
    next_prefix: Prefix | None

    @classmethod
    def of(cls, sequence: Sequence) -> Candidate:
        """Look up what a waiting sequence would share."""
        num_cached = sequence.num_cached_blocks()
        block_size = sequence.table.block_size
        more = num_cached < sequence.num_shareable // block_size
        return cls(sequence, num_cached * block_size, sequence.table.prefixes[num_cached] if more else None)

    @property
    def is_mostly_cached(self) -> bool:
        """Whether at least half of its tokens would be shared: it goes first, before the blocks are evicted."""
        return 2 * self.num_cached >= len(self.sequence)


def size_class(num_tokens: int) -> int:
    """The class of prompts of similar length, which share dense attention problems with little padding."""
    return num_tokens.bit_length()


def choose(
    candidates: SequenceOf[Candidate], computing: AbstractSet[Prefix], num_prefill_tokens: int | None
) -> Candidate | None:
    """The candidate to start next, or None when all should wait a step.

    Args:
        candidates: In the order of the queue. Those of another priority than the first wait for the next step.
        computing: Prefixes that running sequences are computing.
        num_prefill_tokens: Tokens that the first prefilling sequence of the step has to compute; None without one.
    """
    for candidate in candidates:
        # A further choice of a request waits until its prompt is computed, however often it was overtaken.
        if candidate.sequence.num_overtaken >= MAX_OVERTAKEN and not (
            candidate.sequence.choice and candidate.next_prefix in computing
        ):
            return candidate
    ready = [
        candidate
        for candidate in candidates
        if candidate.sequence.priority == candidates[0].sequence.priority
        and (candidate.next_prefix not in computing or candidate.sequence.num_deferred >= MAX_DEFERRED)
    ]
    alike = None if num_prefill_tokens is None else size_class(num_prefill_tokens)
    # Of equals, min takes the first.
    return min(
        ready,
        key=lambda c: (not c.is_mostly_cached, size_class(len(c.sequence) - c.num_cached) != alike),
        default=None,
    )
