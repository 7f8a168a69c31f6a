"""The installation: one row, made with the tables, whose id tells this database from all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from helix_jobs.errors import SchemaVersionError
from helix_jobs.storage.schema import installation

if TYPE_CHECKING:
    from sqlalchemy import Connection


def installation_id(c: Connection) -> str:
    """Return the id of this database; it never changes, and a copy of the database has the same one.

    Raises:
        SchemaVersionError: The row was removed.
    """
    found = c.execute(select(installation.c.id)).scalar_one_or_none()
    if found is None:
        raise SchemaVersionError(
            "the database's table installation is empty, so the queue has no name; stop the workers and run "
            "INSERT INTO installation (singleton, id, created_at) VALUES (1, 'a1b2c3d4e5f6', CURRENT_TIMESTAMP), "
            "with letters and digits of your own"
        )
    return str(found)
