"""DatabaseState: the state of the database, read without changing it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.storage.database import POSTGRES, SQLITE
from helix_jobs.storage.migration import current_revision
from helix_jobs.storage.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database

# Tests the right to write and takes the lock, but changes no row.
_WRITE_NOTHING = text("UPDATE batches SET name = name WHERE 1 = 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """The database's state at one moment.

    Attributes:
        server: Name and version.
        size_bytes: Size on disk, SQLite's write-ahead log included.
        log_bytes: The write-ahead log's part of ``size_bytes``.
        revision: The schema's revision; None while the database is empty.
        journal_mode: SQLite's journal mode; None on Postgres.
        skew_seconds: How far the server's clock is ahead of this machine's; None on SQLite, which has no server.
        is_vacuumed: Whether the server removes old versions of rows and counts its tables by itself; None on SQLite.
        refusal: Why the database takes no writes, and after a semicolon the remedy; None if it takes writes.
    """

    server: str
    size_bytes: int
    log_bytes: int
    revision: str | None
    journal_mode: str | None
    skew_seconds: float | None
    is_vacuumed: bool | None
    refusal: str | None


def read_database_state(database: Database) -> DatabaseState:
    """Read the state of the database. A SQLite file must exist already, or connecting would make it.

    Raises:
        DatabaseUnreachableError: The database does not answer.
    """
    revision = current_revision(database)
    refusal = _refusal(database, empty=revision is None)
    with database.read() as c:
        if database.dialect == SQLITE:
            return DatabaseState(
                server=f"SQLite {c.execute(text('SELECT sqlite_version()')).scalar_one()}",
                size_bytes=_file_bytes(database, "", "-wal"),
                log_bytes=_file_bytes(database, "-wal"),
                revision=revision,
                journal_mode=str(c.execute(text("PRAGMA journal_mode")).scalar_one()),
                skew_seconds=None,
                is_vacuumed=None,
                refusal=refusal,
            )
        return DatabaseState(
            server=f"PostgreSQL {c.execute(text('SHOW server_version')).scalar_one()}",
            size_bytes=int(c.execute(text("SELECT pg_database_size(current_database())")).scalar_one()),
            log_bytes=0,
            revision=revision,
            journal_mode=None,
            skew_seconds=_skew(c),
            is_vacuumed=c.execute(text("SHOW autovacuum")).scalar_one() == "on",
            refusal=refusal,
        )


def _refusal(database: Database, *, empty: bool) -> str | None:
    try:
        with database.write() as c:
            if database.dialect == POSTGRES and (lacking := _lacking_right(c, empty=empty)) is not None:
                return lacking
            if not empty:
                c.execute(_WRITE_NOTHING)
    except DatabaseUnreachableError as error:
        return str(error)
    except DBAPIError as error:
        return (str(error.orig).strip().splitlines() or [type(error).__name__])[0]
    return None


def _lacking_right(c: Connection, *, empty: bool) -> str | None:
    """A right that this Postgres role lacks: to make tables in an empty schema, or one of four rights on each table."""
    role, schema = c.execute(text("SELECT current_user, current_schema()")).one()
    if schema is None:
        return "search_path names no schema that is there; create it, or correct search_path in HELIX_DATABASE_URL"
    if empty:
        may = c.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar_one()
        remedy = f"GRANT CREATE ON SCHEMA {schema} TO {role}, or make it the database's owner"
        return None if may else f"the role {role} may not create tables in the schema {schema}; {remedy}"
    for table in (*metadata.tables, "alembic_version"):
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE") if table in metadata.tables else ("SELECT",):
            asked = {"table": table, "right": right}
            if c.execute(text("SELECT has_table_privilege(to_regclass(:table), :right)"), asked).scalar_one() is False:
                remedy = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
                return f"the role {role} lacks the right to {right} on the table {table}; {remedy}"
    return None


def _skew(c: Connection) -> float:
    asked = time.time()
    theirs = float(c.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return theirs - (asked + time.time()) / 2


def _file_bytes(database: Database, *suffixes: str) -> int:
    file = database.sqlite_file
    if file is None:
        return 0
    beside = [file.with_name(f"{file.name}{suffix}") for suffix in suffixes]
    return sum(path.stat().st_size for path in beside if path.exists())
