"""A migration under a database in use: what it waits for, whom it keeps waiting, what it says."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from sqlalchemy import event, text

from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.storage import migration
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import current_revision, downgrade, head_revision, upgrade
from helix_jobs.storage.migration_locks import LockPatience, TablesHeldError, describe_holders, lock_tables
from tests.store_helpers import stored_batch
from tests.worker_box import wait_until

PATIENCE = LockPatience(wait_seconds=0.5, attempts=3, pause_seconds=0.2)


@pytest.fixture
def older(empty_postgres_url):
    """A Postgres database one step behind, with jobs in it."""
    database = Database(empty_postgres_url)
    upgrade(database)
    stored_batch(database, 2)
    downgrade(database, "0004")
    yield database
    database.dispose()


@pytest.fixture
def session(older):
    """Opens sessions of other programs."""
    url = older.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as opened:
        yield lambda name: opened.enter_context(psycopg.connect(url, application_name=name))


@pytest.fixture
def holder(session):
    """A session of another program."""
    return session("psql")


class _Warnings(logging.Handler):
    """Calls ``then`` at the migration's first warning."""

    def __init__(self, then):
        super().__init__(logging.WARNING)
        self._then = then

    def emit(self, _record):
        then, self._then = self._then, lambda: None
        then()


@pytest.fixture
def at_first_warning():
    logger = logging.getLogger("helix_jobs.storage.migration")
    handlers = []

    def call(then):
        handlers.append(_Warnings(then))
        logger.addHandler(handlers[-1])

    yield call
    for handler in handlers:
        logger.removeHandler(handler)


@pytest.mark.thorough
@pytest.mark.postgres
def test_a_held_table_is_one_error_that_names_the_holder_and_nothing_is_changed(older, holder):
    holder.execute("SELECT count(*) FROM results")
    pid = holder.info.backend_pid
    with pytest.raises(DatabaseUnreachableError) as caught:
        upgrade(older, patience=PATIENCE)
    message = str(caught.value)
    assert f"pid {pid} (psql, idle in transaction" in message
    assert "nothing was changed" in message
    assert f"SELECT pg_terminate_backend({pid})" in message
    assert "\n" not in message
    assert current_revision(older) == "0004"
    holder.rollback()
    assert upgrade(older, patience=PATIENCE) == head_revision()


@pytest.mark.thorough
@pytest.mark.postgres
def test_a_transaction_younger_than_the_attempt_is_neither_named_nor_counted(older, holder, session, monkeypatch):
    """Who held the tables is read after the attempt; who came since then is in nobody's way."""
    holder.execute("SELECT count(*) FROM results")
    bystander = session("helix worker")

    def lock_tables_and_let_the_bystander_in(connection, seconds):
        try:
            lock_tables(connection, seconds)
        except TablesHeldError:
            connection.rollback()
            bystander.rollback()
            bystander.execute("SELECT count(*) FROM jobs")
            raise

    monkeypatch.setattr(migration, "lock_tables", lock_tables_and_let_the_bystander_in)
    with pytest.raises(DatabaseUnreachableError) as caught:
        upgrade(older, patience=PATIENCE)
    assert f"pid {holder.info.backend_pid} (psql, idle in transaction" in str(caught.value)
    assert "more" not in str(caught.value)
    holder.rollback()
    with older.read() as c:
        described = describe_holders(c, 60.0)
    assert "it has ended since" in described
    assert "pg_terminate_backend" not in described


@pytest.mark.postgres
def test_a_holder_of_unknown_age_is_not_to_be_ended(older, holder, session):
    holder.execute("SELECT count(*) FROM results")
    role = f"helix_test_{secrets.token_hex(6)}"
    with older.write() as c:
        c.execute(text(f"CREATE ROLE {role}"))
    try:
        with older.write() as c:
            c.execute(text(f"SET LOCAL ROLE {role}"))
            described = describe_holders(c, 0.5)
    finally:
        with older.write() as c:
            c.execute(text(f"DROP ROLE {role}"))
    assert described.endswith(f"pid {holder.info.backend_pid} (psql); try again when it has ended")


