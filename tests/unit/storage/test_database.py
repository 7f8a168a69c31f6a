from __future__ import annotations

import sqlite3
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError
from helix_jobs.storage import sqlite_engine, workers
from helix_jobs.storage.database import Database
from helix_jobs.time_limits import TimeLimits
from tests.store_helpers import now, ping, stored_batch, worker


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/name", "no url at all"])
def test_urls_that_cannot_work_are_refused(url):
    with pytest.raises(ConfigurationError, match="HELIX_DATABASE_URL"):
        Database(url)


def test_a_password_is_never_shown():
    database = Database("postgresql+psycopg://helix:s3cret@127.0.0.1:1/none?connect_timeout=1")
    assert "s3cret" not in database.url_redacted
    with pytest.raises(DatabaseUnreachableError) as caught:
        ping(database)
    assert "s3cret" not in str(caught.value)
    assert "helix:***@127.0.0.1" in str(caught.value)
    assert "check HELIX_DATABASE_URL" in str(caught.value)


def test_prompts_stay_out_of_errors(database):
    batch_id, _ = stored_batch(database, 1)
    with pytest.raises(DBAPIError) as caught, database.write() as c:
        c.execute(text("UPDATE jobs SET state = NULL, custom_id = :prompt"), {"prompt": "a very private prompt"})
    assert batch_id not in str(caught.value) or database.dialect == "postgresql"
    assert "[parameters" not in str(caught.value)
    assert "[SQL parameters hidden" in str(caught.value)


def test_sqlite_is_set_up_to_be_relied_upon(sqlite_database):
    with sqlite_database.write() as c:
        values = [
            c.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]


def test_a_block_that_raises_leaves_nothing(database):
    def die():
        with database.write() as c:
            c.execute(
                text("INSERT INTO batches (id, created_at, defaults, metadata) VALUES ('b', :t, '{}', '{}')"),
                {"t": "2026-01-01 00:00:00"},
            )
            raise KeyError

    with pytest.raises(KeyError):
        die()
    with database.read() as c:
        assert c.execute(text("SELECT count(*) FROM batches")).scalar_one() == 0


def test_a_reader_keeps_its_snapshot_and_does_not_wait_for_a_writer(database):
    with database.read() as reader:
        assert reader.execute(text("SELECT count(*) FROM batches")).scalar_one() == 0
        stored_batch(database, 1)
        assert reader.execute(text("SELECT count(*) FROM batches")).scalar_one() == 0
    with database.read() as reader:
        assert reader.execute(text("SELECT count(*) FROM batches")).scalar_one() == 1


@pytest.mark.postgres
def test_a_postgres_reader_cannot_write(postgres_database):
    with pytest.raises(DatabaseUnreachableError, match="read-only"), postgres_database.read() as c:
        c.execute(text("DELETE FROM batches"))


def test_a_locked_sqlite_is_reported_with_the_remedy(sqlite_database, monkeypatch):
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_SECONDS", 0.05)
    impatient = Database(sqlite_database.url.render_as_string())
    blocker = sqlite3.connect(sqlite_database.sqlite_file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnreachableError, match="locked by another process"), impatient.write():
        pass
    ping(impatient)
    blocker.close()
    with impatient.write():
        pass
    impatient.dispose()


def test_a_file_that_is_no_database_is_reported(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}\n" * 1000)
    with pytest.raises(DatabaseUnreachableError, match="not an SQLite database"):
        ping(Database(f"sqlite:///{path}"))


@pytest.mark.postgres
def test_a_lost_race_is_run_again(postgres_database):
    runs = []

    def race(c):
        runs.append(1)
        c.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        if len(runs) < 3:
            c.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$"))
        return "won"

    assert postgres_database.transact(race) == "won"
    assert len(runs) == 3


@pytest.mark.postgres
def test_a_connection_the_server_ended_is_reported_and_replaced(postgres_database):
    def lose_connection():
        with postgres_database.write() as c:
            c.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DatabaseUnreachableError):
        lose_connection()
    ping(postgres_database)


@pytest.mark.postgres
def test_a_writer_that_stands_still_does_not_keep_its_locks(postgres_database):
    written: list[bool] = []
    url, time_limits = postgres_database.url.render_as_string(hide_password=False), TimeLimits(idle_transaction=2.0)
    frozen, other = (Database(url, time_limits) for _ in range(2))
    with postgres_database.write() as c:
        workers.register_worker(c, worker("w"), now())
    with frozen.read() as reader:
        workers.live_workers(reader)
        with pytest.raises(DatabaseUnreachableError), frozen.write() as c:  # noqa: PT012  (it must be open meanwhile)
            workers.stop_worker(c, "w", now())
            with other.write() as d:
                d.execute(text("SET LOCAL lock_timeout = '10s'"))
                written.append(workers.heartbeat(d, "w", now()))
            workers.stop_worker(c, "w", now())
        assert written == [True]
        assert workers.live_workers(reader), "whoever only reads locks nobody out"
    with frozen.write() as c:
        assert workers.heartbeat(c, "w", now())
    frozen.dispose()
    other.dispose()


def test_many_first_connections_at_once_find_the_journal_free(tmp_path):
    """Entering WAL mode does not wait its turn by itself: SQLite reports a lock at once, busy timeout or not."""
    problems = []

    def connect(url, gate):
        database = Database(url)
        gate.wait(10)
        try:
            with database.write() as connection:
                connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (x)")
                connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        except DatabaseUnreachableError as error:
            problems.append(str(error))
        finally:
            database.dispose()

    for number in range(25):
        gate = threading.Barrier(8)
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        threads = [threading.Thread(target=connect, args=(url, gate)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert problems == []


def test_a_port_that_is_no_number_is_malformed_and_tells_no_password():
    with pytest.raises(ConfigurationError, match="HELIX_DATABASE_URL is malformed") as caught:
        Database("postgresql+psycopg://user:s3cret@host:port/db")
    assert "s3cret" not in str(caught.value)
