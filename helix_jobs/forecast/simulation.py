"""simulate: how long an engine takes for jobs of known lengths, as it admits one whenever another ends.

All sequences of a step advance together. So the time of each is kept in tokens ("how far a sequence that has run all
along would be"), and one heap holds where each sequence ends.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.forecast.rate_model import RateModel


def simulate(
    running: Sequence[int],
    waiting: Sequence[tuple[int, int]],
    rate: RateModel,
    slots: int,
    *,
    waiting_count: int | None = None,
) -> float:
    """Seconds until the last job ends.

    Args:
        running: Tokens that each job under way still has to emit.
        waiting: For each waiting job, in their order, the prompt tokens to compute and the tokens to emit.
        rate: How fast the engine is.
        slots: Sequences at once.
        waiting_count: How many jobs those of ``waiting`` stand for; None for themselves.
    """
    seconds_at = [0.0, *(rate.at(size) for size in range(1, max(slots, len(running)) + 1))]
    ends = [float(tokens) for tokens in running]
    heapify(ends)
    at = seconds = 0.0
    admitted_at_once = 0
    for prompt_tokens, tokens in waiting:
        if len(ends) < slots:
            admitted_at_once += 1
        else:
            end = ends[0]
            seconds += (end - at) * seconds_at[len(ends)]
            at = end
        seconds += prompt_tokens * rate.prompt_token_seconds
        if len(ends) < slots:
            heappush(ends, at + max(tokens - rate.free_tokens, 0))
        else:
            heapreplace(ends, at + max(tokens - rate.free_tokens, 0))
    one_by_one = len(waiting) - admitted_at_once
    if waiting_count is not None and one_by_one > 0:
        # Until the last job is admitted all slots are busy, and time is in proportion to jobs.
        seconds *= (waiting_count - admitted_at_once) / one_by_one
    while ends:
        busy = len(ends)
        end = heappop(ends)
        seconds += (end - at) * seconds_at[busy]
        at = end
    return seconds
