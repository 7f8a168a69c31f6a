"""WorkerCounters: how many messages and jobs a worker was given, ended, refused or lost since it started."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ErrorCode
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping


# The outcomes a worker itself can write: commands cancel jobs, and other workers write ``worker_lost``.
WORKER_OUTCOMES: Final = (JobState.SUCCEEDED.value, *(c.value for c in ErrorCode if c is not ErrorCode.WORKER_LOST))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounters:
    """A snapshot; every count only grows.

    Attributes:
        delivered: Messages that name a job, repeated ones included.
        outcomes: Outcome -> jobs that this worker ended with it.
        fenced: Writes the database refused because the lease had moved on, and endings that came after their lease was
            lost.
        rejected_messages: Dropped messages that name no job: malformed, oversized, of another task, or with more in
            them than a job id.
        postponed: How often a job at its last attempt waited in vain to run alone and was postponed.
        refused_answers: Answers that the jobs' own acceptance rules refused.
        void_messages: Messages whose job needed no work: it had ended, was cancelled or taken by another worker, or
            does not exist. Duplicates and forged ids count here.
        from_cache: Jobs that were delivered and took a stored answer.
    """

    delivered: int = 0
    outcomes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(WORKER_OUTCOMES, 0))
    fenced: int = 0
    rejected_messages: int = 0
    void_messages: int = 0
    postponed: int = 0
    refused_answers: int = 0
    from_cache: int = 0

    @property
    def deliveries(self) -> int:
        """All messages from the broker, jobs or not: while this grows, the connection delivers."""
        return self.delivered + self.rejected_messages


class Counting:
    """The running counts. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(WORKER_OUTCOMES, 0)
        self._counts = {one.name: 0 for one in fields(WorkerCounters) if one.name != "outcomes"}

    @property
    def so_far(self) -> WorkerCounters:
        """The counts now."""
        with self._lock:
            return WorkerCounters(outcomes=dict(self._outcomes), **self._counts)

    def add(self, **more: int) -> None:
        """Raise counts, each named as in ``WorkerCounters``."""
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count

    def add_outcome(self, name: str) -> None:
        """Count a job that ended with this outcome."""
        with self._lock:
            self._outcomes[name] = self._outcomes.get(name, 0) + 1
