"""Reads a batch as its client is shown it: what was asked for, and the state of its jobs, of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs.api.batch_object import batch_object
from helix_jobs.errors import NotFoundError
from helix_jobs.storage.api_batches import find_api_batch
from helix_jobs.storage.status import batch_statuses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.api.thought import Thought
    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus


def read_batch(database: Database, thought: Thought, api_id: str) -> tuple[str, dict[str, Any]]:
    """A batch's owner, and its object. Whether the owner is the one who asks is the caller's to look at.

    Raises:
        NotFoundError: There is no such batch, or it was removed.
        DatabaseUnreachableError: The database does not answer.
    """
    with database.read() as c:
        batch = find_api_batch(c, api_id)
        statuses = {} if batch.batch_id is None else batch_statuses(c, [batch.batch_id])
    if batch.batch_id is not None and not statuses:
        raise NotFoundError("there is no such batch any more; it was removed")
    return batch.owner, shown_batch(batch, statuses, thought)


def shown_batch(batch: ApiBatch, statuses: Mapping[str, BatchStatus], thought: Thought) -> dict[str, Any]:
    """The batch object.

    Args:
        batch: The batch.
        statuses: Batch of jobs -> its status.
        thought: Counts what was thought in a batch that has ended.
    """
    status = statuses.get(batch.batch_id or "")
    return batch_object(batch, status, None if status is None or not status.done else thought.tokens(status))
