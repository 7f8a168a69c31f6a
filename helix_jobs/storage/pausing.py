"""Pause and resume of a batch.

A pause takes effect with its commit: from then on no job of the batch is published or claimed. Jobs that run end.
Messages that the broker still has lead to nothing, and a worker drops them; so both changes forget that there are any,
and a resume has every job sent anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text, update

from helix_jobs.errors import UnfinishedSubmissionError
from helix_jobs.storage.batch_changes import lock_batch, unfinished_submission
from helix_jobs.storage.schema import batches, jobs
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


def pause_batch(c: Connection, batch_id: str, *, now: datetime) -> int:
    """Let no job of the batch begin; returns how many wait. A batch that has ended, or was cancelled, stays as it is.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish, so there is nothing to pause.
    """
    return _set(c, batch_id, now)


def resume_batch(c: Connection, batch_id: str) -> int:
    """Let the jobs of the batch begin again; returns how many wait. A worker publishes them.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish, so there is nothing to resume.
    """
    return _set(c, batch_id, None)


def _set(c: Connection, batch_id: str, moment: datetime | None) -> int:
    if not lock_batch(c, batch_id):
        raise UnfinishedSubmissionError(unfinished_submission(batch_id))
    status = batch_status(c, batch_id)
    if status.done or status.cancelled_at is not None or (status.paused_at is None) == (moment is None):
        return 0
    c.execute(update(batches).where(batches.c.id == batch_id).values(paused_at=moment))
    published = text("state = 'queued' AND published_at IS NOT NULL")
    c.execute(update(jobs).where(published, jobs.c.batch_id == batch_id).values(published_at=None))
    return status.counts[JobState.QUEUED]
