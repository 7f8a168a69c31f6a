"""Watchdog: notices that jobs wait and slots are idle while nothing is delivered, and decides what to do.

A broker connection can be dead without an error, and a consumer can stop asking for messages. Only the missing
deliveries show either. A worker in a *stall* (see ``Sample.is_stall``) for a whole window closes its consumer's
connection. Celery then connects anew, while running jobs go on. If another window brings nothing either, the process
cannot be repaired from inside; it ends, and its supervisor starts a new one.

The database says whether jobs wait. A healthy worker is never in a stall for a window: after half a window the
reconciler publishes messages again that were lost, or that another worker has prefetched and cannot begin. An absent
broker makes no stall either: Celery goes on reconnecting to it, and a new process could do no better.

A process that may open no more descriptors cannot tell this from an absent broker, and cannot reconnect. One window is
then enough, and the message names the limit. The same holds if no slot is idle, but every job in the slots waits for a
descriptor, to be claimed or written, and the engine has nothing to do.

Trade-off: one sample every few seconds costs a thread and a broker connection. On the heartbeat's thread, a silent
broker would make the worker look dead.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from helix_jobs.errors import HelixError, UnreachableError
from helix_jobs.exhaustion import explain_exhaustion, missing_descriptor
from helix_jobs.storage import publishing
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from helix_jobs.wording import counted
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.watched_time import WatchedTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.database import Database
    from helix_jobs.worker.counters import WorkerCounters

logger = logging.getLogger(__name__)


class Action(Enum):
    """The action that a sample leads to."""

    NONE = "none"
    RECONNECT = "reconnect"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The worker's supply of jobs at one moment.

    Attributes:
        deliveries: Messages of any kind that were delivered to this worker since its start.
        idle_slots: Batch slots without a job; 0 also while the worker stops.
        stuck: Jobs in slots while the engine computes none of them; otherwise 0.
        backlog: Jobs that wait in the database, without those that this worker itself keeps waiting; None when no
            descriptor is left to ask the database with.
        messages: Ids that wait in the broker; None when the broker does not answer, or was not asked.
        shortage: Why this process can open no descriptor; empty when it can.
    """

    deliveries: int
    idle_slots: int
    stuck: int = 0
    backlog: int | None = 0
    messages: int | None = None
    shortage: str = ""

    @property
    def is_stall(self) -> bool:
        """Whether a delivery is due at any moment, or delivered jobs cannot go on."""
        if self.shortage and self.stuck:
            return True
        return self.idle_slots > 0 and self.backlog != 0 and (self.messages is not None or bool(self.shortage))


@dataclass(frozen=True, slots=True)
class Stall:
    """A stall so far.

    Attributes:
        deliveries: Deliveries before the stall.
        seconds: How long the stall has been watched since it began, or since the reconnection.
        reconnected: Whether the consumer's connection was already closed because of it.
    """

    deliveries: int
    seconds: float = 0.0
    reconnected: bool = False


def judge(previous: Stall | None, sample: Sample, *, elapsed: float, window: float) -> tuple[Stall | None, Action]:
    """Add one sample to the stall so far and decide what to do.

    Args:
        previous: The stall so far; None when there was none.
        sample: The supply now.
        elapsed: Watched seconds since the previous sample, without time in which this process was suspended.
        window: Seconds without a delivery that a stall may last before something is done.
    """
    if not sample.is_stall:
        return None, Action.NONE
    if previous is None or previous.deliveries != sample.deliveries:
        return Stall(sample.deliveries), Action.NONE
    stall = replace(previous, seconds=previous.seconds + elapsed)
    if stall.seconds < window:
        return stall, Action.NONE
    if stall.reconnected or sample.shortage:
        return stall, Action.GIVE_UP
    return Stall(sample.deliveries, reconnected=True), Action.RECONNECT


class Broker(Protocol):
    """The broker as the watchdog sees it, through a connection of its own."""

    def depth(self) -> int:
        """Messages that wait."""

    def close(self) -> None:
        """Close the connection."""


class SupplyState(Protocol):
    """The worker's service as the watchdog sees it."""

    @property
    def counters(self) -> WorkerCounters:
        """The counts since the start, deliveries among them."""

    @property
    def idle_slots(self) -> int:
        """Batch slots without a job; 0 while the worker stops."""

    @property
    def stuck(self) -> int:
        """Jobs here while the engine computes none of them; otherwise 0, and while the worker stops."""

    @property
    def kept_waiting(self) -> int:
        """Jobs that this worker keeps waiting; their messages have been delivered."""


