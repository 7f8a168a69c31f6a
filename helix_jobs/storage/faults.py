"""Classify database errors: the row is at fault, the database is in trouble, or the transaction lost a race.

A row is at fault only for errors of its data: SQLSTATE classes 22 (data exceptions) and 23 (integrity constraints),
and SQLite's TOOBIG, MISMATCH and CONSTRAINT. Such an error may fail a job. Any other error is the database's trouble (a
standby that takes no writes, a revoked grant, a missing table, a damaged page, a full disk): the worker waits, so no
answer is lost because a server refused. A row is not at fault either when this machine has no memory or no
descriptors left (``MACHINES_OWN``).

Trade-off: a permanently wrong statement makes a worker wait for ever, and log it. That costs time until a person
looks; failing the job instead would cost answers.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import DatabaseRefusedError, DatabaseUnreachableError
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

MACHINES_OWN: Final = (MemoryError, OSError)
_ROWS_OWN_SQLITE: Final = (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_CONSTRAINT)
_ROWS_OWN_SQLSTATE: Final = ("22", "23")
# A file could not be opened: the database, its log, or a temporary one.
_OPENS_SQLITE: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
# Serialization failure and deadlock: the transaction lost a race and may run again.
_LOST_RACE: Final = ("40001", "40P01")
# Missing: a table, column or right; a feature; a role or password; a database; a schema.
_LACKING: Final = ("42", "0A", "28", "3D", "3F")
# An error without a SQLSTATE comes from psycopg itself: these kinds concern the values or the call, all others the
# connection.
_DRIVERS_COMPLAINTS: Final = ("DataError", "IntegrityError", "ProgrammingError", "NotSupportedError")

# SQLite result codes (the low byte) -> what is wrong and what to do.
_SQLITE_TROUBLE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process; wait for it or stop it",
    sqlite3.SQLITE_LOCKED: "is locked by another process; wait for it or stop it",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process; wait for it or stop it",
    sqlite3.SQLITE_IOERR: "cannot be read or written (disk error); check the disk",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some space",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_READONLY: "is read-only; check the permissions of the file and its folder",
    sqlite3.SQLITE_PERM: "may not be accessed; check the permissions of the file and its folder",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database; name another file in HELIX_DATABASE_URL",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a backup or try `sqlite3 FILE .recover`",
}
_SQLITE_ELSE: Final = "check that it is this version's (`helix doctor`), or restore it from a backup"
# SQLSTATE prefixes, the longer first -> remedy. The server's own message says what is wrong.
_REMEDIES: Final = {
    "25006": "it takes no writes: name the primary server in HELIX_DATABASE_URL, or make this one writable",
    "42501": "give Helix's role SELECT, INSERT, UPDATE and DELETE on its tables, and for `helix db upgrade` CREATE on "
    "the schema (GRANT CREATE ON SCHEMA public TO ROLE), or make it the database's owner",
    "3F000": "create the schema that search_path names, or correct search_path in HELIX_DATABASE_URL",
    "42P01": "the tables are not this version's, or not in this schema: look at `helix db current` and `helix doctor`",
    "42703": "the tables are not this version's: look at `helix db current` and `helix doctor`",
    "42P07": "the schema holds tables of those names already: name another database in HELIX_DATABASE_URL",
    "55P03": "another transaction holds the lock: try again when it has ended (pg_stat_activity and pg_locks name it)",
    "57014": "it took too long or was cancelled: look at what the server is busy with, and try again",
    "53100": "free some space on the server",
    "XX": "the server's data may be damaged: look at its log, and restore a backup if it says so",
}
_REMEDY: Final = "check HELIX_DATABASE_URL and the server's log"


def unreachable_reason(error: DBAPIError) -> str | None:
    """Say what is wrong with the database; None if the row or the call is at fault, or a race was lost."""
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_reason(original)
    sqlstate: str | None = getattr(original, "sqlstate", None)
    first_line = redact((str(original).strip().splitlines() or ["connection lost"])[0])
    if sqlstate is None:
        if type(original).__name__ in _DRIVERS_COMPLAINTS:
            return None
        if missing := explain_missing_descriptor():
            return f"cannot be reached: {missing}"
        return f"does not answer: {first_line}; check HELIX_DATABASE_URL and that the server runs"
    if sqlstate in _LOST_RACE or sqlstate.startswith(_ROWS_OWN_SQLSTATE):
        return None
    remedy = next((words for state, words in _REMEDIES.items() if sqlstate.startswith(state)), _REMEDY)
    return f"refused: {first_line}; {remedy}"


def describe_trouble(shown: str, error: DBAPIError) -> DatabaseUnreachableError | None:
    """The error to raise for the database's trouble; None where ``unreachable_reason`` is None.

    Args:
        shown: The database's URL without its password.
        error: The error raised.
    """
    reason = unreachable_reason(error)
    if reason is None:
        return None
    sqlstate: str = getattr(error.orig, "sqlstate", None) or ""
    kind = DatabaseRefusedError if sqlstate.startswith(_LACKING) else DatabaseUnreachableError
    return kind(f"database {shown} {reason}")


def lost_race(error: DBAPIError) -> bool:
    """Whether the transaction only lost against another one (deadlock, serialization) and may run again."""
    return getattr(error.orig, "sqlstate", None) in _LOST_RACE


def _sqlite_reason(error: sqlite3.Error) -> str | None:
    # Python's own errors, such as text that is not UTF-8, carry no result code: one row is at fault.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or code & 0xFF in _ROWS_OWN_SQLITE:
        return None
    if code & 0xFF in _OPENS_SQLITE and (missing := explain_missing_descriptor()):
        return f"cannot be opened: {missing}"
    known = _SQLITE_TROUBLE.get(code & 0xFF)
    return known or f"refused: {(str(error).splitlines() or [type(error).__name__])[0]}; {_SQLITE_ELSE}"
