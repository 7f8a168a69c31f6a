"""WorkerFigures: a worker process's figures for monitoring, and the reader of the queue's figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs.storage import queue_figures
from helix_jobs.storage.database import Database
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.protocol import EngineCounters, EngineInfo
    from helix_jobs.storage.group_commit import GroupCommitWriter
    from helix_jobs.storage.records import QueueFigures
    from helix_jobs.worker.counters import WorkerCounters
    from helix_jobs.worker.job_service import WorkerService
    from helix_jobs.worker.reconciler import Reconciler
    from helix_jobs.worker.watchdog import Watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """One worker at one moment; totals count from its start.

    Attributes:
        worker_id: Its row.
        engine: The engine's description.
        counters: The engine's totals.
        slots_used: Batch slots that the engine's requests can use, one for each of their choices.
        tokens_per_second: Of the run under way, 0 when idle.
        idle_seconds: How long the engine has had nothing to do.
        jobs: Counts of messages and jobs by outcome.
        published: Job ids sent to the broker.
        republished: Jobs whose ids were sent again, as their messages seemed lost.
        from_cache: Jobs that took a stored answer before they were delivered.
        reclaimed: Jobs taken from lost workers.
        reconciler_errors: Ticks that failed.
        reconnections: How often the watchdog had the consumer connect anew.
        writes_waiting: Writes held back because the database takes none.
        write_retries: How often writes were tried again.
        memory: Bytes in use: ``process``, ``device`` and ``device_total``; what is known of it.
    """

    worker_id: str
    engine: EngineInfo
    counters: EngineCounters
    slots_used: int
    tokens_per_second: float
    idle_seconds: float
    jobs: WorkerCounters
    published: int
    republished: int
    reclaimed: int
    reconciler_errors: int
    reconnections: int
    writes_waiting: int = 0
    write_retries: int = 0
    from_cache: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)


def worker_figures(
    service: WorkerService,
    reconciler: Reconciler,
    watchdog: Watchdog,
    writer: GroupCommitWriter,
    memory: Mapping[str, int],
) -> WorkerFigures:
    """Read the figures from the worker's parts: from any thread, from memory only."""
    engine, tidied = service.engine, reconciler.counters
    return WorkerFigures(
        worker_id=service.worker_id,
        engine=service.info,
        counters=engine.counters,
        slots_used=min(engine.choice_count, service.info.max_batch_size),
        tokens_per_second=engine.tokens_per_second,
        idle_seconds=engine.idle_seconds,
        jobs=service.counters,
        published=tidied.published,
        republished=tidied.republished,
        reclaimed=tidied.requeued + tidied.failed,
        reconciler_errors=tidied.errors,
        reconnections=watchdog.reconnections,
        writes_waiting=writer.waiting,
        write_retries=writer.retries,
        from_cache=tidied.from_cache,
        memory=memory,
    )


class QueueReader:
    """Reads the queue's figures through database connections of its own, so that it takes none of the worker's."""

    def __init__(self, database_url: str, time_limits: TimeLimits = DEFAULT_TIME_LIMITS) -> None:
        self._database = Database(database_url, time_limits)

    def __call__(self) -> QueueFigures:
        """Ask the database.

        Raises:
            DatabaseUnreachableError: It does not answer.
        """
        with self._database.read() as c:
            return queue_figures.queue_figures(c)

    def close(self) -> None:
        """Close the idle connections."""
        self._database.dispose()
