"""Read a database's schema revision and migrate it. Alembic is imported only for a migration."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, NullPool, bindparam, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import DatabaseUnreachableError, SchemaVersionError
from helix_jobs.files import touch_private
from helix_jobs.storage.faults import describe_trouble
from helix_jobs.storage.migration_locks import (
    DEFAULT_PATIENCE,
    LockPatience,
    TablesHeldError,
    describe_holders,
    limit_waits,
    lock_tables,
)
from helix_jobs.storage.schema import SCHEMA_REVISION, metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.config import Config

    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# A constant that no other program uses: "helixdb" in ASCII.
ADVISORY_LOCK_KEY: Final = 0x68656C69786462
_MIGRATION_LOCK_TIMEOUT_SECONDS: Final = 120.0
# Columns that ``jobs`` has had since the first revision; together they occur in no other program's table.
_COLUMNS_OF_JOBS: Final = ("batch_id", "line", "request", "lease", "max_attempts")
_OWN_COLUMNS: Final = {
    "sqlite": text("SELECT name FROM pragma_table_info('jobs') WHERE name IN :columns").bindparams(
        bindparam("columns", expanding=True)
    ),
    # By search_path, as every other statement finds the table.
    "postgresql": text(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('jobs') AND NOT attisdropped "
        "AND attname IN :columns"
    ).bindparams(bindparam("columns", expanding=True)),
}
_ANOTHER_PLACE: Final = {
    "sqlite": "name another file in HELIX_DATABASE_URL",
    "postgresql": "name another database in HELIX_DATABASE_URL, or a schema of Helix's own in this one: CREATE SCHEMA "
    "helix, then add ?options=-csearch_path%3Dhelix to the URL",
}


def head_revision() -> str:
    """The revision this version of Helix works with."""
    return SCHEMA_REVISION


def current_revision(database: Database) -> str | None:
    """The database's revision; None if it holds no Helix tables.

    Raises:
        DatabaseUnreachableError: The database does not answer.
        SchemaVersionError: It holds another program's tables.
    """
    with database.read() as connection:
        return _read_revision(connection, database)


def ensure_schema(database: Database, *, migrate: bool | None = None) -> None:
    """Make sure that the database has this version's schema.

    An empty SQLite database (or no file at all) is migrated here, at first use. Any other migration is the person's
    to start: a shared Postgres must not change behind its owner's back, and an older worker may still run on a
    database that an older version wrote.

    Args:
        database: The database.
        migrate: True always upgrades, False never does, None decides as above.

    Raises:
        SchemaVersionError: The schema is empty (on Postgres), or older or newer than this version's; the message names
            the command to run.
        DatabaseUnreachableError: The database does not answer.
    """
    file = database.sqlite_file
    if file is not None and not file.exists():
        if migrate is False:
            raise SchemaVersionError(f"there is no database at {file}; run `helix db upgrade`")
        part = "folder"
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = "file"
            # SQLite itself would apply the umask; its -wal and -shm files take the database's mode.
            touch_private(file)
        except OSError as error:
            raise DatabaseUnreachableError(
                f"database {database.url_redacted}: its {part} cannot be made ({error.strerror}); name another"
            ) from error
    revision = current_revision(database)
    if revision == SCHEMA_REVISION:
        return
    # Revisions are numbered with leading zeros, so text sorts like numbers.
    if revision is not None and revision > SCHEMA_REVISION:
        raise SchemaVersionError(
            f"database {database.url_redacted} stands at schema {revision}, newer than this Helix ({SCHEMA_REVISION}); "
            "update Helix, or name another database in HELIX_DATABASE_URL"
        )
    if migrate or (migrate is None and revision is None and file is not None):
        upgrade(database)
        return
    state = "is empty" if revision is None else f"stands at schema {revision}, older than {SCHEMA_REVISION}"
    raise SchemaVersionError(
        f"database {database.url_redacted} {state}; stop the workers that use it and run `helix db upgrade`"
    )


def upgrade(database: Database, revision: str = "head", patience: LockPatience = DEFAULT_PATIENCE) -> str | None:
    """Upgrade the schema in one transaction, if need be, and return the revision reached.

    Two processes may call this at once on either database: the second waits and then finds nothing to do.

    Args:
        database: What to move.
        revision: Where to.
        patience: How long to wait on Postgres while other transactions hold the tables. SQLite is waited for for two
            minutes, and lets everybody else read meanwhile.

    Raises:
        DatabaseUnreachableError: The database does not answer, or others hold it; nothing was changed.
    """

    def command(config: Config) -> None:
        from alembic import command as alembic_command

        alembic_command.upgrade(config, revision)

    return _migrate(database, command, SCHEMA_REVISION if revision == "head" else revision, patience)


def downgrade(database: Database, revision: str, patience: LockPatience = DEFAULT_PATIENCE) -> str | None:
    """Downgrade the schema to ``revision`` (``base`` removes every table) and return the revision reached.

    Args:
        database: What to move.
        revision: Where to.
        patience: As for ``upgrade``.

    Raises:
        DatabaseUnreachableError: The database does not answer, or others hold it; nothing was changed.
    """

    def command(config: Config) -> None:
        from alembic import command as alembic_command

        alembic_command.downgrade(config, revision)

    return _migrate(database, command, None if revision == "base" else revision, patience)


@contextmanager
def migration_transaction(database: Database, patience: LockPatience = DEFAULT_PATIENCE) -> Iterator[Connection]:
    """A transaction that may alter tables; only one runs at a time.

    Raises:
        DatabaseUnreachableError: The database does not answer, or is locked.
    """
    engine = _migration_engine(database)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # No limit: nobody queues behind this lock, and another migration may be building an index.
                limit_waits(connection, 0.0)
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY})
                limit_waits(connection, patience.wait_seconds)
            yield connection
    except DBAPIError as error:
        trouble = describe_trouble(database.url_redacted, error)
        if trouble is None:
            raise
        raise trouble from error
    finally:
        engine.dispose()


def migrations_folder() -> Path:
    """The folder of the migration scripts: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without an ini file; ``env.py`` works on ``connection`` if one is given."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _read_revision(connection: Connection, database: Database) -> str | None:
    """The revision, if the tables are Helix's; None if there are none.

    Raises:
        SchemaVersionError: The tables are another program's. The revision alone does not tell, as every program that
            uses Alembic numbers its own.
    """
    names = connection.execute(_OWN_COLUMNS[connection.dialect.name], {"columns": _COLUMNS_OF_JOBS}).scalars().all()
    ours = len(names) == len(_COLUMNS_OF_JOBS)
    revision = None
    if inspect(connection).has_table("alembic_version"):
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is None and not any(inspect(connection).has_table(name) for name in metadata.tables):
        return None
    if revision is None or not ours:
        raise SchemaVersionError(
            f"database {database.url_redacted} holds tables of another program; {_ANOTHER_PLACE[database.dialect]}"
        )
    return str(revision)


