"""WorkerCounters: what a worker has refused or lost since it started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounters:
    """A snapshot; every count only grows.

    Attributes:
        fenced: Writes the database refused because the lease had moved on, and endings that came after their lease was
            lost.
        rejected_messages: Messages that name no job: malformed, oversized, of another task, with more in them than a
            job id. Dropped.
        void_messages: Messages whose job there was nothing to do for: it had ended, was cancelled or taken by another,
            or does not exist. Duplicates end here, and forged ids.
    """

    fenced: int = 0
    rejected_messages: int = 0
    void_messages: int = 0
