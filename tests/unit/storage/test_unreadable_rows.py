"""Rows that cannot be read fail alone: each kind that somebody's hand or a damaged disk can leave."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from datetime import timedelta

import pytest
from celery.exceptions import Reject
from sqlalchemy import text

from helix_jobs.broker.celery import task as tasks
from helix_jobs.broker.celery.service import bind_service
from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.database_url import sqlite_url
from helix_jobs.doctor.database import check_database
from helix_jobs.doctor.verdict import Level
from helix_jobs.errors import UnreadableRowError
from helix_jobs.results.export import result_row
from helix_jobs.settings import Settings
from helix_jobs.storage import batch_changes, claims, results, retries, workers
from helix_jobs.storage import changes_in_steps as bulk
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.records import Reclaimed
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.status import batch_status, list_batches
from helix_jobs.worker.reconciler import Reconciler
from tests.store_helpers import check_counters, counts, must_take, now, register, stored_batch, succeed

MANY_DIGITS = '{"prompt": "p", "seed": ' + "9" * 10_000 + "}"

KINDS = {
    "not JSON": ("sqlite", "UPDATE jobs SET request = 'no { json' WHERE id = :id"),
    "many digits": ("both", "UPDATE jobs SET request = '" + MANY_DIGITS + "' WHERE id = :id"),  # noqa: S608  (a test's own rows)
    "deep": ("sqlite", "UPDATE jobs SET request = replace(hex(zeroblob(60000)), '0', '[') WHERE id = :id"),
    "bad UTF-8": ("sqlite", "UPDATE jobs SET request = CAST(x'7b22ff227d' AS TEXT) WHERE id = :id"),
    "bad time": ("sqlite", "UPDATE jobs SET queued_at = 'yesterday' WHERE id = :id"),
    "lease": ("postgresql", "UPDATE jobs SET lease = 2147483647 WHERE id = :id"),
    "huge lease": ("sqlite", "UPDATE jobs SET lease = 9223372036854775807 WHERE id = :id"),
}


def damage(database, statement, job_id):
    with database.write() as c:
        c.exec_driver_sql(statement.replace(":id", str(job_id)).replace("%", "%%"))


def apt(database):
    return {name: sql for name, (where, sql) in KINDS.items() if where in ("both", database.dialect)}


def test_each_kind_fails_alone_and_is_readable_from_then_on(make_bench, caplog):
    caplog.set_level(logging.ERROR, logger="helix_jobs")
    bench = make_bench()
    kinds = apt(bench.database)
    good = bench.add("a b c", "d e f")
    bad = bench.add(*[f"damaged {name}" for name in kinds])
    for job_id, statement in zip(bad, kinds.values(), strict=True):
        damage(bench.database, statement, job_id)
    assert all(future.result(30) is True for future in bench.run(*good, *bad))
    rows = bench.rows()
    assert {rows[job_id].state for job_id in good} == {"succeeded"}
    assert {(rows[job_id].state, rows[job_id].error_code) for job_id in bad} == {("failed", "invalid_request")}
    assert all("cannot be read" in rows[job_id].error_message for job_id in bad)
    assert bench.service.counters.outcomes["invalid_request"] == len(kinds)
    with bench.database.read() as c:
        for batch_id in {row.batch_id for row in rows.values()}:
            check_counters(c, batch_id)
    assert "damaged" not in caplog.text
    assert len(caplog.records) == len(kinds), "one line each"


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_a_machine_at_its_limits_is_no_unreadable_row(make_bench, monkeypatch, error):
    """The job stays as it is; its message is kept by whoever called."""
    bench = make_bench()
    (job,) = bench.add("a b c")

    def claim(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(claims, "claim", claim)
    with pytest.raises(type(error)):
        bench.run(job)[0].result(20)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("queued", 0)
    monkeypatch.undo()
    assert bench.run(job)[0].result(20) is True
    assert bench.rows()[job].state == "succeeded"


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_a_machine_at_its_limits_fails_no_answer(make_bench, monkeypatch, error):
    """The lease that nobody works on is handed back by the heartbeat, and the job runs again."""
    bench = make_bench()
    (job,) = bench.add("a b c")

    def finish(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(claims, "finish_succeeded", finish)
    with pytest.raises(type(error)):
        bench.run(job)[0].result(20)
    assert bench.rows()[job].state == "running"
    monkeypatch.undo()
    for _ in range(2):
        bench.heartbeat.check_leases()
    bench.writer.submit(lambda _: None).result(20)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("queued", 0)
    assert bench.run(job)[0].result(20) is True
    assert bench.rows()[job].state == "succeeded"


def test_they_may_come_again_after_a_retry(make_bench):
    bench = make_bench()
    (job_id,) = bench.add("a b c")
    damage(bench.database, KINDS["many digits"][1], job_id)
    assert bench.run(job_id)[0].result(30) is True
    with bench.database.write() as c:
        c.execute(text("UPDATE jobs SET state = 'queued', finished_at = NULL, error_code = NULL"))
        c.execute(jobs.update().values(request={"prompt": "again", "sampling": {}, "seed": 1, "metadata": {}}))
    assert bench.run(job_id)[0].result(30) is True
    assert bench.rows()[job_id].state == "succeeded"


def test_a_worker_whose_row_cannot_be_read_holds_up_nobody(sqlite_database, tmp_path):
    """Its leases are taken as those of one without a row, and every other duty is done."""
    database = sqlite_database
    batch_id, ids = stored_batch(database, 3)
    register(database, "damaged", "alive")
    must_take(database, ids[0], "damaged")
    with database.write() as c:
        c.execute(text("UPDATE workers SET heartbeat_at = 'yesterday' WHERE id = 'damaged'"))
    with database.read() as c:
        assert [worker.id for worker in workers.live_workers(c)] == ["alive"]
        assert workers.worker_heartbeats(c)["damaged"] is None
    found = check_database(Settings(home=tmp_path, redis_url=None, database_url=sqlite_url(database.sqlite_file)))
    assert next(verdict for verdict in found if verdict.subject == "leases").remedy == "run helix db check --repair"
    with database.write() as c:
        assert retries.reclaim(c, "damaged", now()) == Reclaimed(requeued=1)
    assert counts(database, batch_id) == {"queued": 3}
    with database.write() as c:
        c.execute(text("UPDATE workers SET stopped_at = NULL WHERE id = 'damaged'"))
        assert workers.heartbeat(c, "damaged", now())
    with database.read() as c:
        assert {worker.id for worker in workers.live_workers(c)} == {"alive", "damaged"}


class OpenBroker:
    """Takes every message."""

    def __init__(self):
        self.messages = []

    def depth(self):
        return len(self.messages)

    def turn(self):
        return nullcontext()

    def publish(self, published):
        self.messages += [job.id for job in published]

    def forget_delivered(self, _are_moot):
        return 0


def test_a_cancel_whose_time_cannot_be_read_holds_up_nobody(sqlite_database):
    """Every batch waits for the reconciler's looks at the cancels, and a retry looks, too."""
    database = sqlite_database
    damaged, _ = stored_batch(database, 2)
    other, _ = stored_batch(database, 1)
    cancelled, _ = stored_batch(database, 1)
    _, ids = stored_batch(database, 3)
    with database.write() as c:
        c.execute(text("UPDATE batches SET cancelled_at = strftime('%s', 'now') WHERE id = :id"), {"id": damaged})
        begun = batch_changes.begin_cancel(c, cancelled, now=now())
    bulk.cancel_batch(database, other)
    broker = OpenBroker()
    Reconciler(database, broker).tick()
    assert broker.messages == ids
    with database.read() as c:
        assert batch_changes.unfinished_cancels(c) == {begun: 1}
    assert bulk.retry_batch(database, other) == 1
    assert "values of batches.cancelled_at that cannot be read" in {
        finding.what for finding in check_rows(database, repair=False)
    }


