"""Postgres answers, and says no. That costs time, and no answer."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from tests.acceptance.faults.progress import ended, final_jobs, wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess

POSTGRES_ONLY = ("postgres",)
SETTLE_SECONDS = 2.0


@contextmanager
def _admin(installation: Installation) -> Iterator[psycopg.Connection]:
    with psycopg.connect(installation.settings.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def _begin(installation: Installation, size: Size, **environment: str) -> tuple[Accepted, WorkerProcess]:
    step_seconds = 0.02 if installation.fork_server is not None else 0.25
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds=str(step_seconds), **environment)
    wait_ended(installation, batch, 4)
    return batch, worker


def _resumed(installation: Installation, worker: WorkerProcess, batch: Accepted) -> float:
    """Wait until one more job has ended; returns how long it took."""
    before, began = ended(installation, batch), time.monotonic()
    wait_ended(installation, batch, before + 1)
    assert worker.process.poll() is None, worker.log
    return time.monotonic() - began


@contextmanager
def _refusing(admin: psycopg.Connection, sqlstate: str, *tables: str) -> Iterator[None]:
    """Every write to these tables is refused with this code."""
    admin.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'the server says no' USING ERRCODE = '{sqlstate}'; END $$"
    )
    for table in tables:
        admin.execute(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION refuse()")
    try:
        yield
    finally:
        admin.execute("DROP FUNCTION refuse CASCADE")


@contextmanager
def _read_only(admin: psycopg.Connection) -> Iterator[None]:
    """As after a failover to a standby: every connection is ended, and new ones take no writes."""
    with _refusing(admin, "25006", "jobs", "results", "runs", "workers"):
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        yield


@contextmanager
def _renamed(admin: psycopg.Connection) -> Iterator[None]:
    admin.execute("ALTER TABLE results RENAME TO elsewhere")
    try:
        yield
    finally:
        admin.execute("ALTER TABLE elsewhere RENAME TO results")


def _damaged(admin: psycopg.Connection) -> AbstractContextManager[None]:
    """Each INSERT meets a page that cannot be read."""
    return _refusing(admin, "XX001", "results")


def _withdrawn(admin: psycopg.Connection) -> AbstractContextManager[None]:
    """A right is gone; nothing else tells this from a real REVOKE, which a superuser would not notice."""
    return _refusing(admin, "42501", "results")


@scenario(
    "Postgres says no: read-only, table gone, right withdrawn, damaged",
    quick=Size(jobs=200, faults=4),
    full=Size(jobs=1_600, faults=8),
    databases=POSTGRES_ONLY,
    quick_on=POSTGRES_ONLY,
)
def says_no(installation: Installation, size: Size) -> Outcome:
    """In turn. Good jobs must not fail for it, and nothing is acknowledged meanwhile."""
    seconds = 0.5 if installation.fork_server is not None else 8.0
    batch, worker = _begin(installation, size)
    recoveries = []
    for fault in range(size.faults):
        with _admin(installation) as admin, (_read_only, _renamed, _withdrawn, _damaged)[fault % 4](admin):
            wait_until(
                lambda n=fault: worker.log.count("writes wait; this worker claims no job") > n,  # type: ignore[misc]
                lambda: f"nothing was refused: {worker.log}",
            )
            time.sleep(SETTLE_SECONDS)
            delivered = installation.redis.unacked_jobs()
            time.sleep(seconds)
            gone = delivered.keys() - installation.redis.unacked_jobs().keys()
            assert {delivered[tag] for tag in gone} <= final_jobs(installation), "acknowledged without a commit"
        recoveries.append(_resumed(installation, worker, batch))
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 4)
    broken = ("a good job failed",) if installation.states(batch.batch_id).keys() != {"succeeded"} else ()
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, broken=broken)
