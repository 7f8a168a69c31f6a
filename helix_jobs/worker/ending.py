"""WorkerEnding: carries out a worker's end. ``shutdown.react`` decides which actions follow an event.

No wait here is endless: each way out sets a time after which the process ends, whatever hangs.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ExhaustedError, HelixError
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.wording import counted
from helix_jobs.worker.hard_exit import HardExit
from helix_jobs.worker.shutdown import EXIT_FAILED, EXIT_INTERRUPTED, Action, Event, Shutdown, react

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.group_commit import GroupCommitWriter
    from helix_jobs.worker.job_service import WorkerService
    from helix_jobs.worker.stop_requests import StopRequests

logger = logging.getLogger(__name__)

INTERRUPT_SECONDS: Final = 8.0
HARD_EXIT_SECONDS: Final = 30.0
WRITER_SECONDS: Final = 10.0
# After the grace time: how long jobs may take to write their hand-back before the writer gives up.
HAND_BACK_SECONDS: Final = 5.0


class WorkerEnding:
    """Carries out one worker's end.

    Events come from any thread. The thread that calls ``supervise`` carries out their actions, in order. Only the
    deadline's timer acts on its own thread, as it may wait for the database.

    Args:
        requests: Stop requests, from signals and other callers.
        grace: Seconds that running jobs have to finish.
        may_exit: Whether the process is the worker's own and may be ended.

    Attributes:
        hard_exit: Ends the process without waiting.
    """

    def __init__(self, requests: StopRequests, grace: float, *, may_exit: bool) -> None:
        self.hard_exit = HardExit(is_allowed=may_exit)
        self._orders = requests.orders
        self._grace = grace
        self._state = Shutdown()
        # Held only while reacting, and never by a signal handler.
        self._lock = threading.Lock()
        self._deadline: threading.Timer | None = None
        self._stop_consuming: Callable[[], None]
        self._service: WorkerService
        self._writer: GroupCommitWriter

    def bind(self, service: WorkerService, writer: GroupCommitWriter) -> None:
        """Set the service whose jobs are handed back, and its writer. Both report to this object when they break."""
        self._service, self._writer = service, writer

    @property
    def state(self) -> Shutdown:
        """The state of the end."""
        return self._state

    def supervise(self, stop_consuming: Callable[[], None]) -> None:
        """Carry out every order until the consumer has ended; runs on a thread of its own."""
        self._stop_consuming = stop_consuming
        while (order := self._orders.get()) is not None:
            if isinstance(order, Event):
                self._see_to(order)
            else:
                self._perform(order)

    def consumer_ended(self) -> None:
        """The consumer is done; every pending write was committed, or never will be."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._orders.put(None)

    def stop(self) -> None:
        """Stop on request: finish the jobs that end within the grace time. May be called again."""
        self._orders.put(Event.STOP)

    def break_down(self, error: BaseException) -> None:
        """The worker cannot go on; stop it for a supervisor to start another."""
        event = Event.EXHAUSTED if isinstance(error, ExhaustedError) else Event.BROKEN
        self._fail(event, error)

    def leave_for_supervisor(self, why: str) -> None:
        """No job arrives or runs any more: fail once the rest is finished, for a supervisor to start anew."""
        self._fail(Event.UNSUPPLIED, why)

    def engine_hangs(self, why: str) -> None:
        """The engine hangs. Called by the dead man's switch, which must not wait for the log."""
        error = HelixError(f"{why}: an engine step takes too long, the device hangs")
        threading.Thread(target=self.break_down, args=(error,), name="helix-break", daemon=True).start()

    def at_once(self, why: str) -> None:
        """Some part hangs for good, so no orderly end is possible. Called by the dead man's switch."""
        self.hard_exit.now(why, EXIT_FAILED)
        self._orders.put(Event.BROKEN)

    def overdue(self) -> None:
        """The stop lasts longer than grace time and hand-back. Called by the deadline's timer."""
        self._see_to(Event.OVERDUE)

    def _fail(self, event: Event, why: BaseException | str) -> None:
        """React to a failure, and log it only if it is new: each job that met the same limit reports it."""
        # Queued together with the change of state, so that later events find both or neither; the log may block.
        with self._lock:
            before = self._state
            actions = self._react(event)
            after = self._state
            self._orders.put(actions)
        if (before.is_broken, before.gave_up) != (after.is_broken, after.gave_up):
            # Helix's own errors need no traceback; others do.
            trace = None if isinstance(why, HelixError | str) else why
            logger.critical("this worker cannot go on and stops: %s", why, exc_info=trace)

    def _react(self, event: Event) -> tuple[Action, ...]:
        """Apply an event under the lock; return its actions."""
        self._state, actions = react(self._state, event)
        return actions

    def _see_to(self, event: Event) -> None:
        with self._lock:
            actions = self._react(event)
        self._perform(actions)

    def _perform(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            try:
                self._do(action)
            except RuntimeError:  # no thread is left for a timer
                self._see_to(Event.NO_THREAD)

    def _do(self, action: Action) -> None:
        match action:
            case Action.DRAIN:
                self._service.begin_drain()
            case Action.HAND_BACK:
                self._service.hand_back()
            case Action.ABANDON:
                self._service.abandon()
            case Action.STOP_CONSUMING:
                self._stop_consuming()
            case Action.SET_DEADLINE:
                self._deadline = threading.Timer(self._grace + HAND_BACK_SECONDS, self.overdue)
                self._deadline.daemon = True
                self._deadline.start()
            case Action.FIND_CAUSE:
                self._find_cause()
            case Action.CLOSE_WRITER:
                self._writer.close(WRITER_SECONDS)
            case limit:
                self.hard_exit.after(*self._limit(limit))

    def _limit(self, action: Action) -> tuple[float, int]:
        """After how many seconds the process ends, and its exit code."""
        match action:
            case Action.LIMIT_INTERRUPTED:
                return INTERRUPT_SECONDS, EXIT_INTERRUPTED
            case Action.LIMIT_UNSUPPLIED:  # Celery's loop may hang
                return self._grace + HAND_BACK_SECONDS + HARD_EXIT_SECONDS, EXIT_FAILED
            case Action.LIMIT_OVERDUE:  # every part may be in a call to the database that takes ten seconds to fail
                return 2 * HARD_EXIT_SECONDS, EXIT_FAILED
            case _:
                return HARD_EXIT_SECONDS, EXIT_FAILED

    def _find_cause(self) -> None:
        """Stop without the database if it does not answer; any other wait may still end."""
        why = self._writer.trouble or explain_missing_descriptor() or self._try_database()
        if why:
            logger.error("this worker stops without the database; the next worker takes over its leased jobs: %s", why)
            self._see_to(Event.NO_DATABASE)
        elif jobs := self._service.active_count:
            logger.warning("the stop still waits for %s to be handed back", counted(jobs, "job"))
        else:
            logger.warning("no job is left, and the stop still waits for Celery's consumer to end")

    def _try_database(self) -> str:
        """Why the database takes no writes, found by a test write, as it may hang silently; empty if it takes one."""
        try:
            written = self._writer.submit(lambda _: None)
        except HelixError:
            return ""  # the writer is closed, so the worker has ended meanwhile
        wait([written], HAND_BACK_SECONDS)
        return "" if written.done() and written.exception() is None else "it takes no writes"
