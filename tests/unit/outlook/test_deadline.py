"""Deadlines: priorities go up in time, people are told once, and what would help would."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from helix_jobs.forecast.forecast import forecast
from helix_jobs.forecast.length_model import Answer, LengthModel
from helix_jobs.forecast.rate_model import RateModel
from helix_jobs.forecast.work import JobShape, Work
from helix_jobs.outlook.batch_outlook import BatchOutlook
from helix_jobs.outlook.deadline import HIGHEST, Miss, Raise, decide, remedies
from helix_jobs.storage import publishing
from helix_jobs.storage.deadlines import batches_with_deadlines, lowest_priority, raise_priority
from helix_jobs.storage.schema import batches, jobs, notices
from helix_jobs.worker import deadlines as watching
from helix_jobs.worker.deadlines import LOOK_SECONDS, DeadlineWatch
from tests.store_helpers import must_take, now, register, status, stored_batch, succeed

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database


def made_up_outlook(in_front: int = 0) -> BatchOutlook:
    """A hundred jobs of ten tokens, of a second each, one after the other; each may have a hundred."""
    lengths = LengthModel([Answer(10, 100, tokens, ended=True) for tokens in (5, 10, 15)])
    rate = RateModel({1: 0.1}, 0.0, 0.05)
    work = Work((), (JobShape(10, 0, 100),) * 100, 100, 1)
    return BatchOutlook(forecast(work, lengths, rate), work, in_front, lengths, rate, is_int8=False)


def test_what_is_decided_follows_from_the_probability():
    late, kept = 60.0, 200.0
    assert decide(made_up_outlook(in_front=50), kept, 0) is None
    assert decide(made_up_outlook(in_front=50), late, 3) == Raise(4)
    assert isinstance(decide(made_up_outlook(in_front=50), late, HIGHEST), Miss), "never as urgent as a person"
    assert isinstance(decide(made_up_outlook(in_front=0), late, 0), Miss), "a higher priority would not help"


def test_what_would_help_would():
    outlook = made_up_outlook()
    found = remedies(outlook, 60.0, is_int8=False)
    assert found.fewer_rows is not None
    left = outlook.work.waiting[found.fewer_rows :]
    fewer = replace(outlook.work, waiting=left, waiting_count=len(left))
    assert forecast(fewer, outlook.lengths, outlook.rate).median == pytest.approx(60.0, rel=0.1)
    assert found.max_tokens is not None
    shorter = tuple(replace(one, limit=found.max_tokens) for one in outlook.work.waiting)
    assert forecast(replace(outlook.work, waiting=shorter), outlook.lengths, outlook.rate).median < 65.0
    assert "rows less or max_tokens of " in found.in_words
    assert found.in_words.endswith("or --dtype int8 for the worker, if that is faster here")


def test_where_nothing_helps_more_time_does():
    found = remedies(made_up_outlook(), 0.0, is_int8=True)
    assert (found.fewer_rows, found.max_tokens) == (None, None)
    assert found.in_words == "more time, or another worker"


def pressed(database: Database, batch_id: str, seconds: float) -> None:
    with database.write() as c:
        c.execute(update(batches).where(batches.c.id == batch_id).values(deadline=now() + timedelta(seconds=seconds)))


def answered(database: Database, ids: list[int]) -> None:
    for job_id in ids:
        assert succeed(database, must_take(database, job_id), completion_tokens=20, total_seconds=2.0)


def priorities(database: Database, batch_id: str) -> set[int]:
    with database.read() as c:
        query = select(jobs.c.priority).where(jobs.c.batch_id == batch_id, jobs.c.state == "queued").distinct()
        return set(c.execute(query).scalars())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_batch_that_would_be_late_goes_up_step_by_step_and_is_then_let_be(database: Database) -> None:
    register(database, "w1")
    first, ids = stored_batch(database, 100)
    second, _ = stored_batch(database, 20)
    answered(database, ids[:20])
    pressed(database, second, 25.0)  # 10 s of work in four slots, behind 40 s of the other batch
    clock = Clock()
    watch = DeadlineWatch(database, 30.0, clock=clock)
    watch.look()
    assert priorities(database, second) == {1}
    assert priorities(database, first) == {0}
    watch.look()
    clock.now += LOOK_SECONDS
    watch.look()
    assert priorities(database, second) == {1}, "it goes first now, and is in time"
    with database.read() as c:
        assert status(database, second).deadline_told_at is None
        assert [job.priority for job in publishing.publishable(c, 1)] == [1]


def test_a_batch_of_more_jobs_than_a_look_raises_climbs_with_each_look(database: Database, monkeypatch) -> None:
    monkeypatch.setattr(watching, "_MOST_RAISED", 10)
    register(database, "w1")
    first, ids = stored_batch(database, 100)
    second, _ = stored_batch(database, 40)
    answered(database, ids[:20])
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.batch_id == first).values(priority=3))
    pressed(database, second, 45.0)  # 20 s of work in four slots, behind 40 s of the other batch
    clock = Clock()
    watch = DeadlineWatch(database, 30.0, clock=clock)
    for highest in (1, 2, 3, 4):
        watch.look()
        clock.now += LOOK_SECONDS
        assert priorities(database, second) == {0, highest}, "those that begin next go on, not the last of all"
    for _ in range(3):
        watch.look()
        clock.now += LOOK_SECONDS
    assert priorities(database, second) == {4}, "the others come after them, and no higher than it needs"
    assert status(database, second).deadline_told_at is None


def test_people_are_told_once_of_a_deadline_that_cannot_be_kept(database: Database, caplog) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 100)
    answered(database, ids[:20])
    pressed(database, batch_id, 20.0)  # and 40 s of work
    clock = Clock()
    watch = DeadlineWatch(database, 30.0, clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.look()
            clock.now += LOOK_SECONDS
    (said,) = [one.getMessage() for one in caplog.records if "deadline" in one.getMessage()]
    assert said.startswith(f"batch {batch_id} will probably miss its deadline: it ends about ")
    assert "rows less" in said
    assert priorities(database, batch_id) == {0}
    assert status(database, batch_id).deadline_told_at is not None
    with database.read() as c:
        assert c.execute(select(notices.c.kind)).scalars().all() == ["helix.deadline.slipping"]


def test_jobs_are_raised_from_the_first_and_those_in_the_broker_are_sent_anew(database: Database) -> None:
    batch_id, ids = stored_batch(database, 10)
    with database.write() as c:
        publishing.mark_published(c, ids[:3], now())
    assert [one.id for one in with_deadlines(database)] == []
    pressed(database, batch_id, 60.0)
    assert [one.id for one in with_deadlines(database)] == [batch_id]
    with database.write() as c:
        assert raise_priority(c, batch_id, 2, most=4) == 7
        assert lowest_priority(c, batch_id) == 0
        rows = c.execute(select(jobs.c.priority, jobs.c.published_at).order_by(jobs.c.id)).all()
    assert [row.priority for row in rows] == [2] * 7 + [0] * 3
    assert {row.published_at for row in rows} == {None}


def with_deadlines(database: Database) -> list:
    with database.read() as c:
        return batches_with_deadlines(c)
