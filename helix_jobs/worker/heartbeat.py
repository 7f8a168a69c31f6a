"""Heartbeat: shows that this worker lives, and notices lost leases. Independent of the engine's loop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from helix_jobs.broker.stranded_messages import StrandedMessages
from helix_jobs.errors import DatabaseReplacedError
from helix_jobs.storage import claims, workers
from helix_jobs.storage.installation import installation_id
from helix_jobs.storage.process_identity import this_process
from helix_jobs.storage.records import NewWorker
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.stranded_messages import send_again

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.database import Database
    from helix_jobs.worker.job_service import WorkerService

logger = logging.getLogger(__name__)


def worker_row(worker_id: str, hostname: str, info: EngineInfo, setup: Mapping[str, Any] | None = None) -> NewWorker:
    """The row of this process's worker; ``setup`` is what its answers depend on."""
    identity = this_process()
    return NewWorker(
        id=worker_id,
        hostname=hostname,
        pid=identity.pid,
        boot_id=identity.boot_id,
        pid_namespace=identity.pid_namespace,
        process_started=identity.started,
        device=info.device,
        target_model=info.target_model,
        draft_model=info.draft_model,
        slots=info.max_batch_size,
        setup=setup,
    )


@dataclass(frozen=True, slots=True)
class LeaseCheck:
    """How the jobs that run here differ from the leases in the database."""

    lost: tuple[tuple[int, int], ...]
    orphaned: tuple[tuple[int, int], ...]


def compare_leases(
    before: Mapping[int, int | None], held: Mapping[int, int], after: Mapping[int, int | None]
) -> LeaseCheck:
    """Compare the jobs that ran here, before and after the database was asked, with the database's answer.

    A job just claimed is missing in ``before``, one just finished is missing in ``after``; neither is a difference.

    Args:
        before: Job id -> lease here (None: claim under way), read before the database.
        held: Job id -> lease in the database.
        after: The same as ``before``, read after the database.
    """
    lost = tuple((job_id, lease) for job_id, lease in before.items() if lease is not None and held.get(job_id) != lease)
    orphaned = tuple((job_id, lease) for job_id, lease in held.items() if job_id not in before and job_id not in after)
    return LeaseCheck(lost, orphaned)


class Heartbeat:
    """Writes the heartbeat, and compares leases more often than that.

    Args:
        database: Written to directly: a stuck writer must not make this worker look dead.
        worker: This worker's row, entered by ``start``.
        service: Whose leases are compared.
        installation: The database's id when this worker connected; the queue is named after it. None: the id that the
            first heartbeat finds.
        on_replaced: Called when another database has taken the place of the one this worker began with, so that none of
            its work could count.
        time_limits: The spans of time.
        rounds: Counts the thread's rounds for the dead man's switch.
        stranded: Jobs whose messages could not be given back to the broker.
    """

    def __init__(
        self,
        database: Database,
        worker: NewWorker,
        service: WorkerService,
        *,
        time_limits: TimeLimits = DEFAULT_TIME_LIMITS,
        rounds: Rounds | None = None,
        installation: str | None = None,
        on_replaced: Callable[[DatabaseReplacedError], None] = lambda _: None,
        stranded: StrandedMessages | None = None,
    ) -> None:
        self._database = database
        self._worker = worker
        self._service = service
        self._stranded = stranded or StrandedMessages()
        self._on_replaced = on_replaced
        self._installation = installation
        self._interval = time_limits.heartbeat
        self._next_beat = 0.0
        self._periodic = Periodic("heartbeat", self._beat_and_check, time_limits.lease_check, rounds=rounds)
        self._unknown: frozenset[tuple[int, int]] = frozenset()

    def start(self) -> None:
        """Enter the worker's row and start the heartbeats.

        Raises:
            DatabaseUnreachableError: The row could not be written.
            DatabaseReplacedError: Another database has this name since the worker connected.
        """
        self.register()
        self._next_beat = time.monotonic() + self._interval
        self._periodic.start()

    def stop(self) -> None:
        """End the thread and record an orderly end; no error if the database is away."""
        self._periodic.stop(None)
        try:
            # In one transaction: nobody removes the published marks of a worker that has stopped.
            send_again(
                self._stranded, self._database, lambda c: workers.stop_worker(c, self._worker.id, datetime.now(UTC))
            )
        except Exception as error:  # noqa: BLE001  (the reconciler of the next worker will find out by itself)
            logger.warning("the worker's end could not be recorded: %s", error)

    def check_leases(self) -> None:
        """Drop jobs whose lease is lost, and hand back leases that are unknown here twice in a row."""
        before = self._service.leases()
        with self._database.read() as c:
            held = claims.held_leases(c, self._worker.id)
        check = compare_leases(before, held, self._service.leases())
        for job_id, lease in check.lost:
            self._service.drop_lost(job_id, lease)
        for job_id, lease in self._unknown.intersection(check.orphaned):
            self._service.release_orphan(job_id, lease)
        self._unknown = frozenset(check.orphaned) - self._unknown

    def beat(self) -> None:
        """Write the heartbeat; register anew under the same name if other workers had given this one up.

        Raises:
            DatabaseReplacedError: The server has another database under this name, or SQLite's file has one in it.
        """
        with self._database.read_anew() as c:
            self._compare(installation_id(c))
        with self._database.write() as c:
            alive = workers.heartbeat(c, self._worker.id, datetime.now(UTC))
        if not alive:
            logger.warning("this worker had been declared lost; other workers got its jobs, it goes on with new ones")
            self.register()

    def _compare(self, found: str) -> None:
        noted = self._installation = self._installation or found
        if found != noted:
            raise DatabaseReplacedError(
                f"database {self._database.url_redacted}: another database has taken its place while this worker ran; "
                "start the worker again"
            )

    def register(self) -> None:
        """Enter the worker's row, or enter it anew.

        Raises:
            DatabaseUnreachableError: The row could not be written.
            DatabaseReplacedError: Another database has this name since the worker connected.
        """
        with self._database.write() as c:
            self._compare(installation_id(c))
            workers.register_worker(c, self._worker, datetime.now(UTC))

    def describe(self, setup: Mapping[str, Any]) -> None:
        """Say in the worker's row what its answers depend on, once more of it is known.

        Raises:
            DatabaseUnreachableError: The row could not be written.
        """
        self._worker = replace(self._worker, setup=setup)
        with self._database.write() as c:
            workers.describe_worker(c, self._worker.id, setup)

    def _beat_and_check(self) -> None:
        try:
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + self._interval
                self.beat()
            self.check_leases()
        except DatabaseReplacedError as error:
            self._periodic.cease()
            self._on_replaced(error)
