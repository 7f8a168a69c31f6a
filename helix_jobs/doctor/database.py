"""Check that the database answers, takes writes, has this version's schema and room, and no dead workers' leases."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from helix_jobs.doctor.clock import judge_skew
from helix_jobs.doctor.database_state import DatabaseState, read_database_state
from helix_jobs.doctor.disk import check_room, existing, file_system, is_network
from helix_jobs.doctor.housekeeping import check_ended
from helix_jobs.doctor.leases import judge_leases
from helix_jobs.doctor.verdict import Level, Verdict, failure
from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError, SchemaVersionError
from helix_jobs.storage import publishing, queue_figures
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import head_revision
from helix_jobs.storage.process_identity import here
from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.settings import Settings

SUBJECT = "database"
LARGE_LOG_BYTES = 256 * 1024 * 1024
_UPGRADE = "stop the workers that use it and run helix db upgrade"


def check_database(settings: Settings) -> list[Verdict]:
    """Check the database in the settings, without making or changing any file, table or row."""
    try:
        database = Database(settings.database_url)
    except ConfigurationError as error:
        return [failure(SUBJECT, error)]
    file = database.sqlite_file
    around = [] if file is None else _check_file(file)
    try:
        if file is not None and not file.exists():
            return [_judge_absent(file), *around]
        state = read_database_state(database)
        verdicts = [*judge_state(state, database.url_redacted), *around]
        if state.revision != head_revision():
            return verdicts
        return verdicts + check_ended(database, state.size_bytes) + _check_leases(database)
    except (ConfigurationError, DatabaseUnreachableError, SchemaVersionError) as error:
        return [failure(SUBJECT, error), *around]
    finally:
        database.dispose()


def judge_state(state: DatabaseState, url: str) -> list[Verdict]:
    """Judge the state of a database; ``url`` has no password."""
    verdicts = [
        Verdict(SUBJECT, Level.OK, f"{state.server}, {rough_size(state.size_bytes)}, {url}"),
        _judge_schema(state),
        _judge_writes(state),
    ]
    if state.journal_mode == "wal":
        verdicts.append(_judge_log(state.log_bytes))
    if state.journal_mode not in (None, "wal"):
        finding = f"SQLite's journal is {state.journal_mode!r} here instead of a write-ahead log"
        remedy = "move the file to a local disk, or use Postgres: readers and writers block each other"
        verdicts.append(Verdict("database, journal", Level.FAILED, finding, remedy))
    if state.is_vacuumed is not None:
        verdicts.append(_judge_vacuum(is_on=state.is_vacuumed))
    if state.skew_seconds is not None:
        verdicts.append(judge_skew(SUBJECT, state.skew_seconds))
    return verdicts


def _judge_log(size: int) -> Verdict:
    subject, finding = "database, log", f"a write-ahead log of {rough_size(size)}"
    if size <= LARGE_LOG_BYTES:
        return Verdict(subject, Level.OK, finding)
    remedy = "end the transaction that has read for so long; the log is then written back and cut down"
    return Verdict(subject, Level.WARNING, finding, remedy)


def _judge_vacuum(*, is_on: bool) -> Verdict:
    subject = "database, vacuum"
    if is_on:
        return Verdict(subject, Level.OK, "autovacuum is on")
    finding = "autovacuum is off: tables keep the old versions of their rows, and queries become slow"
    remedy = "set autovacuum = on in the server's configuration, or run VACUUM ANALYZE every night"
    return Verdict(subject, Level.WARNING, finding, remedy)


def _judge_schema(state: DatabaseState) -> Verdict:
    subject, head = "database, schema", head_revision()
    if state.revision == head:
        return Verdict(subject, Level.OK, f"revision {head}")
    if state.revision is None:
        if state.journal_mode is not None:
            return Verdict(subject, Level.OK, f"empty; revision {head} is made at first use")
        return Verdict(subject, Level.FAILED, "empty", "run helix db upgrade")
    finding = f"revision {state.revision}, and this version of Helix needs {head}"
    remedy = "update Helix, or name another database" if state.revision > head else _UPGRADE
    return Verdict(subject, Level.FAILED, finding, remedy)


def _judge_writes(state: DatabaseState) -> Verdict:
    if state.refusal is None:
        return Verdict("database, writes", Level.OK, "taken")
    finding, _, remedy = state.refusal.partition("; ")
    remedy = remedy or "give Helix's user the right to SELECT, INSERT, UPDATE and DELETE"
    return Verdict("database, writes", Level.FAILED, f"refused: {finding}", remedy)


def _judge_absent(file: Path) -> Verdict:
    folder = existing(file.parent)
    if os.access(folder, os.W_OK | os.X_OK):
        return Verdict(SUBJECT, Level.OK, f"SQLite; {file} is not there yet and is made at first use")
    finding = f"{file} is not there and cannot be made in {folder}"
    return Verdict(SUBJECT, Level.FAILED, finding, "name a file this user may write in HELIX_DATABASE_URL")


def _check_file(file: Path) -> list[Verdict]:
    verdicts = [check_room("database, disk", file)]
    kind = file_system(file)
    if is_network(kind):
        finding = f"{file} is on a network file system ({kind}), whose locks SQLite cannot rely on"
        remedy = "put it on a local disk, or use Postgres (HELIX_DATABASE_URL)"
        verdicts.append(Verdict("database, file system", Level.FAILED, finding, remedy))
    return verdicts


def _check_leases(database: Database) -> list[Verdict]:
    try:
        with database.read() as c:
            holders, waiting = queue_figures.lease_holders(c), publishing.backlog(c)
    except (ValueError, TypeError, DBAPIError) as error:  # an unreadable row; the error's text may quote it
        finding = f"a stored row cannot be read ({type(error).__name__})"
        return [Verdict("leases", Level.FAILED, finding, "run helix db check --repair")]
    return judge_leases(holders, waiting=waiting, now=datetime.now(UTC), here=here(), lease=database.time_limits.lease)
