"""Whose fault an error is: only what the data is to blame for may belong to a job."""

from __future__ import annotations

import errno
import sqlite3

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from helix_jobs import exhaustion
from helix_jobs.broker.faults import broker_errors
from helix_jobs.errors import BrokerUnreachableError, ConfigurationError, DatabaseUnreachableError
from helix_jobs.storage.database import Database
from helix_jobs.storage.faults import unreachable_reason

DATABASES_OWN = ("25006", "42P01", "42501", "42703", "XX001", "XX000", "26000", "42P05", "08P01", "0A000", "53100")
DATABASES_OWN += ("57014", "57P01", "58030", "40003", "55P03", "25P02", "3F000", "P0001", "F0000", "HV000")
RAISE = "DO $$ BEGIN RAISE EXCEPTION 'said no' USING ERRCODE = '{}'; END $$"


def execute(database, *statements):
    with database.write() as c:
        for statement in statements:
            c.execute(text(statement))


@pytest.mark.postgres
@pytest.mark.parametrize(
    "sqlstate",
    DATABASES_OWN,
)
def test_what_is_not_the_rows_fault_is_the_databases(postgres_database, sqlstate):
    with pytest.raises(DatabaseUnreachableError, match="refused: said no; "):
        execute(postgres_database, RAISE.format(sqlstate))


@pytest.mark.postgres
@pytest.mark.parametrize("sqlstate", ["22001", "22003", "22P05", "23502", "23503", "23505", "23514"])
def test_what_the_data_is_to_blame_for_belongs_to_the_row(postgres_database, sqlstate):
    with pytest.raises(DBAPIError):
        execute(postgres_database, RAISE.format(sqlstate))


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("statements", "remedy"),
    [
        (["SET TRANSACTION READ ONLY", "DELETE FROM results"], "name the primary server"),
        (["ALTER TABLE results RENAME TO elsewhere", "DELETE FROM results"], "helix db current"),
        (["SET LOCAL statement_timeout = 20", "SELECT pg_sleep(5)"], "took too long"),
    ],
)
def test_a_refusal_comes_with_its_remedy(postgres_database, statements, remedy):
    with pytest.raises(DatabaseUnreachableError, match=remedy):
        execute(postgres_database, *statements)


@pytest.mark.postgres
def test_values_that_the_driver_itself_refuses_belong_to_the_row(postgres_database):
    with pytest.raises(DBAPIError), postgres_database.write() as c:
        c.execute(text("SELECT :value"), {"value": "nul \x00"})


def test_sqlite_tells_rows_from_the_file(sqlite_database):
    with pytest.raises(DatabaseUnreachableError, match=r"refused: no such table: missing; .*helix doctor"):
        execute(sqlite_database, "SELECT * FROM missing")
    with pytest.raises(DBAPIError, match="NOT NULL constraint"):
        execute(sqlite_database, "INSERT INTO batches (id) VALUES ('b')")
    with pytest.raises(DBAPIError, match="datatype mismatch"):
        execute(sqlite_database, "UPDATE jobs SET id = 'x'", "INSERT INTO runs (id, worker_id) VALUES ('x', 'w')")
    with pytest.raises(DBAPIError) as caught, sqlite_database.read() as c:
        c.execute(text("SELECT CAST(x'ff' AS TEXT)")).all()
    assert isinstance(caught.value.orig, sqlite3.OperationalError), "Python's own complaint, without a result code"


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("pgbouncer=true", "Helix works behind PgBouncer as it is"),
        ("schema=public", "options=-csearch_path%3DSCHEMA"),
        ("prepare_threshold=0", "Helix prepares no statements"),
        ("nonsense=1", "sslmode=require"),
    ],
)
def test_unknown_connection_options_are_named_with_what_to_do(option, remedy):
    with pytest.raises(ConfigurationError, match=f"unknown option '{option.split('=')[0]}'; ") as caught:
        Database(f"postgresql+psycopg://user:s3cret@host/db?{option}")
    assert remedy in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("option", ["timeout=abc", "mode=ro", "check_same_thread=x"])
def test_sqlite_takes_no_options(tmp_path, option):
    with pytest.raises(ConfigurationError, match=r"takes no options.*%3F"):
        Database(f"sqlite:///{tmp_path}/x.db?{option}")


def test_without_descriptors_the_limit_is_named_and_not_the_file(monkeypatch):
    monkeypatch.setattr(exhaustion, "missing_descriptor", lambda: OSError(errno.EMFILE, "x"))
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    reason = unreachable_reason(DBAPIError("", {}, error))
    assert reason is not None
    assert "LimitNOFILE" in reason
    assert "folder" not in reason


def test_without_descriptors_the_limit_is_named_and_not_the_server(monkeypatch):
    monkeypatch.setattr(exhaustion, "missing_descriptor", lambda: OSError(errno.EMFILE, "x"))
    reason = unreachable_reason(DBAPIError("", {}, psycopg.OperationalError("could not create socket")))
    assert reason is not None
    assert "LimitNOFILE" in reason
    with pytest.raises(BrokerUnreachableError, match="LimitNOFILE"), broker_errors("redis://h:1/0"):
        raise OSError(errno.EMFILE, "Too many open files")