def test_a_claim_whose_time_cannot_be_read_keeps_its_workers_other_jobs_from_nobody(sqlite_database):
    database = sqlite_database
    batch_id, ids = stored_batch(database, 3)
    register(database, "lost")
    for job_id in ids:
        must_take(database, job_id, "lost")
    with database.write() as c:
        c.execute(text("UPDATE jobs SET attempts = max_attempts WHERE id != :id"), {"id": ids[2]})
        c.execute(text("UPDATE jobs SET claimed_at = 'yesterday' WHERE id = :id"), {"id": ids[0]})
    with database.write() as c:
        assert retries.reclaim(c, "lost", now()) == Reclaimed(requeued=1, failed=2)
    assert counts(database, batch_id) == {"failed": 2, "queued": 1}


@pytest.mark.parametrize(("room", "duty"), [(workers, "worker_heartbeats"), (batch_changes, "unfinished_cancels")])
def test_a_duty_that_fails_keeps_the_reconciler_from_no_other(sqlite_database, monkeypatch, room, duty):
    _, ids = stored_batch(sqlite_database, 3)
    broker = OpenBroker()

    def fail(_):
        raise ValueError("not yet known")

    monkeypatch.setattr(room, duty, fail)
    with pytest.raises(ValueError, match="not yet known"):
        Reconciler(sqlite_database, broker).tick()
    assert broker.messages == ids


