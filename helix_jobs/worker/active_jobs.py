"""ActiveJobs: the jobs that threads of this process work on, and whether more are taken."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.storage.records import ClaimedJob
    from helix_jobs.worker.job_endings import Ending, Withdrawn

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class ActiveJob:
    """A job that a thread of this process works on, and its ending, settled by whichever part knows it first.

    Attributes:
        job_id: The id of its row.
        claim: None while the claim is under way.
        ending: How the job ends; its thread waits for this.
        called_again: Another message for the job came meanwhile and was acknowledged.
    """

    job_id: int
    claim: ClaimedJob | None = None
    ending: Future[Ending] = field(default_factory=Future)
    called_again: bool = False

    def settle(self, ending: Ending) -> None:
        """Say how the job ends; only the first call counts."""
        try:
            self.ending.set_result(ending)
        except InvalidStateError:
            logger.debug("job had ended already", extra={"job_id": self.job_id})


class NotTaken(Enum):
    """Why this worker does not take a job."""

    CLOSED = "no more jobs are taken"
    ACTIVE = "a thread works on it already"


class ActiveJobs:
    """The active jobs by id. Thread-safe; no signal handler calls it, so a plain lock will do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[int, ActiveJob] = {}
        self._is_closed = False
        self._given_up: Withdrawn | None = None

    def __len__(self) -> int:
        """How many jobs are active."""
        return len(self._jobs)

    @property
    def is_closed(self) -> bool:
        """Whether no more jobs are taken."""
        return self._is_closed

    @property
    def given_up(self) -> Withdrawn | None:
        """How all jobs end, also those whose claim is under way; None while each has its own ending."""
        return self._given_up

    def get(self, job_id: int) -> ActiveJob | None:
        """The job, if it is worked on here."""
        return self._jobs.get(job_id)

    def leases(self) -> Mapping[int, int | None]:
        """Job id -> lease; None while a claim is under way."""
        with self._lock:
            return {job_id: None if job.claim is None else job.claim.lease for job_id, job in self._jobs.items()}

    def take(self, job_id: int) -> ActiveJob | NotTaken:
        """Begin to work on a job. The thread that took it must ``drop`` it."""
        with self._lock:
            if self._is_closed:
                return NotTaken.CLOSED
            if (job := self._jobs.get(job_id)) is not None:
                job.called_again = True
                return NotTaken.ACTIVE
            job = self._jobs[job_id] = ActiveJob(job_id)
            return job

    def note_claim(self, job: ActiveJob, claim: ClaimedJob) -> Withdrawn | None:
        """Note that the job is claimed; return its ending if all jobs were given up meanwhile."""
        with self._lock:
            job.claim = claim
            return self._given_up

    def drop(self, job: ActiveJob) -> bool:
        """End the work on a job; return whether another message for it came meanwhile."""
        with self._lock:
            del self._jobs[job.job_id]
            return job.called_again

    def close(self) -> bool:
        """Take no more jobs; False if it was closed already."""
        with self._lock:
            was_open, self._is_closed = not self._is_closed, True
            return was_open

    def reopen(self) -> None:
        """Take jobs again."""
        with self._lock:
            self._is_closed, self._given_up = False, None

    def give_up(self, why: Withdrawn) -> Sequence[ActiveJob]:
        """Take no more jobs and end all in this way; return the claimed ones, for the caller to withdraw."""
        with self._lock:
            self._is_closed, self._given_up = True, why
            return [job for job in self._jobs.values() if job.claim is not None]
