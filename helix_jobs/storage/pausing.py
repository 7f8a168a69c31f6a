"""Pause and resume of a batch.

A pause takes effect with its commit: from then on no job of the batch is published or claimed. Jobs that run end.
Messages that the broker still has lead to nothing, and a worker drops them; so both changes forget that there are any,
and a resume has every job sent anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text, update

from helix_jobs.errors import UnfinishedSubmissionError
from helix_jobs.storage.batch_changes import lock_batch, unfinished_submission
from helix_jobs.storage.brake_ledger import Ledger
from helix_jobs.storage.schema import batches, jobs
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


def pause_batch(c: Connection, batch_id: str, *, now: datetime, why: str | None = None) -> int:
    """Let no job of the batch begin; returns how many wait. A batch that has ended, or was cancelled, stays as it is.

    Args:
        c: A write transaction.
        batch_id: The batch.
        now: The time written.
        why: Why a brake pauses it; None where a person does.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish, so there is nothing to pause.
    """
    return _set(c, batch_id, now, why)


def resume_batch(c: Connection, batch_id: str, *, release_brakes: bool = False) -> int:
    """Let the jobs of the batch begin again; returns how many wait. A worker publishes them.

    If a brake has paused it, its brakes count anew: it may spend the same again. With ``release_brakes`` it has none
    any more, whether it is paused or not.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish, so there is nothing to resume.
    """
    if release_brakes:
        lock_batch(c, batch_id)
        c.execute(update(batches).where(batches.c.id == batch_id).values(brakes=None, brake_ledger=None))
    return _set(c, batch_id, None, None)


def _set(c: Connection, batch_id: str, moment: datetime | None, why: str | None) -> int:
    if not lock_batch(c, batch_id):
        raise UnfinishedSubmissionError(unfinished_submission(batch_id))
    status = batch_status(c, batch_id)
    if status.done or status.cancelled_at is not None or (status.paused_at is None) == (moment is None):
        return 0
    changes: dict[str, Any] = {"paused_at": moment, "paused_why": why}
    if moment is None and status.paused_why is not None and status.brakes is not None:
        changes["brake_ledger"] = Ledger.begin(status).to_dict()
    c.execute(update(batches).where(batches.c.id == batch_id).values(changes))
    published = text("state = 'queued' AND published_at IS NOT NULL")
    c.execute(update(jobs).where(published, jobs.c.batch_id == batch_id).values(published_at=None))
    return status.counts[JobState.QUEUED]
