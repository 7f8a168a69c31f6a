"""Database: connections and transactions on SQLite and Postgres.

SQLite: WAL, foreign keys on, ``synchronous=FULL`` (a message is acknowledged on the strength of the commit), and two
engines: writers begin IMMEDIATE, readers deferred. A deferred transaction that turns into a writer can fail at once
and ignore the busy timeout, so no transaction here ever turns. Postgres: psycopg 3; readers get one snapshot for
their whole transaction.

Which schema a database stands at, and moving it, is ``migration.py``; its names are importable from here.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError
from helix_jobs.jobs.migration import current_revision, downgrade, ensure_schema, head_revision, upgrade
from helix_jobs.jobs.store import counters
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

__all__ = [
    "POSTGRES",
    "SQLITE",
    "Database",
    "current_revision",
    "downgrade",
    "ensure_schema",
    "head_revision",
    "lost_race",
    "unreachable_reason",
    "upgrade",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgresql"
BUSY_TIMEOUT_SECONDS: Final = 10.0
_WAL_RETRY_SECONDS: Final = 0.01
CONNECT_TIMEOUT_SECONDS: Final = 10
# Postgres: a process that is stopped or suspended in the middle of a write would lock every other worker out of its
# rows for as long as it stands. Shorter than a lease, so that the rows are free when they are reclaimed.
IDLE_TRANSACTION_SECONDS: Final = 20.0
TRANSACTION_ATTEMPTS: Final = 8

# SQLite result codes (the low byte) that mean the file, the disk or its lock, not the statement.
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
# Postgres: connection exceptions, insufficient resources, operator intervention, system errors, idle in a transaction,
# lock not available.
_POSTGRES_TROUBLE: Final = ("08", "53", "57", "58", "25P03", "55P03", "28", "3D")
# Serialization failure and deadlock: the transaction lost a race and may simply be run again.
_POSTGRES_LOST_RACE: Final = ("40001", "40P01")


class Database:
    """One database, usable from any thread of this process.

    Connections are opened on first use. Errors are raised without statement parameters, which hold prompts.

    Attributes:
        dialect: ``sqlite`` or ``postgresql``.
        url_redacted: The URL as it may be shown and logged.
    """

    def __init__(self, url: str) -> None:
        """Prepare the engines; nothing is connected yet.

        Raises:
            ConfigurationError: The URL is malformed, or names a database other processes could not share.
        """
        try:
            self.url: URL = make_url(url)
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise ConfigurationError(
                "HELIX_DATABASE_URL is malformed; use sqlite:///FILE or postgresql://USER@HOST/NAME"
            ) from None
        self.dialect: str = self.url.get_backend_name()
        self.url_redacted: str = redact(self.url.render_as_string(hide_password=True))
        self._writer: Engine
        self._reader: Engine
        if self.dialect == SQLITE:
            if not self.url.database or self.url.database == ":memory:":
                raise ConfigurationError(
                    "HELIX_DATABASE_URL names an in-memory SQLite database, which nobody else can see; name a file"
                )
            self._writer = _sqlite_engine(self.url, "BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(self.url, "BEGIN")
        elif self.dialect == POSTGRES:
            self._writer = _postgres_engine(self.url)
            # The same pool; only the transactions differ. Counts and rows read together belong together.
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            raise ConfigurationError(
                f"HELIX_DATABASE_URL has the scheme {self.url.drivername!r}; use sqlite:/// or postgresql://"
            )

    @property
    def sqlite_file(self) -> Path | None:
        """The database file; None on Postgres."""
        return Path(self.url.database) if self.dialect == SQLITE and self.url.database else None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseUnreachableError: No connection, a lock held too long, a full disk. When it comes out of the
                commit itself, the transaction may nevertheless have been committed.
        """
        with self._transaction(self._writer) as connection:
            try:
                yield connection
                counters.flush(connection)
            finally:
                # A lost connection takes what was kept on it along.
                if not connection.invalidated:
                    counters.discard(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one snapshot, never blocked by writers.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        with self._transaction(self._reader) as connection:
            if self.dialect == POSTGRES:
                # It locks nobody out, and what streams results waits for whoever reads them.
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection

    def transact(self, function: Callable[[Connection], T]) -> T:
        """Run ``function`` in a write transaction, again if Postgres made it lose a deadlock to another one.

        Updates of many rows (cancel, retry, delete, reclaim) belong here: they lock rows in their own order while
        workers lock them in theirs. ``function`` must do nothing but work on its connection.

        Raises:
            DatabaseUnreachableError: As from ``write``, or the race was lost too often.
        """
        for attempt in range(TRANSACTION_ATTEMPTS):
            try:
                with self.write() as connection:
                    return function(connection)
            except DBAPIError as error:
                if not lost_race(error):
                    raise
                logger.debug("transaction lost a race, attempt %d of %d", attempt + 1, TRANSACTION_ATTEMPTS)
                time.sleep(0.02 * 2**attempt)
        raise DatabaseUnreachableError(
            f"database {self.url_redacted}: the transaction lost {TRANSACTION_ATTEMPTS} races in a row; try again"
        )

    def ping(self) -> None:
        """Ask the database for an answer.

        Raises:
            DatabaseUnreachableError: It gave none.
        """
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Close all idle connections. The database can still be used afterwards."""
        self._writer.dispose()
        self._reader.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except PoolTimeoutError as error:
            raise DatabaseUnreachableError(f"database {self.url_redacted}: all connections are in use") from error
        except DBAPIError as error:
            trouble = unreachable_reason(error)
            if trouble is None:
                raise
            # The driver's own error quotes host and user at most; hide_parameters keeps prompts out of SQLAlchemy's.
            raise DatabaseUnreachableError(f"database {self.url_redacted} {trouble}") from error


def unreachable_reason(error: DBAPIError) -> str | None:
    """Say what is wrong with the database itself; None if the statement is to blame or a race was lost."""
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _SQLITE_TROUBLE.get(getattr(original, "sqlite_errorcode", 0) & 0xFF)
    sqlstate: str | None = getattr(original, "sqlstate", None)
    if sqlstate is None:
        # psycopg gives no SQLSTATE exactly when no server answered.
        if type(original).__name__ not in ("OperationalError", "InterfaceError", "ConnectionTimeout"):
            return None
        first_line = (str(original).strip().splitlines() or ["connection lost"])[0]
        return f"does not answer: {redact(first_line)}; check HELIX_DATABASE_URL and that the server runs"
    if sqlstate.startswith(_POSTGRES_TROUBLE):
        first_line = (str(original).strip().splitlines() or [sqlstate])[0]
        return f"refused: {redact(first_line)}; check HELIX_DATABASE_URL and the server's log"
    return None


def lost_race(error: DBAPIError) -> bool:
    """Whether the transaction only lost against another one (deadlock, serialization) and may run again."""
    return getattr(error.orig, "sqlstate", None) in _POSTGRES_LOST_RACE


def _dumps(value: object) -> str:
    """Compact, and text as it is: escaping would triple the size of most of the world's prompts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _sqlite_engine(url: URL, begin: str) -> Engine:
    # Trade-off: synchronous=FULL costs an fsync for each commit; group commit shares it among up to 100 rows.
    pragmas = (
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA cache_size=-32768",
        "PRAGMA temp_store=MEMORY",
    )
    # isolation_level None: the driver begins nothing by itself, the event below does.
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
        hide_parameters=True,
        json_serializer=_dumps,
        pool_size=4,
        max_overflow=28,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  (a DBAPI connection)
        cursor = connection.cursor()
        _enter_wal(cursor)
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to write-ahead logging, waiting for its turn as everything else does.

    For this one statement SQLite may report a lock at once, whatever the busy timeout: two processes that open a new
    database together would otherwise fail one of them.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_WAL_RETRY_SECONDS)
        else:
            return


def _postgres_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "helix",
            # A half-open connection shows within about a minute instead of two hours.
            "keepalives_idle": 20,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
        pool_pre_ping=True,
        hide_parameters=True,
        json_serializer=_dumps,
        pool_size=4,
        max_overflow=28,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  (a DBAPI connection)
        # Not among the connection's options: poolers such as PgBouncer refuse those.
        connection.execute(f"SET idle_in_transaction_session_timeout = {round(1000 * IDLE_TRANSACTION_SECONDS)}")
        connection.commit()

    return engine
