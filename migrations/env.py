"""Alembic's entry: runs on the connection Helix hands over, or on HELIX_DATABASE_URL for ``alembic`` itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context

from helix_jobs.storage.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _run(connection: Connection) -> None:
    # render_as_batch: SQLite alters a table by rebuilding it.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


def _main() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _run(connection)
        return
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.migration import migration_transaction

    with migration_transaction(Database(Settings.from_environment().database_url)) as own_connection:
        _run(own_connection)


_main()
