"""Database: connections and transactions on SQLite and Postgres.

SQLite: WAL, foreign keys on, ``synchronous=FULL`` (a message is acknowledged on the strength of the commit), and two
engines: writers begin IMMEDIATE, readers deferred. A deferred transaction that starts to write can fail at once,
without regard to the busy timeout, so no reader here ever writes. Postgres: psycopg 3; readers get one snapshot for
their whole transaction.

``sqlite_engine`` and ``postgres_engine`` make the connections, ``migration`` reads and moves the schema, ``faults``
classifies errors.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError
from helix_jobs.json_line import compact_json
from helix_jobs.redaction import redact
from helix_jobs.storage import result_rows
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.calls_in_flight import CallsInFlight
from helix_jobs.storage.faults import describe_trouble, lost_race, unreachable_reason
from helix_jobs.storage.sqlite_engine import sqlite_engine
from helix_jobs.storage.sqlite_file import SQLiteFile
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import URL

    # Opens a read transaction: for whoever reads in several.
    OpenRead = Callable[[], AbstractContextManager[Connection]]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgresql"
TRANSACTION_ATTEMPTS: Final = 8


class Database:
    """One database, usable from any thread of this process.

    Connections are opened on first use. Errors are raised without statement parameters, which hold prompts.

    Attributes:
        dialect: ``sqlite`` or ``postgresql``.
        url_redacted: The URL as it may be shown and logged.
        time_limits: How long a statement, an answer and a connection may take.
        calls: The unanswered calls to a Postgres server. Calls to SQLite end by themselves, with the disk's answer.
    """

    def __init__(self, url: str, time_limits: TimeLimits = DEFAULT_TIME_LIMITS) -> None:
        """Prepare the engines without connecting.

        Args:
            url: The database's URL.
            time_limits: How long a statement, an answer and a connection may take.

        Raises:
            ConfigurationError: The URL is malformed, or names a database that other processes cannot share.
        """
        try:
            self.url: URL = make_url(url)
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise ConfigurationError(
                "HELIX_DATABASE_URL is malformed; use sqlite:///FILE or postgresql://USER@HOST/NAME"
            ) from None
        self.calls = CallsInFlight()
        self.time_limits = time_limits
        self.dialect: str = self.url.get_backend_name()
        self.url_redacted: str = (
            f"sqlite:///{self.url.database}"
            if self.dialect == SQLITE
            else redact(self.url.render_as_string(hide_password=True))
        )
        options = _OPTIONS | {"pool_timeout": time_limits.free_connection}
        self._file: SQLiteFile | None = None
        self._writer: Engine
        self._reader: Engine
        self._anew: Engine
        if self.dialect == SQLITE:
            if not self.url.database or self.url.database == ":memory:":
                raise ConfigurationError(
                    "HELIX_DATABASE_URL names an in-memory SQLite database, which no other process can see; name a file"
                )
            if self.url.query:
                raise ConfigurationError(
                    "HELIX_DATABASE_URL has options (from ? on), and SQLite takes no options here; name the file "
                    "alone, with %3F for a ? in its name"
                )
            self._file = SQLiteFile(Path(self.url.database))
            self._writer = sqlite_engine(self.url, "BEGIN IMMEDIATE", **options)
            self._reader = sqlite_engine(self.url, "BEGIN", **options)
            self._anew = sqlite_engine(self.url, "BEGIN", poolclass=NullPool)
        elif self.dialect == POSTGRES:
            from helix_jobs.storage.postgres_engine import postgres_engine

            self._writer = postgres_engine(self.url, self.calls, time_limits, pool_pre_ping=True, **options)
            # The same pool with other transactions: counts and rows that are read together must be of one moment.
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._anew = self._reader
        else:
            raise ConfigurationError(
                f"HELIX_DATABASE_URL has the scheme {self.url.drivername!r}; use sqlite:/// or postgresql://"
            )

    @property
    def sqlite_file(self) -> Path | None:
        """The database file; None on Postgres."""
        return Path(self.url.database) if self.dialect == SQLITE and self.url.database else None

    @contextmanager
    def write(self, *, unlimited: bool = False) -> Iterator[Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Args:
            unlimited: Set no time limit on Postgres statements, for work on a million rows.

        Raises:
            DatabaseReplacedError: Another file has replaced the SQLite database.
            DatabaseUnreachableError: The database does not answer, or refuses for a reason other than the data: a lock
                held too long, a full disk, a server that takes no writes, a missing right or table. If the commit
                itself raises it, the transaction may nevertheless have been committed.
        """
        with self._transaction(
            self._writer, self._limit(unlimited=unlimited), idle=self.time_limits.idle_transaction
        ) as connection:
            try:
                yield connection
                result_rows.flush(connection)
                counters.flush(connection)
            finally:
                # A lost connection has already lost what waits in it.
                if not connection.invalidated:
                    result_rows.discard(connection)
                    counters.discard(connection)

    @contextmanager
    def read(self, *, unlimited: bool = False) -> Iterator[Connection]:
        """A read transaction: one snapshot, never blocked by writers.

        Args:
            unlimited: As for ``write``. The limit holds for each statement; a page of a stream is one.

        Raises:
            DatabaseUnreachableError: The database does not answer, or refuses.
        """
        # No idle limit: a reader locks nobody out, and a stream of results waits for its consumer.
        with self._transaction(self._reader, self._limit(unlimited=unlimited), idle=0.0) as connection:
            yield connection

    @contextmanager
    def read_anew(self) -> Iterator[Connection]:
        """Like ``read``, but from the file: SQLite's other connections may answer from pages they hold in memory.

        Raises:
            DatabaseUnreachableError: The database does not answer, or refuses.
        """
        with self._transaction(self._anew, self.time_limits.statement, idle=0.0) as connection:
            yield connection

    def transact(self, function: Callable[[Connection], T], *, unlimited: bool = False) -> T:
        """Run ``function`` in a write transaction, and again if it lost a deadlock on Postgres.

        For updates of many rows (cancel, retry, delete, reclaim), whose order of locks differs from the workers'.
        ``function`` must do nothing but work on its connection.
        ``unlimited``: see ``write``.

        Raises:
            DatabaseUnreachableError: As from ``write``, or the transaction lost too many deadlocks.
        """
        for attempt in range(TRANSACTION_ATTEMPTS):
            try:
                with self.write(unlimited=unlimited) as connection:
                    return function(connection)
            except DBAPIError as error:
                if not lost_race(error):
                    raise
                logger.debug("transaction lost a race, attempt %d of %d", attempt + 1, TRANSACTION_ATTEMPTS)
                time.sleep(0.02 * 2**attempt)
        raise DatabaseUnreachableError(
            f"database {self.url_redacted}: the transaction lost {TRANSACTION_ATTEMPTS} races in a row; try again"
        )

    def dispose(self) -> None:
        """Close all idle connections. The database can still be used afterwards."""
        self._writer.dispose()
        self._reader.dispose()
        if self._file is not None:
            self._file.forget_log()

    def _limit(self, *, unlimited: bool) -> float | None:
        return None if unlimited else self.time_limits.statement

    @contextmanager
    def _transaction(self, engine: Engine, limit: float | None, *, idle: float) -> Iterator[Connection]:
        if self._file is not None:
            self._file.check()
        try:
            with engine.begin() as connection:
                if self.dialect == POSTGRES:
                    self._bound(connection, limit, idle)
                try:
                    yield connection
                except DBAPIError as error:
                    # Make the next try connect anew: after a failover the old connections lead to a standby.
                    if self.dialect == POSTGRES and not connection.invalidated and unreachable_reason(error):
                        connection.invalidate(error)
                    raise
                if self._file is not None and engine is not self._anew:  # whose connection does not stay open
                    self._file.note()
        except PoolTimeoutError as error:
            raise DatabaseUnreachableError(f"database {self.url_redacted}: all connections are in use") from error
        except DBAPIError as error:
            trouble = describe_trouble(self.url_redacted, error)
            if trouble is None:
                raise
            # The driver's error quotes host and user at most; hide_parameters keeps prompts out of SQLAlchemy's error.
            raise trouble from error

    def _bound(self, connection: Connection, limit: float | None, idle: float) -> None:
        """Set a transaction's time limits on Postgres: the server's, and the client's, which is a little longer."""
        from helix_jobs.storage import postgres_engine

        answer = None if limit is None else limit + self.time_limits.answer_margin
        postgres_engine.limit_answers(connection.connection.driver_connection, answer)
        connection.exec_driver_sql(postgres_engine.transaction_settings(limit, idle))


_OPTIONS: Final[dict[str, Any]] = {
    "json_serializer": compact_json,
    "pool_size": 4,
    "max_overflow": 28,
}
