"""Connections to Postgres: checked before use, and every wait for an answer has an end.

No transaction relies on session state, so PgBouncer may stand between in transaction mode: no prepared statements, no
``SET`` outside a transaction, no session locks, no temporary tables, and no startup options that a pooler refuses.

**Time limits.** Each transaction tells the server how long a statement may take (``set_config(..., true)``, which ends
with the transaction). A server that has vanished cannot enforce that limit, so the client has its own, a little
longer: ``BoundedConnection`` closes itself when no answer comes, and the call fails as with any lost connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import conninfo
from sqlalchemy import create_engine, event

from helix_jobs.errors import ConfigurationError
from helix_jobs.observability.rounds import come_round
from helix_jobs.storage.calls_in_flight import CallsInFlight
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import URL, Engine

    from helix_jobs.time_limits import TimeLimits

CONNECT_TIMEOUT_SECONDS: Final = 10

# Options in other programs' URLs -> what to do about them here.
_HINTS: Final = {
    "pgbouncer": "leave it out: Helix works behind PgBouncer as it is",
    "schema": "name a schema with options=-csearch_path%3DSCHEMA",
    "currentschema": "name a schema with options=-csearch_path%3DSCHEMA",
    "prepare_threshold": "leave it out: Helix prepares no statements",
    "connection_limit": "leave it out",
    "ssl": "write sslmode=require, or verify-full",
}


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that limits its wait for each answer and records its unanswered calls.

    Attributes:
        answer_seconds: How long an answer may take; None for no limit.
        calls: The record of unanswered calls.
    """

    answer_seconds: float | None = DEFAULT_TIME_LIMITS.sign_of_life
    calls: CallsInFlight = CallsInFlight()

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (psycopg's signature differs between releases)
        """Wait as psycopg does, up to ``answer_seconds``.

        Raises:
            psycopg.OperationalError: No answer came; the connection is closed.
        """
        limit = self.answer_seconds
        try:
            with self.calls.note(self.pgconn.socket, limit):
                return super().wait(gen if limit is None else _until(gen, time.monotonic() + limit), *args, **kwargs)
        except TimeoutError:
            self.close()
            raise psycopg.OperationalError(f"no answer for {limit:.0f} s; the connection was closed") from None
        finally:
            come_round()


def _until(gen: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
    """Run the generator, with a TimeoutError if nothing comes by ``deadline``; psycopg sends it 0 every 0.1 s."""
    ready = None
    try:
        while True:
            wanted = gen.send(ready)
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                gen.close()
                raise TimeoutError
    except StopIteration as end:
        return end.value


def postgres_engine(url: URL, calls: CallsInFlight, time_limits: TimeLimits, **options: Any) -> Engine:  # noqa: ANN401  (create_engine's own)
    """An engine whose connections are bounded and checked.

    Args:
        url: The server's URL.
        calls: The record of unanswered calls.
        time_limits: How long a connection may take to answer before it is used.
        options: Further options of ``create_engine``.

    Raises:
        ConfigurationError: The URL has an option that libpq does not know.
    """
    check_options(url)
    engine = create_engine(
        url,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "helix",
            # Overrides PGCLIENTENCODING.
            "client_encoding": "utf8",
            # Behind a pooler, names of prepared statements collide, and one client would run another's statement.
            "prepare_threshold": None,
            # A half-open connection shows within about a minute instead of two hours.
            "keepalives_idle": 20,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
        hide_parameters=True,
        **options,
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: object, _record: object, arguments: Any, options: Any) -> BoundedConnection:  # noqa: ANN401  (SQLAlchemy's)
        connection = BoundedConnection.connect(*arguments, **options)
        come_round()
        connection.calls = calls
        connection.answer_seconds = time_limits.sign_of_life
        try:
            _check_encoding(connection)
        except ConfigurationError:
            connection.close()
            raise
        return connection

    @event.listens_for(engine, "checkin")
    def _on_checkin(connection: Any, _record: object) -> None:  # noqa: ANN401  (a DBAPI connection, or None)
        if connection is not None:
            connection.answer_seconds = time_limits.sign_of_life

    return engine


def limit_answers(connection: Any, seconds: float | None) -> None:  # noqa: ANN401  (a DBAPI connection)
    """Limit the client's wait for each answer on this connection; None for no limit."""
    connection.answer_seconds = seconds


def transaction_settings(statement_seconds: float | None, idle_seconds: float) -> str:
    """SQL that sets time limits for its own transaction only. 0 is no limit.

    A person's condition (``JobCondition``) means the same whatever the server's or the role's own settings are: times
    without a zone are UTC, as everywhere in Helix, and a backslash in a text is a backslash.

    It also switches off that queries are compiled (Postgres' JIT). Statements here read some rows by an index. While a
    new batch's tables have no statistics yet, the planner expects thousands for each, and compiling for them takes a
    thousand times as long as reading.
    """
    statement, idle = (round(1000 * (seconds or 0.0)) for seconds in (statement_seconds, idle_seconds))
    return (
        f"SELECT set_config('statement_timeout', '{statement}', true), "
        f"set_config('idle_in_transaction_session_timeout', '{idle}', true), set_config('jit', 'off', true), "
        "set_config('TimeZone', 'UTC', true), set_config('standard_conforming_strings', 'on', true)"
    )


def check_options(url: URL) -> None:
    """Refuse an option that libpq does not know, before anything connects.

    Raises:
        ConfigurationError: Names the option and what to do instead.
    """
    for name, value in url.query.items():
        try:
            conninfo.make_conninfo("", **{name: value if isinstance(value, str) else value[-1]})
        except psycopg.ProgrammingError:
            hint = _HINTS.get(name.lower(), "the options are libpq's, such as sslmode=require")
            raise ConfigurationError(f"HELIX_DATABASE_URL has the unknown option {name!r}; {hint}") from None


def _check_encoding(connection: BoundedConnection) -> None:
    known: Callable[[bytes], bytes | None] = connection.pgconn.parameter_status
    encoding = (known(b"server_encoding") or b"UTF8").decode("ascii", "replace")
    if encoding != "UTF8":
        name = connection.info.dbname
        raise ConfigurationError(
            f"the Postgres database {name!r} has the encoding {encoding}, which cannot hold every text; name one made "
            f"with CREATE DATABASE NAME ENCODING 'UTF8' TEMPLATE template0 in HELIX_DATABASE_URL"
        )
