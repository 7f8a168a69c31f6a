"""``db``: the schema of the results database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.jobs.database import Database
    from helix_jobs.settings import Settings


class _HelixCommandGroup(click.Group):
    """A group whose commands report errors the Helix way."""

    command_class = HelixCommand


@click.group("db", cls=_HelixCommandGroup, short_help="Migrate the results database.")
def db() -> None:
    """Bring the results database's schema up to date, or show its version."""


@db.command("upgrade", short_help="Migrate the database to this version's schema.")
@helix_options
def upgrade(settings: Settings, *, as_json: bool) -> None:
    """Migrate the database to the schema this version of Helix works with. Harmless if it is there already."""
    from helix_jobs.jobs.migration import ensure_schema

    with _database(settings) as database:
        before = _revision(database)
        ensure_schema(database, migrate=True)
        after = _revision(database)
        if as_json:
            echo_json({"database": database.url_redacted, "before": before, "after": after})
        elif before == after:
            click.echo(f"{database.url_redacted} is at revision {after} already.")
        else:
            click.echo(f"{database.url_redacted} migrated from {before or 'empty'} to revision {after}.")


@db.command("current", short_help="Show the schema's revision.")
@helix_options
def current(settings: Settings, *, as_json: bool) -> None:
    """Show the revision the database stands at and the one this version of Helix needs."""
    from helix_jobs.jobs.migration import head_revision

    with _database(settings) as database:
        revision, head = _revision(database), head_revision()
        if as_json:
            echo_json({"database": database.url_redacted, "current": revision, "head": head})
            return
        click.echo(f"{database.url_redacted} is at revision {revision or 'none (empty)'}; this version needs {head}.")
        if revision != head:
            click.echo(f"Upgrade it with: {command_line('db', 'upgrade')}", err=True)


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    """The configured database as it is: nothing is migrated by opening it here."""
    from helix_jobs.jobs.database import Database

    database = Database(settings.database_url)
    try:
        yield database
    finally:
        database.dispose()


def _revision(database: Database) -> str | None:
    """The revision the database stands at; a SQLite file that is not there yet is an empty database."""
    from helix_jobs.jobs.migration import current_revision

    file = database.sqlite_file
    return None if file is not None and not file.exists() else current_revision(database)
