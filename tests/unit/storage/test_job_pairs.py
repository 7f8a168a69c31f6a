"""Jobs of two batches in pairs: by custom_id, else by line; pages neither lose nor repeat one."""

from __future__ import annotations

import pytest

from helix_jobs.errors import NotFoundError
from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches, job_pairs, purging
from helix_jobs.storage.job_pairs import iter_pairs
from helix_jobs.storage.purging import ended_batches
from helix_jobs.storage.records import NewBatch
from tests.store_helpers import DIGEST, fail, must_take, now, register, stored_batch, succeed


def _batch(database, *ids):
    """A batch with these ids, from line 1 on; None leaves a line without."""
    batch_id = batches.new_batch_id(now())
    new = [
        NewJob(line=line, custom_id=custom_id, request={"prompt": f"{custom_id or line}", "seed": line})
        for line, custom_id in enumerate(ids, 1)
    ]
    with database.write() as c:
        batches.create_batch(c, NewBatch(id=batch_id, created_at=now()))
        batches.insert_jobs(c, batch_id, new, now())
        batches.seal_batch(c, batch_id, len(new), DIGEST)
    return batch_id


def _names(database, before, after):
    def name(job):
        return None if job is None else (job.line, job.custom_id)

    return [(name(pair.before), name(pair.after)) for pair in iter_pairs(database.read, before, after)]


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(job_pairs, "_PAGE", 2)
    monkeypatch.setattr(job_pairs, "_KEYS_PAGE", 3)


def test_by_custom_id_else_by_line(database):
    before = _batch(database, "b", None, "a", "gone", None, "Ä")
    after = _batch(database, "Ä", None, "new", "b", "a", None, None)
    assert _names(database, before, after) == [
        ((1, "b"), (4, "b")),
        ((2, None), (2, None)),
        ((3, "a"), (5, "a")),
        ((4, "gone"), None),
        ((5, None), None),  # the other batch's line 5 has an id, and so another partner
        ((6, "Ä"), (1, "Ä")),
        (None, (3, "new")),
        (None, (6, None)),
        (None, (7, None)),
    ]


def test_answers_errors_and_requests_of_what_differs(database):
    register(database, "w1")
    before, old = stored_batch(database, 3)
    after, new = stored_batch(database, 3)
    for place, job_id in enumerate(old):
        succeed(database, must_take(database, job_id), output_text=f"old {place}")
    succeed(database, must_take(database, new[0]), output_text="old 0")
    succeed(database, must_take(database, new[1]), output_text="new 1")
    fail(database, must_take(database, new[2]))
    same, changed, failed = iter_pairs(database.read, before, after)
    assert (same.before.request, same.after.request) == (None, None)
    assert [answer.output_text for answer in changed.after.answers] == ["new 1"]
    assert changed.before.request["prompt"] == changed.after.request["prompt"] == "Wörter 2"
    assert (failed.after.answers, failed.after.error_code, failed.after.error_message) == (
        (),
        "engine_error",
        "it broke",
    )


def test_a_batch_that_is_not_there_or_goes_meanwhile(database):
    before, after = _batch(database, *"abcdef"), _batch(database, *"abcdef")
    with pytest.raises(NotFoundError, match="no batch 'b-none'"):
        iter_pairs(database.read, before, "b-none")
    register(database, "w1")
    with database.read() as c:
        assert ended_batches(c) == []
    pairs = iter_pairs(database.read, before, after)
    next(pairs)
    with database.write() as c:
        c.exec_driver_sql("UPDATE jobs SET state = 'cancelled', finished_at = queued_at")
        purging.counters.recount(c, after)
    with database.write() as c:
        (ended,) = [batch for batch in ended_batches(c) if batch.id == after]
        assert purging.begin_purge(c, ended, now())
    with pytest.raises(NotFoundError, match=f"no batch '{after}'"):
        list(pairs)
