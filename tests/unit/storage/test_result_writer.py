from __future__ import annotations

import sqlite3
import sys
import threading
from concurrent.futures import wait

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import DatabaseUnreachableError, HelixError
from helix_jobs.storage import claims, sqlite_engine, workers
from helix_jobs.storage import group_commit as result_writer
from helix_jobs.storage.database import Database
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.storage.records import NewWorker
from tests.store_helpers import counts, ended, must_take, now, register, result_row, stored_batch


def _insert(worker_id):
    return lambda c: workers.register_worker(
        c,
        NewWorker(id=worker_id, hostname="h", pid=1, device="cpu", target_model="t", draft_model=None, slots=1),
        now(),
    )


def _count_commits(database):
    commits = []
    with database.write() as c:
        engine = c.engine
    event.listen(engine, "commit", lambda _: commits.append(1))
    return commits


def _workers(database):
    with database.read() as c:
        return {worker.id for worker in workers.live_workers(c)}


def test_many_operations_share_few_commits(database):
    writer = GroupCommitWriter(database, max_rows=50, max_delay=60)
    # After a rest a write waits for no others, so a first one alone begins the delay.
    writer.submit(_insert("first")).result()
    commits = _count_commits(database)
    futures = [writer.submit(_insert(f"w{n}")) for n in range(100)]
    wait(futures)
    assert len(commits) == 2
    assert len(_workers(database)) == 101
    assert writer.close()


def test_a_future_resolves_only_after_the_commit(sqlite_database):
    writer = GroupCommitWriter(sqlite_database)
    seen = threading.Event()

    def look(_):
        # A callback runs the moment the future resolves; another connection must see the row by then.
        if "w1" in _workers(sqlite_database):
            seen.set()

    writer.submit(_insert("w1")).add_done_callback(look)
    assert writer.close()
    assert seen.is_set()


def test_an_operation_that_fails_fails_alone(database):
    writer = GroupCommitWriter(database, max_delay=0.2)

    def bad(c):
        c.execute(text("INSERT INTO workers (id) VALUES ('broken')"))

    def worse(_):
        raise KeyError("mine")

    futures = [writer.submit(f) for f in (_insert("w1"), bad, _insert("w2"), worse, _insert("w3"))]
    assert writer.close()
    assert [type(future.exception()).__name__ for future in futures] == [
        "NoneType",
        "IntegrityError",
        "NoneType",
        "KeyError",
        "NoneType",
    ]
    assert _workers(database) == {"w1", "w2", "w3"}


def test_counters_and_results_survive_a_group_that_had_to_be_taken_apart(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    held = [must_take(database, job_id) for job_id in ids]
    writer = GroupCommitWriter(database, max_delay=0.2)

    def finish(claimed, **changes):
        return lambda c: claims.finish_succeeded(c, ended(claimed), [result_row(**changes)], now())

    futures = [
        writer.submit(finish(held[0])),
        writer.submit(finish(held[1], run_id=777)),
        writer.submit(finish(held[2])),
    ]
    assert writer.close()
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert counts(database, batch_id) == {"succeeded": 2, "running": 1}
    with database.read() as c:
        assert c.execute(text("SELECT job_id FROM results ORDER BY job_id")).scalars().all() == [ids[0], ids[2]]


def test_results_of_a_group_are_stored_by_one_statement(sqlite_database):
    register(sqlite_database, "w1")
    _, ids = stored_batch(sqlite_database, 20)
    claimed = [must_take(sqlite_database, job_id) for job_id in ids]
    statements = []
    with sqlite_database.write() as c:
        event.listen(c.engine, "before_cursor_execute", lambda *seen: statements.append(seen[2]))
        for job in claimed:
            assert claims.finish_succeeded(c, ended(job), [result_row(), result_row(choice=1)], now())
    assert sum(statement.startswith("INSERT INTO results") for statement in statements) == 1
    with sqlite_database.read() as c:
        assert c.execute(text("SELECT count(*) FROM results")).scalar_one() == 40


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_SECONDS", 0.02)


@pytest.mark.usefixtures("_impatient")
def test_a_locked_database_is_waited_for(sqlite_database):
    database = Database(sqlite_database.url.render_as_string())
    blocker = sqlite3.connect(database.sqlite_file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    writer = GroupCommitWriter(database)
    future = writer.submit(_insert("w1"))
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    blocker.close()
    future.result(timeout=10)
    assert writer.close()
    assert _workers(database) == {"w1"}
    database.dispose()


@pytest.mark.usefixtures("_impatient")
def test_closing_gives_up_at_its_deadline_and_says_so(sqlite_database):
    database = Database(sqlite_database.url.render_as_string())
    blocker = sqlite3.connect(database.sqlite_file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    writer = GroupCommitWriter(database)
    future = writer.submit(_insert("w1"))
    assert writer.close(timeout=0.3) or writer.close(timeout=5)
    assert isinstance(future.exception(timeout=5), DatabaseUnreachableError)
    blocker.close()
    with pytest.raises(HelixError, match="closed"):
        writer.submit(_insert("w2"))
    database.dispose()


@pytest.mark.postgres
def test_a_connection_lost_in_the_middle_costs_nothing(postgres_database):
    writer = GroupCommitWriter(postgres_database, max_delay=0.2)
    lost = []

    def lose_once(c):
        if not lost:
            lost.append(1)
            c.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return "done"

    futures = [writer.submit(_insert("w1")), writer.submit(lose_once), writer.submit(_insert("w2"))]
    assert futures[1].result(timeout=20) == "done"
    assert writer.close()
    assert _workers(postgres_database) == {"w1", "w2"}


def test_a_cancelled_operation_is_not_run(sqlite_database):
    gate = threading.Event()
    writer = GroupCommitWriter(sqlite_database, max_rows=1)
    writer.submit(lambda _: gate.wait(10))
    future = writer.submit(_insert("w1"))
    assert future.cancel()
    gate.set()
    assert writer.close()
    assert _workers(sqlite_database) == set()


def test_races_that_are_lost_again_and_again_are_run_again_and_again(sqlite_database, monkeypatch):
    """More often than a thread may nest calls."""

    class DeadlockError(Exception):
        sqlstate = "40P01"

    races = iter(range(sys.getrecursionlimit() + 1))

    def lose(_):
        if next(races, None) is not None:
            raise DBAPIError("", {}, DeadlockError())
        return "won"

    monkeypatch.setattr(result_writer, "_FIRST_PAUSE_SECONDS", 0.0)
    writer = GroupCommitWriter(sqlite_database)
    assert writer.submit(lose).result(60) == "won"
    assert writer.close(20)