@pytest.mark.postgres
def test_a_migration_goes_on_though_who_holds_its_tables_cannot_be_read(older, holder, monkeypatch, caplog):
    holder.execute("SELECT count(*) FROM results")
    attempts = []

    def count_and_lock_tables(connection, seconds):
        attempts.append(seconds)
        lock_tables(connection, seconds)

    @contextmanager
    def read():
        if len(attempts) == 2:
            holder.rollback()
        raise DatabaseUnreachableError("the database does not answer")
        yield

    monkeypatch.setattr(migration, "lock_tables", count_and_lock_tables)
    monkeypatch.setattr(older, "read", read)
    assert upgrade(older, patience=PATIENCE) == head_revision()
    assert len(attempts) == 3
    assert caplog.text.count("which ones could not be read") == 2


@pytest.mark.postgres
def test_other_statements_are_queued_behind_a_waiting_migration_for_one_lock_wait_at_most(older, holder):
    holder.execute("SELECT count(*) FROM results")
    longest, ended = 0.0, threading.Event()

    def work() -> float:
        longest = 0.0
        while not ended.is_set():
            started = time.monotonic()
            with older.write() as c:
                c.execute(text("UPDATE jobs SET priority = 1"))
                c.execute(text("SELECT count(*) FROM results"))
            longest = max(longest, time.monotonic() - started)
        return longest

    patience = LockPatience(wait_seconds=0.5, attempts=6, pause_seconds=0.2)
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        started = time.monotonic()
        try:
            with pytest.raises(DatabaseUnreachableError):
                upgrade(older, patience=patience)
        finally:
            ended.set()
        waited = time.monotonic() - started
        longest = worker.result()
    assert waited >= 6 * 0.5
    # It was kept waiting at all, and for one attempt; what is more is two busy machines' scheduling.
    assert 0.2 < longest < 0.5 + 1.0


@pytest.mark.postgres
def test_a_table_that_comes_free_between_two_attempts_is_migrated(older, holder, at_first_warning):
    holder.execute("SELECT count(*) FROM batch_counters")
    at_first_warning(holder.rollback)
    assert upgrade(older, patience=PATIENCE) == head_revision()


@pytest.mark.postgres
def test_a_deadlock_with_another_transaction_is_one_more_attempt(older, holder):
    # The migration finds the deadlock, after Postgres' one second: the other looks for it too late.
    holder.execute("SET LOCAL deadlock_timeout = '1min'")
    holder.execute("SELECT count(*) FROM jobs")
    with ThreadPoolExecutor(1) as pool:
        upgraded = pool.submit(upgrade, older, patience=LockPatience(wait_seconds=20.0, attempts=2, pause_seconds=0.1))
        wait_until(lambda: _waits_for(older, "jobs") or upgraded.done(), "it does not wait for the table", 30.0)
        assert not upgraded.done(), upgraded.result()
        holder.execute("SELECT count(*) FROM batches")
        holder.commit()
        assert upgraded.result(timeout=30) == head_revision()


@pytest.mark.postgres
def test_nothing_to_migrate_waits_for_nobody(older, holder):
    upgrade(older)
    holder.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
    assert upgrade(older, patience=PATIENCE) == head_revision()


@pytest.mark.thorough
@pytest.mark.postgres
def test_a_statement_may_take_longer_than_a_lock_is_waited_for(older, at_first_warning):
    """An index over a million rows is not cut off: a trigger on DDL stands for its time."""
    with older.write() as c:
        c.execute(
            text("CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.7); END'")
        )
        c.execute(text("CREATE EVENT TRIGGER slow ON ddl_command_end EXECUTE FUNCTION slow()"))
    assert upgrade(older, patience=LockPatience(wait_seconds=0.3, attempts=1, pause_seconds=0.0)) == head_revision()


def test_sqlite_waits_for_a_writer_and_keeps_no_reader_waiting(sqlite_database, monkeypatch):
    downgrade(sqlite_database, "0004")
    begins = threading.Event()
    engine_of = migration._migration_engine

    def engine_that_tells(database):
        engine = engine_of(database)
        event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: "IMMEDIATE" in sql and begins.set())
        return engine

    monkeypatch.setattr(migration, "_migration_engine", engine_that_tells)
    with ThreadPoolExecutor(1) as pool:
        with sqlite_database.write() as c:
            c.execute(text("UPDATE workers SET slots = 1"))
            upgraded = pool.submit(upgrade, sqlite_database)
            assert begins.wait(30)
            assert current_revision(sqlite_database) == "0004"
            # The statement is about to run: time for it to go wrong.
            with pytest.raises(TimeoutError):
                upgraded.result(timeout=0.3)
        assert upgraded.result(timeout=60) == head_revision()


def _waits_for(database, table):
    with database.read() as c:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass(:table)"
        return bool(c.execute(text(waiting), {"table": table}).scalar())
