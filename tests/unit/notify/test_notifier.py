"""Each end of a batch is told once, to every channel, however long one of them is away."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text, update

from helix_jobs.errors import NotDeliveredError
from helix_jobs.notify.notifier import Notifier
from helix_jobs.notify.thread import NotifierThread
from helix_jobs.storage import api_batches, changes_in_steps
from helix_jobs.storage.api_records import NewApiBatch
from helix_jobs.storage.braking import brake
from helix_jobs.storage.notices import NewNotice, Notice, add_notice, newest_notices, pause_after, settle, take_due
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.results import read_job
from helix_jobs.storage.schema import batches, notices
from tests.store_helpers import fail, must_take, now, register, stored_batch, succeed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.notify.event import Event
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.notices import ToldNotice


class Channel:
    """Keeps what it is told; fails as long as it is told to."""

    def __init__(self, name: str = "webhook") -> None:
        self.name = name
        self.told: list[Event] = []
        self.fails = False
        self.error: Exception = NotDeliveredError("the host answered 500")

    def send(self, event: Event) -> str:
        if self.fails:
            raise self.error
        self.told.append(event)
        return "taken"

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def notifier(database: Database, channel: Channel) -> Notifier:
    register(database, "w1")
    return Notifier(database, [channel], failing=0.05)


def end(database: Database, ids: Sequence[int], *, failed: int = 0) -> None:
    for number, job_id in enumerate(ids):
        claimed = must_take(database, job_id)
        assert fail(database, claimed) if number < failed else succeed(database, claimed)


def stored(database: Database) -> list[ToldNotice]:
    with database.read() as c:
        return list(newest_notices(c, 100))


def make_due(database: Database, **values: Any) -> None:
    with database.write() as c:
        c.execute(update(notices).where(notices.c.due_at.is_not(None)).values(due_at=now(), **values))


def test_the_end_of_a_batch_is_told_once_and_again_after_a_retry(database, notifier, channel):
    batch_id, ids = stored_batch(database, 3)
    notifier.look()
    end(database, ids[:2], failed=1)
    notifier.look()
    assert channel.told == [], "a job still waits"
    end(database, ids[2:])
    for _ in range(2):
        notifier.look()
    assert channel.kinds == ["batch.completed"]
    event = channel.told[0]
    assert event.data["id"] == event.data["batch_id"] == batch_id
    assert event.data["request_counts"] == {"total": 3, "completed": 2, "failed": 1, "cancelled": 0}
    assert event.data["errors"] == {"engine_error": 1}
    (told,) = stored(database)
    assert (told.id, told.attempts, told.state) == (event.id, 1, "delivered")
    assert changes_in_steps.retry_batch(database, batch_id) == 1
    notifier.look()
    assert len(channel.told) == 1
    end(database, ids[:1])
    notifier.look()
    assert channel.kinds == ["batch.completed"] * 2
    assert channel.told[1].id != event.id


def test_a_batch_that_a_person_judges_ends_anew(database, notifier, channel):
    batch_id, ids = stored_batch(database, 1)
    end(database, ids)
    notifier.look()
    with database.read() as c:
        ended_at = read_job(c, ids[0]).finished_at
    assert ended_at is not None
    answers = [StoredAnswer(ids[0], ended_at)]
    moment = now()
    assert database.transact(lambda c: refuse_stored(c, batch_id, answers, max_tries=3, reason="no", now=moment)) == 1
    notifier.look()
    end(database, ids)
    notifier.look()
    assert channel.kinds == ["batch.completed"] * 2


def test_two_that_look_at_once_tell_it_once(database, notifier, channel):
    other = Notifier(database, [channel], failing=None)
    _, ids = stored_batch(database, 1)
    end(database, ids)
    with database.read() as c:
        from helix_jobs.storage.batch_news import batches_with_news, note_news

        (found,) = batches_with_news(c, None)
    assert database.transact(lambda c: note_news(c, found, None, now())) == ["batch.completed"]
    assert database.transact(lambda c: note_news(c, found, None, now())) == ()
    notifier.look()
    other.look()
    assert channel.kinds == ["batch.completed"]


def test_a_cancelled_batch_is_told_when_its_last_job_has_gone(database, notifier, channel):
    batch_id, _ = stored_batch(database, 2)
    changes_in_steps.cancel_batch(database, batch_id)
    unsealed, _ = stored_batch(database, 2, seal=False)
    changes_in_steps.cancel_batch(database, unsealed)
    notifier.look()
    assert channel.kinds == ["batch.cancelled"], "of a submission that did not finish nobody is told"


def test_failures_are_told_once_when_enough_jobs_have_ended(database, notifier, channel):
    batch_id, ids = stored_batch(database, 45)
    end(database, ids[:19], failed=19)
    notifier.look()
    assert channel.told == []
    end(database, ids[19:40])
    for _ in range(2):
        notifier.look()
    assert channel.kinds == ["helix.batch.failing"]
    end(database, ids[40:])
    notifier.look()
    assert channel.kinds == ["helix.batch.failing", "batch.completed"]
    assert Notifier(database, [channel], failing=None).look() is None
    assert changes_in_steps.retry_batch(database, batch_id) == 19
    end(database, ids[:19], failed=3)
    notifier.look()
    assert channel.kinds[2:] == ["helix.batch.failing", "batch.completed"], "after a retry it is news again"


def test_a_brake_tells_why_in_the_transaction_that_pauses(database, notifier, channel):
    batch_id, ids = stored_batch(database, 3)
    with database.write() as c:
        c.execute(update(batches).where(batches.c.id == batch_id).values(brakes={"max_tokens_total": 11}))
    end(database, ids[:1])
    assert database.transact(lambda c: brake(c, batch_id, now())) is not None
    assert database.transact(lambda c: brake(c, batch_id, now())) is None
    notifier.look()
    assert channel.kinds == ["helix.batch.paused"]
    assert channel.told[0].data["why"].startswith("11 tokens computed")


def new_api_batch(database: Database, api_id: str) -> None:
    moment = now()
    new = NewApiBatch(
        id=api_id,
        owner="me",
        input_file_id="file-1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={},
        created_at=moment,
        expires_at=moment + timedelta(days=1),
    )
    with database.write() as c:
        api_batches.create_api_batch(c, new)


def test_batches_over_http_are_named_as_their_client_knows_them(database, notifier, channel):
    for api_id, close in (
        ("batch_a", lambda c: api_batches.close_failed(c, "batch_a", [], now())),
        ("batch_b", lambda c: api_batches.close_cancelled(c, "batch_b", now())),
        ("batch_c", lambda c: api_batches.close_expired(c, "batch_c", now())),
    ):
        new_api_batch(database, api_id)
        for _ in range(2):
            database.transact(close)
    notifier.look()
    told = {event.data["id"]: event.kind for event in channel.told}
    assert told == {"batch_a": "batch.failed", "batch_b": "batch.cancelled", "batch_c": "batch.expired"}
    assert len(channel.told) == 3
    batch_id, _ = stored_batch(database, 1)
    new_api_batch(database, "batch_d")
    with database.write() as c:
        api_batches.accept(c, "batch_d", batch_id, now())
        api_batches.expire(c, "batch_d", now())
    changes_in_steps.cancel_batch(database, batch_id)
    notifier.look()
    assert channel.kinds[3:] == ["batch.expired"]
    assert channel.told[3].data["id"] == "batch_d"


def test_a_channel_that_is_away_is_tried_again_and_the_others_are_told_once(database, channel, caplog, monkeypatch):
    monkeypatch.setattr("helix_jobs.storage.notices._FIRST_SECONDS", 60.0)
    caplog.set_level(logging.INFO)
    command = Channel("command")
    notifier = Notifier(database, [channel, command], failing=None)
    register(database, "w1")
    _, ids = stored_batch(database, 1)
    end(database, ids)
    channel.fails = True
    before = now()
    notifier.look()
    after = now()
    notifier.look()
    (waits,) = stored(database)
    assert (waits.attempts, waits.error, command.kinds) == (1, "webhook: the host answered 500", ["batch.completed"])
    assert waits.due_at is not None
    assert before <= waits.due_at - timedelta(minutes=1) <= after
    make_due(database)
    notifier.look()
    assert stored(database)[0].attempts == 2
    channel.fails = False
    make_due(database)
    notifier.look()
    assert (channel.kinds, command.kinds) == (["batch.completed"], ["batch.completed"])
    (told,) = stored(database)
    assert (told.attempts, told.error, told.due_at) == (3, None, None)
    assert caplog.text.count("is not delivered") == 2
    assert [r.levelname for r in caplog.records if "is not delivered" in r.message] == ["WARNING", "INFO"]


def test_after_three_days_a_notice_is_given_up(database, notifier, channel, caplog):
    _, ids = stored_batch(database, 1)
    end(database, ids)
    channel.fails = True
    notifier.look()
    make_due(database, created_at=now() - timedelta(hours=71, minutes=59, seconds=50))
    notifier.look()
    (given_up,) = stored(database)
    assert given_up.due_at is None
    assert given_up.state == "given up: webhook: the host answered 500"
    assert "it is given up" in caplog.text


def test_what_nobody_has_sent_for_days_is_not_sent_to_somebody_new(database, notifier, channel):
    silent = Notifier(database, [], failing=None)
    for _ in range(2):
        _, ids = stored_batch(database, 1)
        end(database, ids)
        silent.look()
    assert [told.state for told in stored(database)] == ["waits", "waits"], "somebody else may have a channel"
    with database.write() as c:
        old = select(notices.c.id).limit(1).scalar_subquery()
        c.execute(update(notices).where(notices.c.id == old).values(created_at=now() - timedelta(hours=73)))
    notifier.look()
    assert channel.kinds == ["batch.completed"]
    assert sorted(told.state for told in stored(database)) == ["delivered", "given up"]


def test_an_end_that_nobody_saw_for_days_is_no_news(database, notifier, channel):
    _, ids = stored_batch(database, 1)
    end(database, ids)
    with database.read() as c:
        from helix_jobs.storage.batch_news import batches_with_news, note_news

        (found,) = batches_with_news(c, None)
    later = now() + timedelta(days=4)
    assert database.transact(lambda c: note_news(c, found, None, later)) == ()
    notifier.look()
    assert channel.told == []


def test_whoever_dies_while_it_sends_leaves_the_notice_to_another(database):
    with database.write() as c:
        notice_id = add_notice(c, NewNotice("helix.deadline.slipping", {"why": "it is late"}), now())
    moment = now()
    first = database.transact(lambda c: take_due(c, moment))
    assert isinstance(first, Notice)
    assert (first.id, first.kind, first.data) == (notice_id, "helix.deadline.slipping", {"why": "it is late"})
    assert database.transact(lambda c: take_due(c, moment + timedelta(minutes=4))) is None
    second = database.transact(lambda c: take_due(c, moment + timedelta(minutes=6)))
    assert second is not None
    assert second.attempts == 2
    database.transact(lambda c: settle(c, first, (), "the first was slow", now()))
    database.transact(lambda c: settle(c, second, ("webhook",), None, now()))
    (told,) = stored(database)
    assert (told.state, told.error) == ("delivered", None), "the slow one writes nothing any more"


def test_the_pauses_grow_to_an_hour():
    assert [pause_after(attempts) for attempts in (1, 2, 3, 4, 5, 6, 1000)] == [5, 20, 80, 320, 1280, 3600, 3600]


def test_an_unexpected_error_is_told_without_its_text(database, notifier, channel, caplog):
    _, ids = stored_batch(database, 1)
    end(database, ids)
    channel.fails, channel.error = True, RuntimeError("mailto://me:hunter2@host")
    notifier.look()
    assert stored(database)[0].error == "webhook: unexpected error (RuntimeError)"
    assert "hunter2" not in caplog.text


def test_the_thread_tells_at_its_end_what_has_ended_since_its_last_look(database, notifier, channel, monkeypatch):
    monkeypatch.setattr("helix_jobs.notify.thread._LAST_LOOK_SECONDS", 30.0)
    thread = NotifierThread(notifier, interval=3600)
    _, ids = stored_batch(database, 1)
    end(database, ids)
    thread.close()
    assert channel.kinds == ["batch.completed"]


def test_a_database_that_is_away_is_said_once(caplog):
    class Away:
        def __init__(self):
            self.looks = 0

        def look(self):
            self.looks += 1
            raise NotDeliveredError("the database does not answer")

    away = Away()
    thread = NotifierThread(away, interval=0.001)  # type: ignore[arg-type]
    while away.looks < 3:
        pass
    thread.close()
    assert caplog.text.count("the database does not answer") == 1


def test_created_at_is_utc(database):
    with database.write() as c:
        add_notice(c, NewNotice("helix.test", {}), now())
    assert stored(database)[0].created_at.tzinfo is UTC
    assert stored(database)[0].created_at <= datetime.now(UTC)


def test_a_batch_that_cannot_be_read_keeps_nobody_from_hearing_of_the_others(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    channel = Channel()
    notifier = Notifier(sqlite_database, [channel], failing=None)
    register(sqlite_database, "w1")
    unreadable, ids = stored_batch(sqlite_database, 1)
    end(sqlite_database, ids)
    with sqlite_database.write() as c:
        c.execute(text("UPDATE batches SET created_at = 'yesterday' WHERE id = :id"), {"id": unreadable})
    for _ in range(2):
        _, ids = stored_batch(sqlite_database, 1)
        end(sqlite_database, ids)
        notifier.look()
    assert channel.kinds == ["batch.completed"] * 2
    assert caplog.text.count(f"nobody is told of batch {unreadable}") == 1
