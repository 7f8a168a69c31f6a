"""JobClaims: claims a job in the database, or says why not."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError
from helix_jobs.storage import answer_cache, claims, publishing, retries
from helix_jobs.storage.faults import MACHINES_OWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.records import ClaimedJob
    from helix_jobs.worker.runs import Writer

logger = logging.getLogger(__name__)

# How often a claim is tried that fails over its row's content; two failures are no accident.
CLAIM_ATTEMPTS: Final = 2


class Refusal(Enum):
    """Why a job was not claimed."""

    NOTHING_TO_DO = "it ended, was cancelled, is someone else's, or does not exist"
    MUST_RUN_ALONE = "this would be its last attempt"
    UNREADABLE = "its row cannot be read; it failed for that"
    FROM_CACHE = "it has taken a stored answer"
    TWIN_RUNS = "an equal job runs, whose answer it will take"


class JobClaims:
    """Claims jobs for one worker.

    Args:
        writer: The group commit writer. Claims wait in it while the database takes no writes.
        worker_id: The worker that claims.
        setup: Whose stored answers jobs take instead; None while that is not known, or none may.
    """

    def __init__(self, writer: Writer, worker_id: str, setup: Callable[[], AnswerSetup | None] = lambda: None) -> None:
        self._writer = writer
        self._worker_id = worker_id
        self._setup = setup

    def claim(self, job_id: int, *, alone: bool) -> ClaimedJob | Refusal:
        """Claim the job. A job whose row cannot be read is failed by its id alone.

        Otherwise its message would come again and again, and the job would never end.

        Args:
            job_id: The job.
            alone: Whether the job would run alone, and so may use its last attempt.

        Raises:
            HelixError: The writer is closed.
            MemoryError: This machine is at its limits, as with ``OSError``; nothing was changed.
        """
        now, setup = datetime.now(UTC), self._setup()

        def claim(c: Connection) -> ClaimedJob | Refusal:
            claimed = claims.claim(
                c, job_id, worker_id=self._worker_id, now=now, spare_last_attempt=not alone, setup=setup
            )
            if claimed is None and setup is not None:
                if answer_cache.take_answers(c, [job_id], setup, now):
                    return Refusal.FROM_CACHE
                if answer_cache.leave_to_twin(c, job_id):
                    return Refusal.TWIN_RUNS
            if claimed is None and not alone and retries.awaits_last_attempt(c, job_id):
                return Refusal.MUST_RUN_ALONE
            if claimed is None:
                # It may wait still: its twin has ended since, or its answer is locked. Then it needs another message.
                publishing.unmark_published(c, [job_id])
            return claimed or Refusal.NOTHING_TO_DO

        for _ in range(CLAIM_ATTEMPTS):
            try:
                return self._writer.submit(claim).result()
            except (HelixError, *MACHINES_OWN):
                raise
            except Exception as error:  # noqa: BLE001 (whatever is in the row)
                reason = type(error).__name__
        logger.error("a stored job cannot be read (%s); it fails alone", reason, extra={"job_id": job_id})
        failed = self._writer.submit(lambda c: claims.fail_unreadable(c, job_id, reason, now)).result()
        return Refusal.UNREADABLE if failed else Refusal.NOTHING_TO_DO
