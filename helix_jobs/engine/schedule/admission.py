"""Admission: which of the waiting sequences starts next. Decides, changes nothing; no torch.

First come, first served is the base order. Within the look-ahead a request may *overtake* those that came before it, to
run while the blocks it shares are cached and beside prompts of like length; and it is *deferred* while a running
sequence computes blocks it could share a step later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf
    from collections.abc import Set as AbstractSet

    from helix_jobs.engine.schedule.prefix_cache import Prefix
    from helix_jobs.engine.schedule.sequence import Sequence

# Waiting requests that are looked at, in batch sizes. Trade-off: a wider window finds more that go together and costs
# every admission a look at each of them.
LOOK_AHEAD: Final = 4
# Later requests that may start before a waiting one; then it is next. Trade-off: a higher bound keeps groups with a
# common prefix together for longer, a lower one keeps answers closer to the order of arrival.
MAX_OVERTAKEN: Final = 64
# Steps a slot may stay empty because all who could take it are deferred. Trade-off: more waiting computes less twice;
# a prompt being computed takes one such step, as long as it is one step's work for the token budget.
MAX_DEFERRED: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting sequence within the look-ahead.

    Attributes:
        sequence: The sequence.
        num_cached: Leading tokens it would share.
        next_prefix: The first full block behind those that it could share; None when none is left.
    """

    sequence: Sequence
    num_cached: int
    next_prefix: Prefix | None

    @classmethod
    def of(cls, sequence: Sequence) -> Candidate:
        """Look up what a waiting sequence would share."""
        num_cached = len(sequence.cached_blocks())
        block_size = sequence.table.block_size
        more = not sequence.was_recomputed and num_cached < (len(sequence) - 1) // block_size
        return cls(sequence, num_cached * block_size, sequence.table.prefixes[num_cached] if more else None)

    @property
    def is_mostly_cached(self) -> bool:
        """Whether at least half of its tokens would be shared: worth a place before others, while it lasts."""
        return 2 * self.num_cached >= len(self.sequence)


def size_class(num_tokens: int) -> int:
    """Prompts of like length share one: they are computed as few dense attention problems with little padding."""
    return num_tokens.bit_length()


def choose(
    candidates: SequenceOf[Candidate], computing: AbstractSet[Prefix], num_prefill_tokens: int | None
) -> Candidate | None:
    """The one to start next, or None when all had better wait a step.

    Args:
        candidates: In the order of the queue.
        computing: Prefixes that running sequences are computing.
        num_prefill_tokens: Tokens that the first prefilling sequence of the step has to compute; None without one.
    """
    for candidate in candidates:
        if candidate.sequence.num_overtaken >= MAX_OVERTAKEN:
            return candidate
    ready = [
        candidate
        for candidate in candidates
        if candidate.next_prefix not in computing or candidate.sequence.num_deferred >= MAX_DEFERRED
    ]
    alike = None if num_prefill_tokens is None else size_class(num_prefill_tokens)
    # Of equals, min takes the first.
    return min(
        ready,
        key=lambda c: (not c.is_mostly_cached, size_class(len(c.sequence) - c.num_cached) != alike),
        default=None,
    )
