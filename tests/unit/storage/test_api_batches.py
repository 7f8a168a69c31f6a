"""Batches that were asked for over HTTP: one server at a time works at each, and none is lost with its server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select

from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.errors import IdempotencyConflictError, NotFoundError
from helix_jobs.storage import api_batches, purging
from helix_jobs.storage.api_records import ApiBatch, NewApiBatch, Page
from helix_jobs.storage.batch_changes import begin_cancel
from helix_jobs.storage.schema import api_batches as table
from tests.store_helpers import must_take, now, register, stored_batch, succeed

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


def create(database, number: int = 1, key: str | None = None, **changes) -> ApiBatch:
    values = {
        "id": f"batch_{number}",
        "owner": "me",
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "created_at": now(),
        "expires_at": now() + HOUR,
        "idempotency_key": key,
    }
    with database.write() as c:
        return api_batches.create_api_batch(c, NewApiBatch(**{**values, **changes}))


def claim(database, at, until) -> ApiBatch | None:
    return database.transact(lambda c: api_batches.claim_due(c, at, until))


def stored(database, number: int = 1, owner: str = "me") -> ApiBatch:
    with database.read() as c:
        return api_batches.get_api_batch(c, owner, f"batch_{number}")


def ended_batch(database) -> str:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 1)
    assert succeed(database, must_take(database, ids[0]))
    return batch_id


def test_a_key_names_one_batch(database):
    first = create(database, key="batch:me:k")
    assert create(database, 2, key="batch:me:k") == first
    with pytest.raises(IdempotencyConflictError):
        create(database, 3, key="batch:me:k", metadata={"a": "c"})
    assert create(database, 4).id == "batch_4"
    assert create(database, 5).id == "batch_5", "no key is no key in common"


def test_owners_do_not_see_each_other(database):
    create(database)
    with pytest.raises(NotFoundError):
        stored(database, owner="you")
    with database.read() as c:
        assert api_batches.list_api_batches(c, "you", Page(limit=5)) == []


def test_pages(database):
    for number in range(5):
        create(database, number, created_at=now() + number * SECOND)
    with database.read() as c:
        first = api_batches.list_api_batches(c, "me", Page(limit=2))
        assert [batch.id for batch in first] == ["batch_4", "batch_3", "batch_2"]
        rest = api_batches.list_api_batches(c, "me", Page(limit=9, after="batch_3"))
        assert [batch.id for batch in rest] == ["batch_2", "batch_1", "batch_0"]


def test_one_server_at_a_time_has_a_batch(database):
    for number in range(20):
        create(database, number)
    later, until = now() + SECOND, now() + HOUR
    with ThreadPoolExecutor(4) as pool:
        claimed = [batch.id for batch in pool.map(lambda _: claim(database, later, until), range(24)) if batch]
    while (batch := claim(database, later, until)) is not None:  # all of one's candidates may have been others'
        claimed.append(batch.id)
    assert sorted(claimed) == sorted(f"batch_{number}" for number in range(20))


def test_the_batch_of_a_server_that_died_is_due_again(database):
    create(database)
    first = claim(database, now(), now() + HOUR)
    assert first is not None
    assert first.due_at is not None
    assert claim(database, now(), now() + HOUR) is None
    second = claim(database, now() + 2 * HOUR, now() + 3 * HOUR)
    assert second is not None
    with database.write() as c:
        assert not api_batches.move_due(c, first.id, first.due_at, None), "the first server has lost it"
        assert api_batches.move_due(c, first.id, second.due_at, now())
        assert api_batches.is_any_due(c, now() + SECOND)


def test_what_is_closed_stays_closed(database):
    create(database)
    faults = [{"code": "invalid_line", "message": "m", "param": None, "line": 3}]
    with database.write() as c:
        api_batches.close_failed(c, "batch_1", faults, now())
    failed = stored(database)
    assert (failed.errors, failed.due_at, failed.is_closed) == (faults, None, True)
    assert claim(database, now() + HOUR, now() + HOUR) is None


def test_a_cancel_meets_the_jobs_whichever_comes_first(database):
    batch_id, _ = stored_batch(database, 2)
    create(database)
    with database.write() as c:
        assert api_batches.ask_cancel(c, "batch_1", now()) is None
        api_batches.accept(c, "batch_1", batch_id, now())
        assert api_batches.is_cancelling(c, "batch_1")
    asked_at = stored(database).cancelling_at
    with database.write() as c:
        assert api_batches.ask_cancel(c, "batch_1", now() + HOUR) == batch_id
    assert stored(database).cancelling_at == asked_at, "the first time counts"
    assert not stored(database).is_closed


def test_a_batch_goes_with_its_jobs(database):
    batch_id = ended_batch(database)
    create(database)
    with database.write() as c:
        api_batches.accept(c, "batch_1", batch_id, now())
    with database.read() as c:
        ended = next(batch for batch in purging.ended_batches(c) if batch.id == batch_id)
    with database.write() as c:
        assert purging.begin_purge(c, ended, now())
    with pytest.raises(NotFoundError):  # while its rows are removed, it is not there for anybody
        stored(database)
    with database.read() as c:
        assert api_batches.list_api_batches(c, "me", Page(limit=5)) == []
    purge(database, plan_purge(database))
    with database.read() as c:
        assert c.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_thought_tokens_are_summed(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    succeed(database, must_take(database, ids[0]), reasoning_tokens=4)
    succeed(database, must_take(database, ids[1]), reasoning_tokens=3)
    succeed(database, must_take(database, ids[2]))
    with database.read() as c:
        assert api_batches.reasoning_tokens(c, batch_id) == 7
        assert api_batches.reasoning_tokens(c, "b-none") == 0


def test_a_cancel_of_an_accepted_batch_makes_it_due(database):
    batch_id, _ = stored_batch(database, 2)
    create(database)
    with database.write() as c:
        api_batches.accept(c, "batch_1", batch_id, now())
    held = claim(database, now(), now() + HOUR)
    assert held is not None
    with database.write() as c:
        assert begin_cancel(c, batch_id, now=now()) is not None
        assert api_batches.ask_cancel(c, "batch_1", now()) == batch_id
    assert claim(database, now() + SECOND, now() + HOUR) is not None


def test_what_is_polled_every_other_second_reads_due_batches_alone(sqlite_database):
    create(sqlite_database)
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        statements.append((statement, parameters))

    with sqlite_database.write() as c:
        event.listen(c, "before_cursor_execute", note)
        assert api_batches.is_any_due(c, now())
        assert api_batches.claim_due(c, now(), now() + HOUR) is not None
    polled = [entry for entry in statements if "due_at <= ?" in entry[0]]
    assert len(polled) == 2
    with sqlite_database.read() as c:
        for statement, parameters in polled:
            plan = c.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            assert all("ix_api_batches_due" in row[3] for row in plan), plan
