"""Databases that take nothing: one that another process has locked, and a Postgres server to be stopped."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg

from helix_jobs.storage.migration import upgrade
from tests.postgres_cluster import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.faults.installation import Installation


@contextmanager
def locked_database(installation: Installation) -> Iterator[None]:
    """Another process has the database to itself."""
    if installation.settings.database_url.startswith("sqlite"):
        connection = sqlite3.connect(installation.settings.home / "helix.db", isolation_level=None, timeout=30)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
        connection.close()
        return
    with psycopg.connect(installation.settings.database_url.replace("+psycopg", "")) as connection:
        while not _has_locked(connection):
            connection.rollback()
        yield
        connection.rollback()


def _has_locked(connection: psycopg.Connection) -> bool:
    """Whether every table is locked; Postgres may take the lock away from us where it meets a writer."""
    tables = "jobs, results, runs, workers, batches, batch_counters"
    with suppress(psycopg.errors.DeadlockDetected):
        connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        return True
    return False


def use_cluster(installation: Installation, parent: Path | None = None) -> PostgresCluster:
    """Have the installation use a server of its own."""
    cluster = PostgresCluster(parent)
    installation.stack.callback(cluster.remove)
    cluster.start()
    installation.settings = dataclasses.replace(installation.settings, database_url=cluster.url)
    database = installation.database()
    upgrade(database)
    database.dispose()
    return cluster
