from __future__ import annotations

import re
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from helix_jobs.errors import IdempotencyConflictError, NotFoundError, UnfinishedSubmissionError
from helix_jobs.storage import changes_in_steps, publishing, status
from helix_jobs.storage.batches import create_batch, delete_batch, insert_jobs, new_batch_id, seal_batch
from helix_jobs.storage.records import NewBatch, StoredBatch
from helix_jobs.storage.schema import batch_counters, batches, jobs
from tests.store_helpers import DIGEST, counts, get_job, new_jobs, now, stored_batch, take


def test_a_batch_keeps_its_lines_as_they_were(database):
    batch_id, ids = stored_batch(database, 3, priorities=(2,))
    with database.read() as c:
        job = get_job(c, ids[1])
    assert (job.batch_id, job.line, job.custom_id, job.priority) == (batch_id, 2, "c2", 2)
    assert job.request == {"prompt": "Wörter 2", "seed": 2**64 - 2}
    assert job.state == "queued"
    assert job.queued_at.utcoffset().total_seconds() == 0
    assert abs((now() - job.queued_at).total_seconds()) < 60


def test_batch_ids_name_the_day_and_do_not_repeat():
    ids = {new_batch_id(now()) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"b-\d{8}-[a-z2-7]{6}", batch_id) for batch_id in ids)


def test_an_interrupted_submission_is_finished_by_running_it_again(database):
    batch_id, _ = stored_batch(database, 2, seal=False, key="night-1")
    with database.write() as c:
        again = create_batch(c, NewBatch(id="b-other", created_at=now(), idempotency_key="night-1"))
        assert again == StoredBatch(id=batch_id, total=None, content_digest=None, reused=True)
        assert insert_jobs(c, batch_id, new_jobs(5), now()) == 3
        seal_batch(c, batch_id, 5, DIGEST)
        seal_batch(c, batch_id, 5, DIGEST)
    assert counts(database, batch_id) == {"queued": 5}


def test_a_stored_line_that_differs_is_refused(database):
    batch_id, _ = stored_batch(database, 3, seal=False, key="night-1")
    changed = [replace(job, request={"prompt": "other"}) if job.line == 3 else job for job in new_jobs(4)]
    with pytest.raises(IdempotencyConflictError, match="line 3"), database.write() as c:
        insert_jobs(c, batch_id, changed, now())
    assert counts(database, batch_id) == {"queued": 3}


def test_an_input_that_is_shorter_than_what_is_stored_is_refused(database):
    batch_id, _ = stored_batch(database, 3, seal=False)
    with pytest.raises(IdempotencyConflictError, match="holds 3 lines and this input 2"), database.write() as c:
        seal_batch(c, batch_id, 2, DIGEST)


def test_a_sealed_batch_is_not_sealed_with_other_content(database):
    batch_id, _ = stored_batch(database, 2)
    with pytest.raises(IdempotencyConflictError, match="other content"), database.write() as c:
        seal_batch(c, batch_id, 2, "e" * 64)
    with pytest.raises(IdempotencyConflictError, match="already complete"), database.write() as c:
        insert_jobs(c, batch_id, new_jobs(3), now())
    assert counts(database, batch_id) == {"queued": 2}


def test_jobs_of_an_unsealed_batch_are_invisible(database):
    batch_id, ids = stored_batch(database, 2, seal=False)
    with database.read() as c:
        assert publishing.publishable(c, 10) == []
        assert publishing.backlog(c) == 0
        assert status.batch_status(c, batch_id).state == "submitting"
        assert status.batch_status(c, batch_id).total is None
    assert take(database, ids[0]) is None


def test_cancelling_a_batch_while_it_is_submitted_leaves_nothing_of_it(database):
    batch_id, _ = stored_batch(database, 2, seal=False)
    with pytest.raises(UnfinishedSubmissionError, match=f"helix cancel {batch_id}"):
        changes_in_steps.retry_batch(database, batch_id)
    assert changes_in_steps.cancel_batch(database, batch_id) == 0
    for go_on in (
        lambda c: insert_jobs(c, batch_id, new_jobs(4), now()),
        lambda c: seal_batch(c, batch_id, 2, DIGEST),
    ):
        with pytest.raises(NotFoundError, match="submit again"), database.write() as c:
            go_on(c)
    with database.read() as c:
        for table in (batches, jobs, batch_counters):
            assert c.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_only_unsealed_batches_are_deleted(database):
    sealed, ids = stored_batch(database, 2)
    unsealed, lost = stored_batch(database, 2, seal=False)
    with database.write() as c:
        assert not delete_batch(c, sealed)
        assert delete_batch(c, unsealed)
        assert not delete_batch(c, unsealed)
    with database.read() as c:
        assert get_job(c, ids[0]).state == "queued"
        with pytest.raises(NotFoundError):
            get_job(c, lost[0])
        with pytest.raises(NotFoundError):
            status.batch_status(c, unsealed)
    with pytest.raises(NotFoundError), database.write() as c:
        insert_jobs(c, unsealed, new_jobs(1), now())


def test_custom_ids_are_unique_within_a_batch_only(database):
    stored_batch(database, 2)
    batch_id, _ = stored_batch(database, 2, seal=False)
    twice = [replace(job, custom_id="c1") for job in new_jobs(4)[3:]]
    with pytest.raises(IdempotencyConflictError, match="custom_id"), database.write() as c:
        insert_jobs(c, batch_id, twice, now())
    without = [replace(job, custom_id=None) for job in new_jobs(4)[2:]]
    with database.write() as c:
        assert insert_jobs(c, batch_id, without, now()) == 2
