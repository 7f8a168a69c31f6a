"""The locks of a migration on Postgres: how long it waits for them, and who holds them.

While an ALTER waits for its lock, every later statement on that table waits behind it, for as long as the oldest
transaction on the table lasts. So ``helix`` locks all tables in one statement, before any change, and that statement
has a short limit. At the limit the transaction ends, the statements queued behind it run, and the next attempt begins
after a pause. Alembic's own command has only the limit: it locks each table when its turn comes, and tries once.

Trade-off: only waiting has a limit, work has none: workers wait while an index over a million rows is built. A limit
on work would have to exceed the longest build on the slowest disk, and would protect nobody below that.

Trade-off: locking each table only when its turn comes would let readers use the other tables a little longer. But the
migration would then block one table's users while it waits for the next table, and could fail after its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from helix_jobs.redaction import redact
from helix_jobs.storage.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

# A suspended migration would lock everybody out of every table; after this long the server ends it.
_IDLE_SECONDS: Final = 20.0
# Alembic's own table is read and written by every migration.
_TABLES: Final = ("alembic_version", *(table.name for table in metadata.sorted_tables))
# Lock timeout, statement timeout, deadlock.
_HELD: Final = ("55P03", "57014", "40P01")
_EXISTING: Final = text(
    "SELECT name FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS wanted (name, place) "
    "WHERE to_regclass(name) IS NOT NULL ORDER BY place"
).bindparams(names=list(_TABLES))
# This runs after the attempt has ended: only transactions that were there all along can have been in its way.
_HOLDERS: Final = text(
    "SELECT pid, application_name, state, extract(epoch FROM now() - min(xact_start)) AS seconds "
    "FROM pg_locks JOIN pg_stat_activity USING (pid) "
    # Relation numbers repeat in other databases, above all in copies.
    "WHERE granted AND pid <> pg_backend_pid() "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND relation IN (SELECT to_regclass(unnest(CAST(:names AS text[])))) "
    "GROUP BY pid, application_name, state "
    # A role without pg_read_all_stats does not learn the age of other roles' transactions.
    "HAVING min(xact_start) IS NULL OR now() - min(xact_start) >= make_interval(secs => :seconds) "
    "ORDER BY seconds DESC NULLS LAST"
).bindparams(names=list(_TABLES))


@dataclass(frozen=True, slots=True)
class LockPatience:
    """How often, and for how long each time, a migration waits for its locks.

    Attributes:
        wait_seconds: Length of one attempt. Above Postgres' ``deadlock_timeout`` (1 s), after which a waiting lock
            ends an autovacuum; far below a lease, as heartbeats may queue behind it.
        attempts: Number of attempts.
        pause_seconds: Pause between two attempts, for the statements queued behind the last one.
    """

    wait_seconds: float = 3.0
    attempts: int = 5
    pause_seconds: float = 2.0


DEFAULT_PATIENCE: Final = LockPatience()


class TablesHeldError(Exception):
    """Other transactions held at least one table for the whole attempt."""


def limit_waits(connection: Connection, seconds: float) -> None:
    """Limit each wait for a lock in this transaction (0 is no limit), and the time it may stand idle.

    Work has no limit.
    """
    # Set even Postgres' defaults: a role or a database may have others.
    connection.execute(
        text(
            "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', :wait, true), "
            "set_config('idle_in_transaction_session_timeout', :idle, true)"
        ),
        {"wait": _milliseconds(seconds), "idle": _milliseconds(_IDLE_SECONDS)},
    )


def lock_tables(connection: Connection, seconds: float) -> None:
    """Lock every existing Helix table, all of them within ``seconds``.

    Raises:
        TablesHeldError: Not all came free in time; the caller must end the transaction.
    """
    names = connection.execute(_EXISTING).scalars().all()
    if not names:
        return
    try:
        # Postgres applies a lock limit to each table anew, a statement limit to all of them together.
        _limit_statement(connection, seconds)
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
        _limit_statement(connection, 0.0)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _HELD:
            raise
        raise TablesHeldError from error


def describe_holders(connection: Connection, seconds: float) -> str:
    """Say which transactions of at least ``seconds`` hold the tables, name the oldest, and say what to do about it."""
    holders = connection.execute(_HOLDERS, {"seconds": seconds}).all()
    if not holders:
        return "a transaction held its tables; it has ended since, or is a prepared one (pg_prepared_xacts); try again"
    oldest = holders[0]
    facts = [
        redact(oldest.application_name),
        oldest.state,
        None if oldest.seconds is None else f"{oldest.seconds:.0f} s",
    ]
    known = ", ".join(fact for fact in facts if fact)
    others = f", and {len(holders) - 1} more" if len(holders) > 1 else ""
    # One of unknown age may be innocent.
    end_it = "" if oldest.seconds is None else f", or end it on the server: SELECT pg_terminate_backend({oldest.pid})"
    return (
        f"a transaction holds its tables: pid {oldest.pid}{f' ({known})' if known else ''}{others}; try again when it "
        f"has ended{end_it}"
    )


def _limit_statement(connection: Connection, seconds: float) -> None:
    connection.execute(text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": _milliseconds(seconds)})


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))
