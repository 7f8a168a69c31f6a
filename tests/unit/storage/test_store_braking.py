"""A batch whose brake says stop is paused once, says why, and may spend the same again when it is resumed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text, update

from helix_jobs.storage import changes_in_steps
from helix_jobs.storage.brake_ledger import Ledger
from helix_jobs.storage.braking import Braked, brake, braked_batches
from helix_jobs.storage.pausing import pause_batch, resume_batch
from helix_jobs.storage.schema import batches
from helix_jobs.storage.states import BatchState
from tests.store_helpers import fail, must_take, now, register, status, stored_batch, succeed

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.storage.database import Database


def braked_batch(database: Database, count: int, **brakes: Any) -> tuple[str, list[int]]:
    register(database, "w1")
    batch_id, ids = stored_batch(database, count)
    with database.write() as c:
        c.execute(update(batches).where(batches.c.id == batch_id).values(brakes=brakes))
    return batch_id, ids


def due(database: Database, moment: datetime | None = None) -> list[str]:
    with database.read() as c:
        return [batch.status.id for batch in braked_batches(c) if batch.is_due(moment or now())]


def stop(database: Database, batch_id: str, moment: datetime | None = None) -> Braked | None:
    return database.transact(lambda c: brake(c, batch_id, moment or now()))


def end(database: Database, ids: list[int], *, failed: int = 0) -> None:
    for number, job_id in enumerate(ids):
        claimed = must_take(database, job_id)
        assert fail(database, claimed) if number < failed else succeed(database, claimed)


def stored_ledger(database: Database, batch_id: str) -> Ledger:
    with database.read() as c:
        return Ledger.from_stored(c.execute(select(batches.c.brake_ledger).where(batches.c.id == batch_id)).scalar())


def test_tokens_are_those_computed_and_a_resume_gives_as_many_again(database: Database) -> None:
    # An answer of the helpers has 5 tokens of prompt, 1 of them from the cache, and 7 of its own: 11 computed.
    batch_id, ids = braked_batch(database, 9, max_tokens_total=33)
    end(database, ids[:2])
    assert due(database) == []
    assert stop(database, batch_id) is None
    end(database, ids[2:3])
    running = must_take(database, ids[3])
    assert due(database) == [batch_id]
    stopped = stop(database, batch_id)
    assert stopped is not None
    assert stopped.waiting == 5
    assert stopped.why == "33 tokens computed; the limit is 33 (--max-tokens-total)"
    now_is = status(database, batch_id)
    assert (now_is.state, now_is.paused_why) == (BatchState.PAUSED, stopped.why)
    assert (stop(database, batch_id), due(database)) == (None, []), "it is paused once"
    assert succeed(database, running), "what runs ends"
    assert database.transact(lambda c: resume_batch(c, batch_id)) == 5
    assert status(database, batch_id).paused_why is None
    end(database, ids[4:6])
    assert due(database) == [], "22 since the resume, at which 44 had been computed"
    end(database, ids[6:7])
    assert due(database) == [batch_id]
    assert stop(database, batch_id) is not None


def test_failures_count_when_twenty_have_ended_and_the_reason_names_the_error(database: Database) -> None:
    batch_id, ids = braked_batch(database, 50, stop_if_failing=0.1)
    end(database, ids[:19], failed=19)
    assert due(database) == []
    end(database, ids[19:20])
    stopped = stop(database, batch_id)
    assert stopped is not None
    assert stopped.why == (
        "19 of 20 jobs failed, 95 %; the limit is 10 % (--stop-if-failing); the most frequent error is engine_error, "
        "19 in all"
    )
    assert database.transact(lambda c: resume_batch(c, batch_id)) == 30
    assert due(database) == []
    end(database, ids[20:39], failed=2)
    assert due(database) == []
    end(database, ids[39:40])
    assert due(database) == [batch_id], "2 of 20 since the resume"


def test_failures_that_a_retry_takes_back_are_not_owed_to_later_ones(database: Database) -> None:
    batch_id, ids = braked_batch(database, 60, stop_if_failing=0.5)
    end(database, ids[:20], failed=20)
    assert stop(database, batch_id) is not None
    assert database.transact(lambda c: resume_batch(c, batch_id)) == 40
    assert changes_in_steps.retry_batch(database, batch_id) == 20
    assert due(database) == [batch_id], "its ledger holds failures that are gone"
    assert stop(database, batch_id) is None
    assert stored_ledger(database, batch_id).counts == (0, 0, 0)
    end(database, ids[20:40], failed=10)
    assert due(database) == [batch_id]
    assert stop(database, batch_id) is not None


def test_hours_are_those_in_which_jobs_ran_and_somebody_looked(database: Database) -> None:
    batch_id, ids = braked_batch(database, 3, max_hours=1 / 60)
    start = now()
    assert due(database, start) == [], "nothing runs yet"
    claimed = must_take(database, ids[0])
    assert due(database, start) == [batch_id]
    for seconds in (0, 20, 40):
        assert stop(database, batch_id, start + timedelta(seconds=seconds)) is None
    assert stored_ledger(database, batch_id).seconds == 40
    assert due(database, start + timedelta(seconds=41)) == [], "the time is written every so often only"
    assert due(database, start + timedelta(seconds=55)) == [batch_id]
    # Nobody looked for an hour: whether it ran is not known.
    assert stop(database, batch_id, start + timedelta(hours=1)) is None
    # The clock was set back.
    assert stop(database, batch_id, start + timedelta(seconds=100)) is None
    assert stored_ledger(database, batch_id).seconds == 40
    assert succeed(database, claimed)
    assert stop(database, batch_id, start + timedelta(seconds=150)) is None
    claimed = must_take(database, ids[1])
    assert stop(database, batch_id, start + timedelta(seconds=190)) is None
    assert stored_ledger(database, batch_id).seconds == 40, "none of its jobs was seen running in between"
    stopped = stop(database, batch_id, start + timedelta(seconds=215))
    assert stopped is not None
    assert stopped.why == "it has run for 1 min 05 s; the limit is 1 min 00 s (--max-hours)"
    assert succeed(database, claimed)
    assert database.transact(lambda c: resume_batch(c, batch_id)) == 1
    assert stored_ledger(database, batch_id) == Ledger(22, 2, 0)


def test_the_pause_of_a_person_has_no_reason_and_leaves_what_was_spent(database: Database) -> None:
    batch_id, ids = braked_batch(database, 5, max_tokens_total=33)
    end(database, ids[:2])
    assert database.transact(lambda c: pause_batch(c, batch_id, now=now())) == 3
    assert status(database, batch_id).paused_why is None
    assert due(database) == []
    assert database.transact(lambda c: resume_batch(c, batch_id)) == 3
    end(database, ids[2:3])
    assert stop(database, batch_id) is not None, "the third answer is the budget's last"


def test_brakes_are_released_whether_the_batch_is_paused_or_not(database: Database) -> None:
    batch_id, ids = braked_batch(database, 4, max_tokens_total=11)
    end(database, ids[:1])
    assert stop(database, batch_id) is not None
    assert database.transact(lambda c: resume_batch(c, batch_id, release_brakes=True)) == 3
    assert status(database, batch_id).brakes is None
    end(database, ids[1:3])
    assert (due(database), stop(database, batch_id)) == ([], None)
    other, ids = braked_batch(database, 2, max_tokens_total=11)
    assert database.transact(lambda c: resume_batch(c, other, release_brakes=True)) == 0
    assert status(database, other).brakes is None


def test_what_has_ended_or_cannot_be_held_back_is_not_paused(database: Database) -> None:
    batch_id, ids = braked_batch(database, 2, max_tokens_total=11)
    end(database, ids[:1])
    claimed = must_take(database, ids[1])
    assert stop(database, batch_id) is None, "its last job runs"
    assert succeed(database, claimed)
    assert due(database) == []
    cancelled, ids = braked_batch(database, 2, max_tokens_total=11)
    end(database, ids[:1])
    stopped = stop(database, cancelled)
    assert stopped is not None
    assert changes_in_steps.cancel_batch(database, cancelled) == 1
    assert status(database, cancelled).paused_why is None
    assert stop(database, "b-none") is None


@pytest.mark.parametrize("ledger", ['{"tokens": "none"}', "[1]", '{"tokens": 1e999, "ended": 0, "failed": 0}'])
def test_brakes_changed_by_hand_stop_nothing_and_hide_no_other_batch(database: Database, ledger: str) -> None:
    wrong, ids = braked_batch(database, 3, max_tokens_total="many")
    end(database, ids[:1])
    right, ids = braked_batch(database, 3, max_tokens_total=11)
    end(database, ids[:1])
    with database.write() as c:
        c.execute(text("UPDATE batches SET brake_ledger = :ledger WHERE id = :id"), {"ledger": ledger, "id": right})
    assert due(database) == [right]
    assert stop(database, wrong) is None
    assert stop(database, right) is not None


def test_a_batch_that_cannot_be_read_releases_no_other_brake(database: Database) -> None:
    unreadable, ids = braked_batch(database, 3, max_tokens_total=11)
    end(database, ids[:1])
    right, ids = braked_batch(database, 3, max_tokens_total=11)
    end(database, ids[:1])
    if database.dialect == "sqlite":
        with database.write() as c:
            c.execute(text("UPDATE batches SET created_at = 'yesterday' WHERE id = :id"), {"id": unreadable})
    assert right in due(database)
