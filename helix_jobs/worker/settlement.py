"""Settlement: writes the decision about a job, and waits for the commit."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helix_jobs.errors import ErrorCode, HelixError
from helix_jobs.storage import claims
from helix_jobs.storage.faults import MACHINES_OWN
from helix_jobs.storage.records import FinishedJob
from helix_jobs.storage.states import JobState
from helix_jobs.worker.job_endings import Fail, GiveUp, Refuse, Succeed, Unfinished, outcome, refused_by_database

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.records import ClaimedJob, ResultRow
    from helix_jobs.worker.counters import Counting
    from helix_jobs.worker.engine_run import Run
    from helix_jobs.worker.job_endings import Decision
    from helix_jobs.worker.runs import Writer

logger = logging.getLogger(__name__)


class Settlement:
    """The one place where a job's end is written. Thread-safe.

    Every write carries the lease of its claim. The database fences a write that comes too late; it is counted and
    dropped.

    Args:
        writer: The group commit writer.
        worker_id: This worker's row.
        counting: Counts every outcome.
        setup: What answers depend on here; None while that is not known, or where no other job may have them.
    """

    def __init__(
        self,
        writer: Writer,
        worker_id: str,
        counting: Counting,
        setup: Callable[[], AnswerSetup | None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._setup = setup
        self._worker_id = worker_id
        self._counting = counting

    def persist(self, claim: ClaimedJob, decision: Decision) -> None:
        """Write the decision.

        Raises:
            HelixError: The database takes no writes. The lease stays, and is handed back or reclaimed.
        """
        if decision is Unfinished.DROP:
            self._count_fenced(claim)
            return
        written = self._write(claim, decision)
        try:
            matched = written.result()
        except (HelixError, *MACHINES_OWN):
            raise  # the result itself is sound
        except Exception as error:
            if decision == (refused := refused_by_database(error)):
                raise
            # Never the error's text: Postgres quotes the row.
            logger.error("the database refused a result: %s", type(error).__name__, extra={"job_id": claim.id})  # noqa: TRY400
            self.persist(claim, refused)
            return
        if matched:
            self.count(decision)
            logger.debug("job ended: %s", outcome(decision), extra={"job_id": claim.id, "batch_id": claim.batch_id})
        else:
            self._count_fenced(claim)

    def _write(self, claim: ClaimedJob, decision: Decision) -> Future[bool]:
        # The answer to a later try was drawn from another seed than its line asks for.
        setup = self._setup() if claim.tries == 0 else None
        job = FinishedJob(claim.id, claim.lease, self._worker_id, None if setup is None else setup.key)
        now = datetime.now(UTC)

        def write(c: Connection) -> bool:
            match decision:
                case Succeed(answers, run):
                    return claims.finish_succeeded(c, job, _of_run(answers, run), now)
                case Fail(code, message):
                    return claims.finish_failed(c, job, code, message, now)
                case Refuse():
                    return claims.refuse(c, job, now)
                case GiveUp(answers, run, reason):
                    return claims.finish_not_accepted(c, job, _of_run(answers, run), reason, now)
                case Unfinished.GIVE_BACK:
                    return claims.give_back(c, claim.id, claim.lease, self._worker_id, now)
                case _:
                    return claims.release(c, claim.id, claim.lease, self._worker_id, now)

        return self._writer.submit(write)

    def count(self, decision: Decision) -> None:
        """Count the job's outcome, if it has ended, and its answer, if that was refused."""
        match decision:
            case Succeed():
                self._counting.add_outcome(JobState.SUCCEEDED.value)
            case Fail(code):
                self._counting.add_outcome(code)
            case GiveUp():
                self._counting.add(refused_answers=1)
                self._counting.add_outcome(ErrorCode.NOT_ACCEPTED.value)
            case Refuse():
                self._counting.add(refused_answers=1)

    def _count_fenced(self, claim: ClaimedJob) -> None:
        self._counting.add(fenced=1)
        logger.debug("fenced: the lease has moved on", extra={"job_id": claim.id, "batch_id": claim.batch_id})


def _of_run(answers: Sequence[ResultRow], run: Run) -> Sequence[ResultRow]:
    """The answers with their run's id. It is known in the transaction: the run's insert stands before in the writer."""
    return [replace(answer, run_id=run.row_id) for answer in answers]
