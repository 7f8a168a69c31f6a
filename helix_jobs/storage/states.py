"""JobState, and BatchState derived from counts."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobState(StrEnum):
    """State of the stored row. ``queued`` and ``running`` are runnable; the other three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
RUNNABLE_STATES: Final = frozenset({JobState.QUEUED, JobState.RUNNING})


# Outcomes of a job: its final state, or the error code if it failed.
OUTCOMES: Final = (JobState.SUCCEEDED.value, JobState.CANCELLED.value, *(code.value for code in ErrorCode))


class BatchState(StrEnum):
    """State of a batch: derived, never stored."""

    SUBMITTING = "submitting"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


def derive_batch_state(
    counts: Mapping[JobState, int], *, sealed: bool, cancelled: bool, paused: bool = False
) -> BatchState:
    """Derive a batch's state from its jobs' counts.

    Args:
        counts: Jobs per state; missing states count as 0.
        sealed: Whether every line has been stored.
        cancelled: Whether the batch was cancelled.
        paused: Whether the batch was paused. Jobs that ran then still end.
    """
    if not sealed:
        return BatchState.SUBMITTING
    if paused and not cancelled and counts.get(JobState.QUEUED, 0):
        return BatchState.PAUSED
    if counts.get(JobState.RUNNING, 0):
        return BatchState.RUNNING
    if counts.get(JobState.QUEUED, 0):
        finished = sum(counts.get(state, 0) for state in FINAL_STATES)
        return BatchState.RUNNING if finished else BatchState.QUEUED
    return BatchState.CANCELLED if cancelled else BatchState.DONE