def _migrate(
    database: Database, command: Callable[[Config], None], target: str | None, patience: LockPatience
) -> str | None:
    """Retry the migration until its tables come free."""
    attempt = 1
    while True:
        try:
            return _migrate_once(database, command, target, patience)
        except TablesHeldError as error:
            holders = _who_holds_tables(database, patience)
            if attempt == patience.attempts:
                raise DatabaseUnreachableError(
                    f"database {database.url_redacted} was not migrated, and nothing was changed: {holders}"
                ) from error
            logger.warning("database %s waits to be migrated: %s", database.url_redacted, holders)
            time.sleep(patience.pause_seconds)
            attempt += 1


def _who_holds_tables(database: Database, patience: LockPatience) -> str:
    try:
        with database.read() as connection:
            return describe_holders(connection, patience.wait_seconds)
    except DatabaseUnreachableError:  # the next attempt may succeed all the same
        return "transactions held its tables, and which ones could not be read; try again"


def _migrate_once(
    database: Database, command: Callable[[Config], None], target: str | None, patience: LockPatience
) -> str | None:
    with migration_transaction(database, patience) as connection, warnings.catch_warnings():
        # Alembic warns that it reflects SQLite expressions only in part; the scripts name everything they change.
        warnings.filterwarnings("ignore", module="alembic")
        before = _read_revision(connection, database)
        if before == target:
            return before
        if connection.dialect.name == "postgresql":
            lock_tables(connection, patience.wait_seconds)
        command(alembic_config(connection))
        if connection.dialect.name == "sqlite" and connection.execute(text("PRAGMA foreign_key_check")).first():
            raise SchemaVersionError(
                f"database {database.url_redacted}: the migration would leave rows without their parents; "
                "nothing was changed. Keep a copy of the file and report this"
            )
        after = _read_revision(connection, database)
    if before != after:
        logger.info("database %s: schema %s -> %s", database.url_redacted, before or "empty", after or "empty")
    return after


def _migration_engine(database: Database) -> Engine:
    """A separate engine without foreign keys: with them, SQLite's table rebuild would cascade the old table's drop."""
    if database.dialect != "sqlite":
        from helix_jobs.storage.postgres_engine import limit_answers, postgres_engine

        unbounded = postgres_engine(database.url, database.calls, database.time_limits, poolclass=NullPool)
        # No limit: a migration of a million rows takes long, and a person is watching it.
        event.listen(unbounded, "connect", lambda connection, _record: limit_answers(connection, None))
        return unbounded
    engine = create_engine(
        database.url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"timeout": _MIGRATION_LOCK_TIMEOUT_SECONDS, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection, _record) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  (DBAPI objects)
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # Take the write lock before reading the revision, so that only one of two processes migrates an empty file.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
