"""BatchControl: cancel, retry, pause and resume, the part of the client that changes stored batches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from helix_jobs.client.database_client import DatabaseClient
from helix_jobs.errors import NotFoundError

# The largest integer that both databases can store.
MAX_ID: Final = 2**63 - 1


class BatchControl(DatabaseClient):
    """Changes batches and jobs in the client's database."""

    def cancel(self, target: str | int) -> int:
        """Cancel a batch (``b-...``) or one job (its number) and return how many jobs that stopped.

        A batch's cancel takes effect at once; its rows follow in steps, at some 10,000 a second. If it is interrupted,
        a worker or a second cancel completes it. A batch whose submission has not finished is deleted, as by
        ``discard``, and counts as 0 jobs.

        Raises:
            NotFoundError: No such batch or job.
        """
        from helix_jobs.storage import batch_changes, changes_in_steps

        digits = str(target) if isinstance(target, int) or (target.isascii() and target.isdecimal()) else ""
        if len(digits) > len(str(MAX_ID)) or int(digits or 0) > MAX_ID:
            raise NotFoundError(f"there is no job {digits[:40]}; `helix status BATCH --jobs` lists job ids")
        if digits:
            job_id = int(digits)
            return self._database().transact(lambda c: batch_changes.cancel_job(c, job_id, now=datetime.now(UTC)))
        return changes_in_steps.cancel_batch(self._database(), str(target))

    def retry(self, batch_id: str, *, where: str | None = None, invalid: bool = False) -> int:
        """Queue a batch's failed and cancelled jobs again and return how many. A worker publishes them.

        Args:
            batch_id: The batch.
            where: Instead, the jobs that match this condition of SQL. Those with an answer lose it, and the next one
                has a fresh seed.
            invalid: Instead, the jobs with an answer that does not keep its constraint whole; with ``where``, of these.

        Raises:
            NotFoundError: No such batch.
            InputError: The condition is wrong.
            UnfinishedSubmissionError: Its submission has not finished.
        """
        from helix_jobs.storage import changes_in_steps

        if where is not None or invalid:
            from helix_jobs.storage.chosen_retries import retry_chosen

            return retry_chosen(self._database(), batch_id, where, invalid=invalid)
        return changes_in_steps.retry_batch(self._database(), batch_id)

    def pause(self, batch_id: str) -> int:
        """Let no further job of a batch begin, until ``resume``, and return how many wait. Jobs that run end.

        Returns 0, and does nothing, if the batch has ended, was cancelled, or is paused already.

        Raises:
            NotFoundError: No such batch.
            UnfinishedSubmissionError: Its submission has not finished.
        """
        from helix_jobs.storage import pausing

        return self._database().transact(lambda c: pausing.pause_batch(c, batch_id, now=datetime.now(UTC)))

    def resume(self, batch_id: str, *, release_brakes: bool = False) -> int:
        """Let the jobs of a paused batch begin again, and return how many wait. A worker publishes them.

        A batch that one of its brakes has paused may spend the same again.

        Args:
            batch_id: The batch.
            release_brakes: Have it run without brakes from now on, whether it is paused or not.

        Raises:
            NotFoundError: No such batch.
            UnfinishedSubmissionError: Its submission has not finished.
        """
        from helix_jobs.storage import pausing

        return self._database().transact(lambda c: pausing.resume_batch(c, batch_id, release_brakes=release_brakes))
