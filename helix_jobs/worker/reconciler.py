"""Reconciler: brings broker and leases back in line with the database, about once a second.

It has four duties. A pure function (``lost_workers`` and others) decides each, and one method persists it:

1. **Judge.** A worker whose heartbeat value has not changed for 30 s is lost; its leases are reclaimed. Silence is
   measured on this process's monotonic clock, tick by tick (``lost_workers.observe``).
2. **Publish.** Keep up to a window of messages with the broker, most urgent first. Jobs whose answer is stored take it
   instead (``storage/answer_cache.py``).
3. **Republish** (``lost_messages``). Messages get lost (a broker restarts empty, a client dies between pop and
   record). When the broker has been empty for 30 s and jobs still count as published, their published marks are
   removed. The same happens when a worker is lost: its prefetched messages are stranded, nobody can tell which they
   were, and a busy broker may not be empty for days. Trade-off: each lost worker costs up to a window of duplicates,
   but no job waits. On a busy broker an exact comparison every few minutes finds single lost messages (``audit``). A
   lost worker's deliveries stay in the broker's ``unacked`` until no job can need them; then they are dropped.

4. **Finish cancels.** A cancel whose command was killed half-way leaves queued jobs in a cancelled batch, and no worker
   claims those. When their number has not changed for 30 s, the reconciler cancels them.

Every worker runs a reconciler. Two at once only cost duplicates: reclaiming checks the heartbeat inside its
transaction, publishers take turns, and a second message for a job finds it claimed. Trade-off: now and then a message
is wasted, but there is no leader to elect and lose.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.broker.fill import WINDOW, Publisher, fill_broker
from helix_jobs.broker.stranded_messages import StrandedMessages
from helix_jobs.errors import HelixError
from helix_jobs.observability.rounds import come_round
from helix_jobs.storage import batch_changes, changes_in_steps, publishing, retries, workers
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits
from helix_jobs.worker.brakes import BrakeWatch
from helix_jobs.worker.deadlines import DeadlineWatch
from helix_jobs.worker.lost_messages import LostMessages
from helix_jobs.worker.lost_workers import (
    Observation,
    dead_predecessors,
    lost_workers,
    observe,
    runs_low,
)
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.unfinished_cancels import CancelSeen, watch_cancels
from helix_jobs.worker.watched_time import WatchedTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.opening_hours import OpeningHours
    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.batch_changes import Change
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.process_identity import Here
    from helix_jobs.storage.records import Reclaimed

logger = logging.getLogger(__name__)

PUBLISH_CHUNK: Final = 500
# The random part of each pause. Otherwise workers that a supervisor started together would keep publishing the same
# jobs at the same moment.
JITTER: Final = 0.1


class Broker(Publisher, Protocol):
    """The broker as the reconciler sees it."""

    def forget_delivered(self, are_moot: Callable[[], bool], /) -> int:
        """Drop unacknowledged deliveries if ``are_moot``, asked after they were listed, agrees; returns how many."""


@dataclass(slots=True)
class ReconcilerCounters:
    """What the reconciler did since the start."""

    published: int = 0
    requeued: int = 0
    failed: int = 0
    from_cache: int = 0
    republished: int = 0
    errors: int = 0


class Reconciler:
    """Runs the duties on a thread. Errors of broker and database are logged, and the duty is tried again.

    ``tick`` may be called directly instead of ``start``.
    """

    def __init__(
        self,
        database: Database,
        publisher: Broker,
        *,
        worker_id: str | None = None,
        time_limits: TimeLimits = DEFAULT_TIME_LIMITS,
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
        rounds: Rounds | None = None,
        known_ids: Callable[[], set[int] | None] = lambda: None,
        stranded: StrandedMessages | None = None,
        hours: OpeningHours | None = None,
        setup: Callable[[], AnswerSetup | None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            database: The truth.
            publisher: The broker.
            worker_id: The reconciler's own worker, which is never judged.
            time_limits: The spans of time.
            window: How many messages the broker is kept filled with.
            clock: Monotonic seconds.
            rounds: Counts the thread's rounds for the dead man's switch.
            known_ids: Which job ids the broker holds, waiting or delivered; None if they cannot be listed.
            stranded: Jobs whose messages this worker could not give back to the broker.
            hours: When workers work; None for always.
            setup: Whose stored answers jobs may take; None while that is not known, or none may.
        """
        self.counters = ReconcilerCounters()
        self._database = database
        self._publisher = publisher
        self._worker_id = worker_id
        self._time_limits = time_limits
        self._window = window
        self._setup = setup
        self._clock = clock
        self._lost = LostMessages(
            database,
            publisher,
            known_ids,
            stranded or StrandedMessages(),
            unseen=time_limits.republish,
            audit=time_limits.audit,
            clock=clock,
        )
        self._observations: dict[str, Observation] = {}
        self._watched = WatchedTime(time_limits.reconcile, clock)
        self._cancels: dict[Change, CancelSeen] = {}
        self._brakes = BrakeWatch(database, clock)
        self._deadlines = DeadlineWatch(database, time_limits.lease, hours, clock)
        self._periodic = Periodic(
            "reconciler",
            self._tick_and_count,
            time_limits.reconcile,
            jitter=JITTER,
            at_once=True,
            rounds=rounds,
        )

    def reclaim_predecessors(self, here: Here) -> int:
        """At start: reclaim at once the leases of workers whose process is gone. Returns how many jobs were reclaimed.

        Args:
            here: Which processes can be seen from here.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        with self._database.read() as connection:
            watched = workers.watched_workers(connection)
        dead = dead_predecessors(watched, own_id=self._worker_id, here=here)
        return sum(self._reclaim(worker_id, None, "its process is gone") for worker_id in dead)

    def start(self) -> None:
        """Start the thread."""
        self._periodic.start()

    def stop(self, timeout: float | None = 10.0) -> bool:
        """Ask the thread to end and wait for it; returns whether it has ended."""
        return self._periodic.stop(timeout)

    def wake(self) -> None:
        """Do the next tick now, because the broker came back or runs dry."""
        self._periodic.wake()

    def tick(self) -> None:
        """Do every duty once. An error in one, such as an unreadable row, does not keep the others from running.

        Raises:
            HelixError: Broker or database does not answer. Every duty needs them; the earlier duties are done.
            Exception: The first error of another kind, raised after all duties were tried.
        """
        errors: list[Exception] = []
        for duty in (self._judge, self._finish_cancels, self._brakes.look, self._deadlines.look, self._supply):
            come_round()
            try:
                duty()
            except HelixError:
                raise
            except Exception as error:  # noqa: BLE001  (raised below)
                errors.append(error)
        if errors:
            raise errors[0]

    def _supply(self) -> None:
        depth = self._publisher.depth()
        if runs_low(depth, self._window):
            self._publish()
        come_round()
        self.counters.republished += self._lost.look(depth)

    def _tick_and_count(self) -> None:
        try:
            self.tick()
        except Exception:
            self.counters.errors += 1
            raise

    def _judge(self) -> None:
        with self._database.read() as connection:
            heartbeats = workers.worker_heartbeats(connection)
        self._observations = observe(self._observations, heartbeats, self._watched.look())
        time_limits = self._time_limits
        for worker_id in lost_workers(
            self._observations, self._worker_id, lease=time_limits.lease, own_silence=time_limits.own_silence
        ):
            observation = self._observations.pop(worker_id)
            self._reclaim(worker_id, observation.heartbeat, f"silent for {observation.silent_seconds:.0f} s")

    def _reclaim(self, worker_id: str, heartbeat: datetime | None, why: str) -> int:
        def take(c: Connection) -> tuple[Reclaimed | None, int]:
            # One transaction: from then on the worker counts as stopped, so nobody would do the second part later.
            reclaimed = retries.reclaim(c, worker_id, datetime.now(UTC), heartbeat=heartbeat)
            return reclaimed, 0 if reclaimed is None else publishing.republish_all(c)

        taken, republished = self._database.transact(take)
        if taken is None:
            return 0
        self.counters.republished += republished
        self.counters.requeued += taken.requeued
        self.counters.failed += taken.failed
        logger.warning(
            "worker %s is lost (%s): %d jobs queued again, %d failed at their attempt cap",
            worker_id,
            why,
            taken.requeued,
            taken.failed,
        )
        return taken.requeued + taken.failed

    def _finish_cancels(self) -> None:
        with self._database.read() as connection:
            unfinished = batch_changes.unfinished_cancels(connection)
        now = self._clock()
        self._cancels = watch_cancels(self._cancels, unfinished, now)
        for change, seen in list(self._cancels.items()):
            if now - seen.since >= self._time_limits.republish:
                count = changes_in_steps.finish_cancel(
                    self._database,
                    change,
                    lambda: not self._periodic.is_stopped and self._clock() - now < self._time_limits.reconcile,
                )
                # No other process finishes this cancel, so the next tick goes on at once.
                self._cancels[change] = CancelSeen(seen.left - count, seen.since)
                if count:
                    logger.info("an interrupted cancel of batch %s goes on: %d jobs", change.batch_id, count)

    def _publish(self) -> None:
        chunks = fill_broker(self._database, self._publisher, self._window, PUBLISH_CHUNK, self._setup())
        while not self._periodic.is_stopped and (filled := next(chunks, None)):
            self.counters.published += filled.published
            self.counters.from_cache += filled.from_cache
            come_round()
