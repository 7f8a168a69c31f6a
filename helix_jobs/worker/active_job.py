"""ActiveJob: a job that a thread of this process works on, and the place where whoever knows first says how it ends."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.storage.store import ClaimedJob
    from helix_jobs.worker.job_endings import Ending

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class ActiveJob:
    """A job that a thread of this process works on.

    Attributes:
        job_id: Of its row.
        claim: None while the claim is under way.
        ending: How it ends; the job's thread waits for it.
        called_again: Another message for the job came meanwhile and was acknowledged.
    """

    job_id: int
    claim: ClaimedJob | None = None
    ending: Future[Ending] = field(default_factory=Future)
    called_again: bool = False

    def settle(self, ending: Ending) -> None:
        """Say how it ends; the first word counts."""
        try:
            self.ending.set_result(ending)
        except InvalidStateError:
            logger.debug("job had ended already", extra={"job_id": self.job_id})
