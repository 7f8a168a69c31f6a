"""Purge: ended batches go with all that is theirs, in steps; what waits or runs is never touched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from helix_jobs.client import purge
from helix_jobs.client.purge import Outcome, Purged, plan_purge
from helix_jobs.errors import IdempotencyConflictError, NotEndedError, NotFoundError
from helix_jobs.storage import batch_changes, publishing, purging, status
from helix_jobs.storage import changes_in_steps as bulk
from helix_jobs.storage.batches import delete_batch, find_by_idempotency_key, insert_jobs, is_sealed, seal_batch
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.records import RunTotals
from helix_jobs.storage.results import iter_results
from helix_jobs.storage.schema import batch_counters, batches, jobs, results, runs, workers
from helix_jobs.storage.workers import finish_run, start_run, stop_worker
from helix_jobs.time_limits import TimeLimits
from tests.store_helpers import counts, fail, must_take, new_jobs, now, register, stored_batch, succeed, take

NOTHING = timedelta(0)
DAY = timedelta(days=1)
SUBMITTER_SILENT = timedelta(seconds=TimeLimits().submitter_silence)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(purge, "ROWS", 3)


def ended_batch(database, count: int = 7, *, failed: int = 0, cancelled: int = 0, key: str | None = None) -> str:
    """A batch whose first jobs failed, whose last ones were cancelled and whose others succeeded."""
    register(database, "w1")
    batch_id, ids = stored_batch(database, count, key=key)
    for number, job_id in enumerate(ids[: count - cancelled]):
        claimed = must_take(database, job_id)
        assert fail(database, claimed) if number < failed else succeed(database, claimed)
    if cancelled:
        bulk.cancel_batch(database, batch_id)
    return batch_id


def age(database, batch_id: str, by: timedelta) -> None:
    """Set every time of an ended batch back."""
    with database.write() as c:
        for table, column, where in (
            (batch_counters, "finished_at", batch_counters.c.batch_id == batch_id),
            (batches, "created_at", batches.c.id == batch_id),
            (jobs, "queued_at", jobs.c.batch_id == batch_id),
        ):
            c.execute(update(table).where(where).values({column: datetime.now(UTC) - by}))


def rows(database, table) -> int:
    with database.read() as c:
        return c.execute(select(func.count()).select_from(table)).scalar_one()


def test_an_ended_batch_goes_with_all_that_is_its(database):
    gone = ended_batch(database, failed=2, cancelled=1)
    kept = ended_batch(database, 4)
    done = purge.purge(database, plan_purge(database, batch_ids=[gone]))
    assert (done.batches, done.jobs, done.results) == (1, 7, 4)
    assert done.bytes > 7 * len('{"prompt":"W"}')
    with database.read() as c:
        assert status.batch_ids(c) == [kept]
    assert [rows(database, table) for table in (jobs, results)] == [4, 4]
    assert counts(database, kept) == {"succeeded": 4}
    assert check_rows(database, repair=False) == []
    with pytest.raises(NotFoundError):
        plan_purge(database, batch_ids=[gone])


def test_what_a_dry_run_says_is_what_is_removed(database):
    ended_batch(database, failed=1)
    ended_batch(database, 2)
    plan = plan_purge(database, older_than=NOTHING)
    said = purge.measure(database, plan)
    assert (said.batches, said.jobs, said.results) == (2, 9, 8)
    assert rows(database, jobs) == 9
    done = purge.purge(database, plan)
    assert done == Purged(
        batches=2, jobs=9, results=8, bytes=said.bytes, runs=done.runs, workers=done.workers, given_back=done.given_back
    )


def test_only_what_is_old_enough_goes(database):
    old, young = ended_batch(database), ended_batch(database)
    age(database, old, 2 * DAY)
    assert [batch.id for batch in plan_purge(database, older_than=DAY).batches] == [old]
    assert {batch.id for batch in plan_purge(database, older_than=NOTHING).batches} == {old, young}
    assert plan_purge(database, older_than=3 * DAY).batches == ()


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({Outcome.SUCCEEDED}, {"good"}),
        ({Outcome.FAILED}, {"bad", "both"}),
        ({Outcome.CANCELLED}, {"stopped", "both"}),
        ({Outcome.UNFINISHED}, {"half"}),
        ({Outcome.SUCCEEDED, Outcome.UNFINISHED}, {"good", "half"}),
    ],
)
def test_by_outcome(sqlite_database, only, expected):
    database = sqlite_database
    half, _ = stored_batch(database, 3, seal=False)
    age(database, half, SUBMITTER_SILENT)
    named = {
        ended_batch(database, 3): "good",
        ended_batch(database, 3, failed=1): "bad",
        ended_batch(database, 3, cancelled=1): "stopped",
        ended_batch(database, 3, failed=1, cancelled=1): "both",
        half: "half",
        stored_batch(database, 3)[0]: "waits",
    }
    plan = plan_purge(database, older_than=NOTHING, only=only)
    assert {named[batch.id] for batch in plan.batches} == expected
    assert plan.before is None, "workers and runs have no such outcome"


def test_what_waits_or_runs_stays(database):
    register(database, "w1")
    waiting, _ = stored_batch(database, 3)
    running, ids = stored_batch(database, 3)
    for job_id in ids[:2]:
        assert succeed(database, must_take(database, job_id))
    must_take(database, ids[2])
    assert plan_purge(database, older_than=-DAY).batches == ()
    for batch_id in (waiting, running):
        with pytest.raises(NotEndedError, match=f"helix cancel {batch_id}"):
            plan_purge(database, batch_ids=[batch_id])


@pytest.mark.parametrize("state", ["running", "unpublished", "published"])
def test_counters_that_are_wrong_cost_nobody_a_waiting_job(database, state):
    batch_id = ended_batch(database, 4)
    plan = plan_purge(database, older_than=NOTHING)
    change = {"state": "running"} if state == "running" else {"state": "queued", "published_at": now()}
    if state == "unpublished":
        change["published_at"] = None
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.batch_id == batch_id, jobs.c.line == 4).values(change))
    assert purge.purge(database, plan).jobs == 0
    assert rows(database, jobs) == 4


def test_a_batch_that_is_retried_after_it_was_chosen_stays(database):
    batch_id = ended_batch(database, 4, failed=1)
    plan = plan_purge(database, older_than=NOTHING)
    bulk.retry_batch(database, batch_id)
    assert purge.purge(database, plan).batches == 0
    assert counts(database, batch_id) == {"succeeded": 3, "queued": 1}


def test_a_retry_that_has_only_begun_ends_with_the_purge(database):
    batch_id = ended_batch(database, 4, failed=2)
    plan = plan_purge(database, older_than=NOTHING)
    with database.write() as c:
        begun = batch_changes.begin_retry(c, batch_id)
    with database.write() as c:
        assert purging.begin_purge(c, plan.batches[0], now())
    with database.write() as c:
        assert batch_changes.retry_lines(c, begun, 0, 10, now=now()) is None


def interrupted(database, plan: purge.PurgePlan) -> None:
    """A purge that ends after its first step."""

    class KilledError(Exception):
        pass

    def killed(_: Purged) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        purge.purge(database, plan, killed)


def test_an_interrupted_purge_is_finished_by_the_next_one_whatever_it_is_asked_for(database):
    batch_id, other = ended_batch(database, failed=1, key="k"), ended_batch(database, 2)
    interrupted(database, plan_purge(database, batch_ids=[batch_id]))
    assert rows(database, jobs) == 4 + 2
    assert check_rows(database, repair=False) == []
    plan = plan_purge(database, older_than=10 * DAY)
    assert (plan.begun, plan.batches) == ((batch_id,), ())
    assert plan_purge(database, batch_ids=[batch_id]).begun == (batch_id,)
    assert (purge.purge(database, plan).jobs, rows(database, batches)) == (4, 1)
    assert counts(database, other) == {"succeeded": 2}


def test_a_half_removed_batch_is_gone_for_everybody(database):
    batch_id = ended_batch(database, failed=1, cancelled=1, key="k")
    interrupted(database, plan_purge(database, batch_ids=[batch_id]))
    with database.read() as c:
        assert (status.list_batches(c), status.batch_ids(c), publishing.backlog(c)) == ([], [], 0)
        assert publishing.publishable(c, 10) == []
        for read in (status.batch_status, iter_results):
            with pytest.raises(NotFoundError):
                read(c, batch_id)
    for change in (bulk.cancel_batch, bulk.retry_batch):
        with pytest.raises(NotFoundError):
            change(database, batch_id)
    with database.write() as c:
        assert not delete_batch(c, batch_id)
        assert not is_sealed(c, batch_id)
        assert find_by_idempotency_key(c, "k") is None
        for submit in (
            lambda: insert_jobs(c, batch_id, new_jobs(2), now()),
            lambda: seal_batch(c, batch_id, 2, "d" * 64),
        ):
            with pytest.raises((NotFoundError, IdempotencyConflictError), match="no longer exists"):
                submit()


def test_a_key_is_free_again(database):
    first = ended_batch(database, 3, key="nightly")
    purge.purge(database, plan_purge(database, batch_ids=[first]))
    second, _ = stored_batch(database, 3, key="nightly")
    assert counts(database, second) == {"queued": 3}


def test_a_submission_that_grows_is_not_old_and_one_that_does_not_is(database):
    batch_id, _ = stored_batch(database, 4, seal=False)
    age(database, batch_id, 2 * DAY)
    with database.write() as c:
        insert_jobs(c, batch_id, new_jobs(5), now())
    assert plan_purge(database, older_than=DAY).batches == ()
    with pytest.raises(NotEndedError):
        plan_purge(database, batch_ids=[batch_id])
    age(database, batch_id, 2 * DAY)
    plan = plan_purge(database, older_than=DAY)
    with database.write() as c:  # it goes on after all
        insert_jobs(c, batch_id, new_jobs(6), now())
    assert purge.purge(database, plan).batches == 0
    age(database, batch_id, 2 * DAY)
    assert purge.purge(database, plan_purge(database, older_than=DAY)).jobs == 6


@pytest.mark.parametrize("older_than", [NOTHING, -DAY, timedelta(seconds=1)])
@pytest.mark.parametrize("lines", [0, 4])
def test_a_submission_that_pauses_loses_nothing_whatever_the_age(database, older_than, lines):
    """Somebody may still feed the pipe that it reads."""
    batch_id, _ = stored_batch(database, lines, seal=False)
    age(database, batch_id, SUBMITTER_SILENT - timedelta(seconds=10))
    assert plan_purge(database, older_than=older_than).batches == ()
    age(database, batch_id, SUBMITTER_SILENT)
    assert [batch.id for batch in plan_purge(database, older_than=older_than).batches] == [batch_id]


def test_whoever_reads_results_meanwhile_is_told(database):
    batch_id = ended_batch(database, 6)
    stream = iter_results(database.read, batch_id, chunk=2)
    assert next(stream).line == 1
    purge.purge(database, plan_purge(database, batch_ids=[batch_id]))
    with pytest.raises(NotFoundError, match="removed while it was read"):
        list(stream)


def test_runs_and_workers_go_when_nothing_is_left_of_them(database):
    register(database, "old", "lost", "alive")
    with database.write() as c:
        kept_run, gone_run = start_run(c, "old", now()), start_run(c, "lost", now())
        start_run(c, "alive", now())
        for run_id in (kept_run, gone_run):
            totals = RunTotals(jobs_finished=1)
            finish_run(c, run_id, totals, now())
        start_run(c, "lost", now())  # broken off
        for worker_id in ("old", "lost"):
            stop_worker(c, worker_id, now())
    batch_id = ended_batch(database, 2)
    with database.write() as c:
        c.execute(update(results).values(run_id=kept_run))
    with database.write() as c:
        stop_worker(c, "w1", now())
    done = purge.purge(database, purge.PurgePlan(batches=(), begun=(), before=now()))
    assert (done.runs, done.workers) == (2, 1), "lost with both of its runs; w1 answered a batch that is there"
    assert rows(database, runs) == 2
    done = purge.purge(database, plan_purge(database, older_than=NOTHING))
    assert (done.batches, done.runs, done.workers) == (1, 1, 2)
    with database.read() as c:
        assert list(c.execute(select(workers.c.id)).scalars()) == ["alive"]
    assert batch_id not in [batch.id for batch in plan_purge(database, older_than=NOTHING).batches]


def test_a_message_of_a_purged_job_is_refused(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 2)
    for job_id in ids:
        assert succeed(database, must_take(database, job_id))
    purge.purge(database, plan_purge(database, batch_ids=[batch_id]))
    assert take(database, ids[0]) is None


def test_no_step_holds_more_than_its_rows(database):
    """What another writer waits for is a transaction of ROWS jobs, however large the batch."""
    ended_batch(database, 7)
    steps = []
    purge.purge(database, plan_purge(database, older_than=NOTHING), lambda so_far: steps.append(so_far.jobs))
    assert list(dict.fromkeys(steps)) == [3, 6, 7]
