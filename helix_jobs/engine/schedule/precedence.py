"""Precedence: who goes first, and who makes room. Pure functions; no torch.

A higher priority goes first, and of equals the one that came first. A request is *urgent* if a person waits for its
answer. An urgent request waits neither for a slot nor for blocks that bulk work holds: bulk sequences are *displaced*,
which means preempted for it, the youngest of the lowest priority first.

Bulk work never stands still. Urgent requests displace others only as long as they hold fewer than their own slots, and
a sequence that was displaced ``MAX_DISPLACED`` times keeps its slot to its end. Where the batch has one slot, a bulk
sequence that was overtaken often enough goes first, as in ``admission``.
"""

from __future__ import annotations

from bisect import insort_left, insort_right
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.schedule.admission import MAX_OVERTAKEN

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

    from helix_jobs.engine.schedule.admission import Candidate
    from helix_jobs.engine.schedule.sequence import Sequence

# Trade-off: a higher bound serves urgent requests at once for longer; each displacement computes a sequence again, as
# far as its blocks were evicted meanwhile.
MAX_DISPLACED: Final = 4


def join(running: list[Sequence], sequence: Sequence) -> None:
    """Add a sequence to the running ones: behind those of its priority, before those of a lower one."""
    insort_right(running, sequence, key=_rank)


def enqueue(waiting: deque[Sequence], sequence: Sequence) -> None:
    """Queue a sequence behind those of its priority."""
    if not waiting or waiting[-1].priority >= sequence.priority:
        waiting.append(sequence)
    else:
        insort_right(waiting, sequence, key=_rank)


def put_back(waiting: deque[Sequence], sequence: Sequence) -> None:
    """Queue a preempted sequence before those of its priority."""
    if not waiting or waiting[0].priority <= sequence.priority:
        waiting.appendleft(sequence)
    else:
        insort_left(waiting, sequence, key=_rank)


def may_displace(running: list[Sequence], waiting: deque[Sequence], urgent_slots: int) -> bool:
    """Whether another urgent request goes before bulk work: it has a slot left of its own, or there is no bulk work.

    Args:
        running: Highest priority first.
        waiting: Highest priority first.
        urgent_slots: Slots that urgent requests hold at most while there is bulk work.
    """
    if sum(sequence.is_urgent for sequence in running) < urgent_slots:
        return True
    return not any(line and not line[-1].is_urgent for line in (running, waiting))


def displaceable(running: list[Sequence]) -> list[Sequence]:
    """The bulk sequences that make room for an urgent one, in the order in which they do."""
    return [one for one in reversed(running) if not one.is_urgent and one.num_displaced < MAX_DISPLACED]


def first_bulk(waiting: deque[Sequence]) -> Sequence | None:
    """The bulk sequence that waits at the head of all others; None without one."""
    if not waiting or waiting[-1].is_urgent:
        return None
    return next((sequence for sequence in waiting if not sequence.is_urgent), None)


def is_overdue(sequence: Sequence | None) -> bool:
    """Whether a waiting sequence was overtaken so often that the next free slot is its own."""
    return sequence is not None and sequence.num_overtaken >= MAX_OVERTAKEN


def overtaken_by(candidates: list[Candidate], chosen: Candidate) -> list[Sequence]:
    """The waiting sequences that have come before the chosen one: of its priority, or of a lower one."""
    place = candidates.index(chosen)
    behind = (one.sequence for one in candidates[place + 1 :])
    lower = [
        one for one in behind if one.priority < chosen.sequence.priority and one.added_at < chosen.sequence.added_at
    ]
    return [*(one.sequence for one in candidates[:place]), *lower]


def note_overtaken(sequences: Iterable[Sequence]) -> None:
    """Count that they were overtaken once more."""
    for sequence in sequences:
        sequence.num_overtaken = min(MAX_OVERTAKEN, sequence.num_overtaken + 1)


def _rank(sequence: Sequence) -> int:
    return -sequence.priority
