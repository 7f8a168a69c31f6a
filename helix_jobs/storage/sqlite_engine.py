"""Connections to SQLite: write-ahead log, foreign keys, durable commits, and two ways to begin a transaction."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event

from helix_jobs.observability.rounds import come_round

if TYPE_CHECKING:
    from sqlalchemy import URL

BUSY_TIMEOUT_SECONDS: Final = 10.0
# The size to which the write-ahead log is cut once it has been written back.
LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024
_WAL_RETRY_SECONDS: Final = 0.01
# Trade-off: synchronous=FULL costs an fsync for each commit; group commit shares it among up to 100 rows.
_PRAGMAS: Final = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-32768",
    "PRAGMA temp_store=MEMORY",
    # The log grows under a long reader, as it cannot be written back; without a limit the file would keep that size.
    f"PRAGMA journal_size_limit={LOG_LIMIT_BYTES}",
)


def sqlite_engine(url: URL, begin: str, **options: Any) -> Engine:  # noqa: ANN401  (create_engine's own)
    """An engine whose transactions begin with ``begin``.

    Args:
        url: The URL of the file.
        begin: ``BEGIN IMMEDIATE`` for writers, ``BEGIN`` for readers.
        options: Further options of ``create_engine``.
    """
    # isolation_level None: the driver begins no transaction, the event below does.
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
        hide_parameters=True,
        **options,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401  (a DBAPI connection)
        cursor = connection.cursor()
        # Only for a new file, before any other write: see sqlite_space.py. In an existing file it would wait for a
        # writer.
        if cursor.execute("PRAGMA page_count").fetchone() == (0,):
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _enter_wal(cursor)
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

        come_round()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    @event.listens_for(engine, "after_cursor_execute")
    def _on_answer(*_: object) -> None:
        come_round()

    return engine


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to write-ahead logging, and wait for a lock if need be.

    For this one statement SQLite may report a lock at once, whatever the busy timeout. Without the wait, one of two
    processes that open a new database together would fail.
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
