"""Workers and their runs.

A worker is judged alive if its heartbeat *changes* within a span of the judge's own monotonic clock
(``reconciler.py``); the times stored here are never compared with a clock.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, bindparam, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.records import NewWorker, RunTotals, Worker
from helix_jobs.storage.schema import jobs, runs, workers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement

_REGISTER: Final[dict[str, Any]] = {"sqlite": sqlite.insert(workers), "postgresql": postgresql.insert(workers)}
_HEARTBEAT: Final = (
    update(workers)
    .where(workers.c.id == bindparam("worker"), workers.c.stopped_at.is_(None))
    .values(heartbeat_at=bindparam("now"))
)
_IS_RUNNING: Final = text("state = 'running'")


def register_worker(c: Connection, worker: NewWorker, now: datetime) -> None:
    """Store a worker, or restore one that was wrongly declared lost."""
    values = {**asdict(worker), "started_at": now, "heartbeat_at": now, "stopped_at": None}
    statement = _REGISTER[c.dialect.name].values(values)
    c.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"heartbeat_at": now, "stopped_at": None}))


def heartbeat(c: Connection, worker_id: str, now: datetime) -> bool:
    """Note that the worker is alive. False: it was declared lost (its leases are gone) and must register again."""
    return c.execute(_HEARTBEAT, {"worker": worker_id, "now": now}).rowcount > 0


def describe_worker(c: Connection, worker_id: str, setup: Mapping[str, Any]) -> None:
    """Replace what the worker's answers depend on."""
    c.execute(update(workers).where(workers.c.id == worker_id).values(setup=setup))


def stop_worker(c: Connection, worker_id: str, now: datetime) -> None:
    """Note that the worker stopped in order."""
    c.execute(update(workers).where(workers.c.id == worker_id, workers.c.stopped_at.is_(None)).values(stopped_at=now))


def live_workers(c: Connection) -> list[Worker]:
    """Workers that neither stopped nor were declared lost, oldest first."""
    return _readable_workers(c, workers.c.stopped_at.is_(None))


def watched_workers(c: Connection) -> list[Worker]:
    """Workers to judge: those not stopped, and those that are stopped but hold leases.

    A stopped one with leases was declared lost, woke up, and claimed a job before it noticed.
    """
    holding = select(jobs.c.worker_id).where(_IS_RUNNING, jobs.c.worker_id.is_not(None))
    return _readable_workers(c, or_(workers.c.stopped_at.is_(None), workers.c.id.in_(holding)))


def worker_heartbeats(c: Connection) -> dict[str, datetime | None]:
    """Id -> heartbeat of every worker to judge; None for an id that holds leases but has no row."""
    found: dict[str, datetime | None] = {worker.id: worker.heartbeat_at for worker in watched_workers(c)}
    for worker_id in c.execute(select(jobs.c.worker_id).where(_IS_RUNNING).distinct()).scalars():
        if worker_id is not None:
            found.setdefault(worker_id, None)
    return found


def _readable_workers(c: Connection, which: ColumnElement[bool]) -> list[Worker]:
    """These workers, oldest first, without unreadable rows: one such row must not withhold the others.

    A live worker overwrites its unreadable heartbeat with the next one.
    """
    rows = readable_rows(c, select(workers).where(which).order_by(workers.c.started_at), workers.c.id)
    return [Worker(**row._mapping) for row in rows]  # noqa: SLF001  (SQLAlchemy's documented name)


def start_run(c: Connection, worker_id: str, now: datetime) -> int:
    """Open a run and return its id."""
    return int(c.execute(insert(runs).values(worker_id=worker_id, started_at=now).returning(runs.c.id)).scalar_one())


def finish_run(c: Connection, run_id: int, totals: RunTotals, now: datetime) -> None:
    """Close a run with its totals."""
    c.execute(update(runs).where(runs.c.id == run_id).values(**asdict(totals), finished_at=now))
