"""``db``: the schema of the results database."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database


class _HelixCommandGroup(click.Group):
    """A group whose commands report errors the Helix way."""

    command_class = HelixCommand


@click.group("db", cls=_HelixCommandGroup, short_help="Migrate the results database.")
def db() -> None:
    """Bring the results database's schema up to date, show its version, or look for rows that cannot be."""


@db.command("upgrade", short_help="Migrate the database to this version's schema.")
@helix_options
def upgrade(settings: Settings, *, as_json: bool) -> None:
    """Migrate the database to the schema this version of Helix works with. Harmless if it is there already."""
    from helix_jobs.storage.migration import ensure_schema

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
    from helix_jobs.storage.migration import head_revision

    with _database(settings) as database:
        revision, head = _revision(database), head_revision()
        if as_json:
            echo_json({"database": database.url_redacted, "current": revision, "head": head})
            return
        click.echo(f"{database.url_redacted} is at revision {revision or 'none (empty)'}; this version needs {head}.")
        if revision != head:
            click.echo(f"Upgrade it with: {command_line('db', 'upgrade')}", err=True)


@db.command("check", short_help="Find damaged rows, and repair them.")
@click.option("--repair", is_flag=True, help="Repair the rows that are found; without it the command changes nothing.")
@helix_options
def check(settings: Settings, *, repair: bool, as_json: bool) -> None:
    """Look through the whole database for rows that cannot be read, jobs that no worker holds, and wrong counters.

    Such things come of changes by hand, half restored backups and damaged disks. Exit code 1 if there is something to
    repair.
    """
    from helix_jobs.storage.check import check_rows
    from helix_jobs.storage.migration import ensure_schema

    with _database(settings) as database:
        ensure_schema(database, migrate=False)
        findings = check_rows(database, repair=repair)
        if as_json:
            echo_json({"database": database.url_redacted, "findings": [asdict(finding) for finding in findings]})
        for finding in () if as_json else findings:
            click.echo(str(finding))
        if not findings and not as_json:
            click.echo(f"{database.url_redacted}: every row can be read and belongs together.")
    if findings and not repair:
        if not as_json:
            click.echo(f"Repair it with: {command_line('db', 'check', '--repair')}", err=True)
        click.get_current_context().exit(1)


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    """The configured database as it is, without a migration."""
    from helix_jobs.storage.database import Database

    database = Database(settings.database_url)
    try:
        yield database
    finally:
        database.dispose()


def _revision(database: Database) -> str | None:
    """The database's revision; a missing SQLite file counts as an empty database."""
    from helix_jobs.storage.migration import current_revision

    file = database.sqlite_file
    return None if file is not None and not file.exists() else current_revision(database)