class Watchdog:
    """Takes a sample every few seconds, on a thread of its own, and acts on it.

    Args:
        database: Says how many jobs wait.
        broker: Says whether it answers.
        service: Counts the deliveries and the idle slots.
        reconnect: Closes the consumer's connection so that it connects anew; returns at once.
        give_up: Ends the worker. Called once, with the reason.
        window: Seconds a stall may last before something is done.
        interval: Seconds between samples.
        clock: Monotonic seconds.
        rounds: Counts the thread's rounds for the dead man's switch.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        service: SupplyState,
        *,
        reconnect: Callable[[], None],
        give_up: Callable[[str], None],
        window: float = DEFAULT_TIME_LIMITS.watchdog_window,
        interval: float = DEFAULT_TIME_LIMITS.watchdog_look,
        clock: Callable[[], float] = time.monotonic,
        rounds: Rounds | None = None,
    ) -> None:
        self.reconnections = 0
        self._database = database
        self._broker = broker
        self._service = service
        self._reconnect = reconnect
        self._give_up = give_up
        self._window = window
        self._watched = WatchedTime(interval, clock)
        self._stall: Stall | None = None
        self._periodic = Periodic("watchdog", self._check_if_possible, interval, rounds=rounds, at_end=broker.close)

    def start(self) -> None:
        """Start the thread."""
        self._periodic.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """Ask the thread to end; returns whether it has ended, as it may still wait for a silent broker."""
        return self._periodic.stop(timeout)

    def check(self) -> Action:
        """Take one sample and act on it.

        Raises:
            HelixError: The database does not answer.
        """
        sample = self._sample()
        self._stall, action = judge(self._stall, sample, elapsed=self._watched.look(), window=self._window)
        if action is Action.RECONNECT:
            self.reconnections += 1
            logger.warning("%s; this worker connects to the broker again", self._describe(sample))
            self._reconnect()
        elif action is Action.GIVE_UP:
            self._periodic.cease()
            described = self._describe(sample)
            self._give_up(
                f"{sample.shortage}; {described}" if sample.shortage else f"{described} after connecting anew"
            )
        return action

    def _sample(self) -> Sample:
        """Take a sample cheaply: ask the database only if slots are idle, and the broker only if there is a backlog."""
        service = self._service
        sample = Sample(deliveries=service.counters.deliveries, idle_slots=service.idle_slots, stuck=service.stuck)
        if sample.idle_slots == 0 and not sample.stuck:
            return sample
        missing = missing_descriptor()
        if missing is not None:
            sample = replace(sample, shortage=explain_exhaustion(missing))
        if sample.idle_slots == 0:
            return sample
        try:
            sample = replace(sample, backlog=self._backlog())
        except HelixError:
            if missing is None:
                raise
            sample = replace(sample, backlog=None)
        if sample.backlog == 0 or missing is not None:
            return sample
        try:
            return replace(sample, messages=self._broker.depth())
        except UnreachableError:
            return sample

    def _backlog(self) -> int:
        with self._database.read() as c:
            backlog = max(0, publishing.backlog(c) - self._service.kept_waiting)
            # After changes by hand the counters may differ from the rows; no worker should end for that.
            return backlog if backlog and publishing.any_waits(c) else 0

    def _describe(self, sample: Sample) -> str:
        if sample.shortage and sample.stuck:
            jobs = counted(sample.stuck, "job")
            return f"{jobs} here cannot be claimed, begun or written down, none is computed, for {self._window:.0f} s"
        ids = "" if sample.messages is None else f" ({counted(sample.messages, 'id')} in the broker)"
        jobs = "" if sample.backlog is None else f"{counted(sample.backlog, 'job')} waiting in the database{ids}, "
        return f"{jobs}{counted(sample.idle_slots, 'slot')} idle, and nothing was delivered for {self._window:.0f} s"

    def _check_if_possible(self) -> None:
        try:
            self.check()
        except HelixError as error:
            # Without a database no job can be claimed, so no delivery is missed.
            self._stall = None
            logger.debug("watchdog: %s", error)
