"""A paused batch: nothing of it begins, nothing of it is lost, and others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import NotFoundError, UnfinishedSubmissionError
from helix_jobs.storage import changes_in_steps, publishing
from helix_jobs.storage.pausing import pause_batch, resume_batch
from helix_jobs.storage.queue_figures import queue_figures
from helix_jobs.storage.states import BatchState
from tests.store_helpers import counts, must_take, now, register, status, stored_batch, succeed, take

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database


def pause(database: Database, batch_id: str) -> int:
    return database.transact(lambda c: pause_batch(c, batch_id, now=now()))


def resume(database: Database, batch_id: str) -> int:
    return database.transact(lambda c: resume_batch(c, batch_id))


def publishable(database: Database) -> list[int]:
    with database.read() as c:
        return [job.id for job in publishing.publishable(c, 100)]


def test_nothing_of_a_paused_batch_begins_until_it_is_resumed(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 4)
    other, (another,) = stored_batch(database, 1)
    running = must_take(database, ids[0])
    with database.write() as c:
        publishing.mark_published(c, ids[1:3], now())
    assert pause(database, batch_id) == 3
    assert publishable(database) == [another]
    assert take(database, ids[1]) is None, "a message that a worker already has leads to nothing"
    assert take(database, ids[3]) is None
    with database.read() as c:
        assert len(publishing.published_queued(c)) == 0, "its messages take no room from other batches"
        assert publishing.any_waits(c)
    assert status(database, batch_id).state is BatchState.PAUSED
    assert status(database, batch_id).paused_at is not None
    assert succeed(database, running), "what runs ends"
    assert take(database, another) is not None
    assert status(database, other).state is BatchState.RUNNING
    with database.read() as c:
        assert not publishing.any_waits(c), "nobody looks for deliveries that do not come"
        assert queue_figures(c).oldest_queued_at is None
    assert pause(database, batch_id) == 0
    assert resume(database, batch_id) == 3
    assert publishable(database) == ids[1:]
    assert status(database, batch_id).state is BatchState.RUNNING
    for job_id in ids[1:]:
        assert succeed(database, must_take(database, job_id))
    assert counts(database, batch_id) == {"succeeded": 4}
    assert resume(database, batch_id) == 0


def test_a_job_published_while_its_batch_is_paused_is_sent_again(database: Database) -> None:
    batch_id, ids = stored_batch(database, 2)
    pause(database, batch_id)
    with database.write() as c:  # a publisher had read it before, and marks it late
        publishing.mark_published(c, ids, now())
    resume(database, batch_id)
    assert publishable(database) == ids


def test_a_cancel_ends_a_pause(database: Database) -> None:
    batch_id, ids = stored_batch(database, 2)
    pause(database, batch_id)
    assert changes_in_steps.cancel_batch(database, batch_id) == 2
    assert status(database, batch_id).state is BatchState.CANCELLED
    assert pause(database, batch_id) == 0
    assert changes_in_steps.retry_batch(database, batch_id) == 2
    assert status(database, batch_id).state is BatchState.QUEUED
    assert publishable(database) == ids


def test_what_is_not_there_or_not_stored_is_not_paused(database: Database) -> None:
    unsealed, _ = stored_batch(database, 2, seal=False)
    for change in (pause, resume):
        with pytest.raises(NotFoundError):
            change(database, "b-none")
        with pytest.raises(UnfinishedSubmissionError):
            change(database, unsealed)


def test_messages_of_a_paused_batch_are_wanted_by_nobody(database: Database) -> None:
    """Thousands of them would hold up the jobs of others."""
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    must_take(database, ids[0])

    def wanted() -> set[int]:
        with database.read() as c:
            return publishing.wanted_among(c, [*ids, 10**6])

    assert wanted() == set(ids[1:])
    pause(database, batch_id)
    assert wanted() == set()
    resume(database, batch_id)
    assert wanted() == set(ids[1:])
