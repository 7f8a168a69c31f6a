"""Cancel and retry of whole batches in steps: the same outcome as in one transaction, whatever comes in between."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from helix_jobs.errors import NotFoundError, UnfinishedSubmissionError
from helix_jobs.storage import batch_changes, publishing
from helix_jobs.storage import changes_in_steps as bulk
from helix_jobs.storage.batch_changes import Change
from helix_jobs.storage.status import batch_status
from helix_jobs.time_limits import TimeLimits
from helix_jobs.worker.reconciler import CancelSeen, Reconciler, watch_cancels
from tests.store_helpers import counts, fail, must_take, now, register, status, stored_batch, succeed, take


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(bulk, "ROWS", 3)


@pytest.fixture
def mixed(database):
    """Ten jobs: the second succeeded, the third failed, the fourth runs."""
    register(database, "w1")
    batch_id, ids = stored_batch(database, 10)
    assert succeed(database, must_take(database, ids[1]))
    assert fail(database, must_take(database, ids[2]))
    must_take(database, ids[3])
    return batch_id, ids


def test_cancel_stops_what_has_not_ended(database, mixed):
    batch_id, _ = mixed
    assert bulk.cancel_batch(database, batch_id) == 8
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 8}
    assert status(database, batch_id).done
    assert bulk.cancel_batch(database, batch_id) == 0


def test_retry_queues_what_did_not_succeed(database, mixed):
    batch_id, _ = mixed
    bulk.cancel_batch(database, batch_id)
    assert bulk.retry_batch(database, batch_id) == 9
    assert counts(database, batch_id) == {"queued": 9, "succeeded": 1}
    with database.read() as c:
        assert len(publishing.publishable(c, 100)) == 9
    assert bulk.retry_batch(database, batch_id) == 0


def test_from_the_first_commit_on_nothing_of_it_starts(database, mixed):
    batch_id, ids = mixed
    with database.write() as c:
        assert batch_changes.begin_cancel(c, batch_id, now=now()) is not None
    assert take(database, ids[9]) is None
    with database.read() as c:
        assert publishing.publishable(c, 100) == []


def interrupted_cancel(database, batch_id: str, lines: int) -> Change:
    """A cancel whose command died after some lines."""
    with database.write() as c:
        begun = batch_changes.begin_cancel(c, batch_id, now=now())
    assert begun is not None
    with database.write() as c:
        batch_changes.cancel_lines(c, begun, 0, lines)
    return begun


def test_an_interrupted_cancel_is_finished_by_the_next_one(database, mixed):
    batch_id, _ = mixed
    interrupted_cancel(database, batch_id, 5)
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 3, "queued": 5}
    assert bulk.cancel_batch(database, batch_id) == 5
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 8}


def test_an_interrupted_cancel_does_not_hide_jobs_from_a_retry(database, mixed):
    """Their messages may have been refused while the batch was cancelled: every job must be published again."""
    batch_id, ids = mixed
    with database.write() as c:
        publishing.mark_published(c, ids, batch_status(c, batch_id).read_at)
    interrupted_cancel(database, batch_id, 5)
    assert bulk.retry_batch(database, batch_id) == 9
    with database.read() as c:
        assert len(publishing.publishable(c, 100)) == 9


def test_a_retry_ends_the_cancel_that_is_under_way(database, mixed):
    batch_id, _ = mixed
    begun = interrupted_cancel(database, batch_id, 5)
    bulk.retry_batch(database, batch_id)
    assert bulk.finish_cancel(database, begun) == 0
    assert counts(database, batch_id) == {"succeeded": 1, "queued": 9}


def test_a_cancel_ends_the_retry_that_is_under_way(database, mixed):
    batch_id, _ = mixed
    bulk.cancel_batch(database, batch_id)
    with database.write() as c:
        begun = batch_changes.begin_retry(c, batch_id)
        assert batch_changes.retry_lines(c, begun, 0, 5, now=now()) == 4
    bulk.cancel_batch(database, batch_id)
    with database.write() as c:
        assert batch_changes.retry_lines(c, begun, 5, 10, now=now()) is None
    assert counts(database, batch_id) == {"succeeded": 1, "cancelled": 9}


def test_a_worker_finishes_a_cancel_nobody_goes_on_with(database, mixed):
    batch_id, _ = mixed
    interrupted_cancel(database, batch_id, 5)
    clock = [0.0]
    reconciler = Reconciler(database, NoBroker(), time_limits=TimeLimits(republish=30.0), clock=lambda: clock[0])
    reconciler.tick()
    clock[0] = 29.0
    reconciler.tick()
    assert counts(database, batch_id)["queued"] == 5
    clock[0] = 30.0
    reconciler.tick()
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 8}


def test_a_worker_finishes_a_large_cancel_between_its_other_duties(database, mixed):
    batch_id, _ = mixed
    interrupted_cancel(database, batch_id, 2)
    readings = iter(float(second) for second in range(1000))
    reconciler = Reconciler(
        database, NoBroker(), time_limits=TimeLimits(reconcile=2.0, republish=5.0), clock=lambda: next(readings)
    )
    left = []
    for _ in range(20):
        reconciler.tick()
        left.append(counts(database, batch_id).get("queued", 0))
    assert left[-1] == 0
    assert len({number for number in left if number}) > 1, "all at once"


def test_a_cancel_that_goes_on_is_left_alone():
    change = Change("b", None)
    first = watch_cancels({}, {change: 10}, 0.0)
    assert first == {change: CancelSeen(10, 0.0)}
    assert watch_cancels(first, {change: 10}, 5.0) == first
    assert watch_cancels(first, {change: 9}, 5.0) == {change: CancelSeen(9, 5.0)}
    assert watch_cancels(first, {}, 5.0) == {}


def test_unsealed_and_unknown_batches(database):
    batch_id, _ = stored_batch(database, 3, seal=False)
    with pytest.raises(UnfinishedSubmissionError):
        bulk.retry_batch(database, batch_id)
    assert bulk.cancel_batch(database, batch_id) == 0
    for change in (bulk.cancel_batch, bulk.retry_batch):
        with pytest.raises(NotFoundError):
            change(database, batch_id)


class NoBroker:
    def depth(self) -> int:
        return 1

    def turn(self):
        return nullcontext()

    def publish(self, jobs, /) -> None:
        pass