@pytest.mark.parametrize(
    ("table", "column"),
    [("batches", "created_at"), ("batch_counters", "started_at"), ("batch_counters", "finished_at")],
)
def test_a_batch_whose_times_are_none_is_named_by_whoever_reads_it(sqlite_database, tmp_path, table, column):
    database = sqlite_database
    register(database, "w1")
    batch_id, ids = stored_batch(database, 1)
    assert succeed(database, must_take(database, ids[0]))
    plan = plan_purge(database, older_than=timedelta(0))
    with database.write() as c:
        c.execute(text(f"UPDATE {table} SET {column} = 'yesterday'"))  # noqa: S608  (constants)
    with database.read() as c:
        for read in (list_batches, lambda c: batch_status(c, batch_id)):
            with pytest.raises(UnreadableRowError, match=r"\(ValueError\).*helix db check"):
                read(c)
    if column != "started_at":  # which no purge asks for
        for purging in (lambda: plan_purge(database, older_than=timedelta(0)), lambda: purge(database, plan)):
            with pytest.raises(UnreadableRowError, match="helix db check"):
                purging()
        settings = Settings(home=tmp_path, redis_url=None, database_url=sqlite_url(database.sqlite_file))
        found = next(verdict for verdict in check_database(settings) if verdict.subject == "old batches")
        assert (found.level, "helix db check --repair" in found.remedy) == (Level.FAILED, True)
    assert check_rows(database, repair=True)
    with database.read() as c:
        assert [status.id for status in list_batches(c)] == [batch_id]


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize("value", ["[]", "7", "null", '"text"'])
def test_a_request_that_is_json_and_no_object_is_empty_and_named(database, value):
    batch_id, ids = stored_batch(database, 2)
    bulk.cancel_batch(database, batch_id)
    damage(database, f"UPDATE jobs SET request = '{value}' WHERE id = :id", ids[0])  # noqa: S608  (constants)
    with database.read() as c:
        damaged, sound = results.iter_results(c, batch_id, include_failed=True)
    assert (damaged.request, result_row(damaged)["prompt"]) == ({}, None)
    assert sound.request["prompt"]
    (found,) = check_rows(database, repair=False)
    assert found.examples == (str(ids[0]),)
    assert check_rows(database, repair=True)
    assert check_rows(database, repair=False) == []


class BrokenService:
    def __init__(self, error):
        self.error = error

    def run_job(self, _job_id):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a very private prompt"), KeyError("x"), RecursionError()])
def test_no_exception_acknowledges_a_message(monkeypatch, tmp_path, caplog, error):
    monkeypatch.setenv("HELIX_HOME", str(tmp_path))  # where Celery's settings are read from
    monkeypatch.setattr(tasks, "UNEXPECTED_SECONDS", 0.0)
    bind_service(BrokenService(error))
    try:
        with pytest.raises(Reject) as caught:
            tasks.run_job.run(7)
    finally:
        bind_service(None)
    assert caught.value.requeue is True
    assert "its message stays" in caplog.text
    assert "private" not in caplog.text
