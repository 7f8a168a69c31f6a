"""Cancels whose command was interrupted half-way, as a reconciler sees them from tick to tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.storage.batch_changes import Change


@dataclass(frozen=True, slots=True)
class CancelSeen:
    """How many jobs a cancel has left, and since when (monotonic) the number has not changed."""

    left: int
    since: float


def watch_cancels(
    previous: Mapping[Change, CancelSeen], unfinished: Mapping[Change, int], now: float
) -> dict[Change, CancelSeen]:
    """Add one sample of the cancels under way."""
    return {
        change: previous[change] if change in previous and previous[change].left == left else CancelSeen(left, now)
        for change, left in unfinished.items()
    }
