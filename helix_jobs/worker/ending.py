"""WorkerEnding: why and how a worker ends. Who asks, who finds it broken, what is waited for, and the exit code.

Nothing here waits without an end: each way out sets a time after which the process ends, whatever hangs.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ExhaustedError, HelixError
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.worker.hard_exit import HardExit
from helix_jobs.worker.runs import counted
from helix_jobs.worker.stop_button import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.group_commit import GroupCommitWriter
    from helix_jobs.worker.service import WorkerService
    from helix_jobs.worker.stop_button import StopButton

logger = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

INTERRUPT_SECONDS: Final = 8.0
HARD_EXIT_SECONDS: Final = 30.0
WRITER_SECONDS: Final = 10.0
# After the grace time: how long jobs may take to write down their hand-back before the writer gives up.
HAND_BACK_SECONDS: Final = 5.0


class WorkerEnding:
    """One worker's end.

    Args:
        button: What is asked of the worker, by signals and others.
        grace: Seconds that running jobs have to finish.
        may_exit: Whether the process is the worker's own.

    Attributes:
        hard_exit: The way out that waits for nobody.
        is_stopping: It was asked for, by whomever.
        is_interrupted: By Ctrl-C, twice.
        is_broken: The engine cannot go on, and what it worked on may be why.
    """

    def __init__(self, button: StopButton, grace: float, *, may_exit: bool) -> None:
        self.hard_exit = HardExit(is_allowed=may_exit)
        self.is_stopping = self.is_interrupted = self.is_broken = False
        self._button = button
        self._grace = grace
        self._gave_up = False
        self._timer: threading.Timer | None = None
        self._service: WorkerService
        self._writer: GroupCommitWriter

    def bind(self, service: WorkerService, writer: GroupCommitWriter) -> None:
        """Say whose jobs are to be handed back, through which writer. Both tell this object when they break."""
        self._service, self._writer = service, writer

    @property
    def exit_code(self) -> int:
        """What the process is to end with, when its consumer has ended."""
        if self.is_broken or self._gave_up:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self.is_interrupted else EXIT_OK

    def supervise(self, stop_consuming: Callable[[], None]) -> None:
        """Act on stop requests until the consumer has ended; on a thread of its own."""
        while (request := self._button.requests.get()) is not None:
            try:
                self._act(request)
            except RuntimeError:  # no thread is left for a timer, and nothing else would end the grace time
                self._service.hand_back()
            stop_consuming()

    def consumer_ended(self) -> None:
        """The consumer is done; what is to be written was written, or never will be."""
        if self._timer is not None:
            self._timer.cancel()
        self._button.requests.put(None)

    def stop(self) -> None:
        """Somebody wishes it, by whatever way; finish what finishes within the grace time. May be called again."""
        self._button.press(StopRequest.GRACEFUL)

    def break_down(self, error: BaseException) -> None:
        """The worker cannot go on; stop it for a supervisor to start another."""
        if isinstance(error, ExhaustedError):
            self._service.hand_back()
            self.leave_for_supervisor(str(error))
        elif not self.is_broken:
            self.is_broken = True
            # What Helix raises says it all; of anything else the place matters.
            trace = None if isinstance(error, HelixError) else error
            logger.critical("this worker cannot go on and stops: %s", error, exc_info=trace)
            self._button.press(StopRequest.BROKEN)

    def leave_for_supervisor(self, why: str) -> None:
        """No job comes or runs any more; finish what runs and end with a failure, for a supervisor to start another."""
        if self._gave_up:
            return  # each job that met the same limit says so
        self._gave_up = True
        logger.critical("this worker cannot go on and stops: %s", why)
        self.stop()
        # Celery's loop may be what hangs.
        self.hard_exit.after(self._grace + HAND_BACK_SECONDS + HARD_EXIT_SECONDS, EXIT_FAILED)

    def engine_hangs(self, why: str) -> None:
        """Called by the dead man's switch, which must not wait for the log."""
        error = HelixError(f"{why}: an engine step takes too long, the device hangs")
        threading.Thread(target=self.break_down, args=(error,), name="helix-break", daemon=True).start()

    def at_once(self, why: str) -> None:
        """Called by the dead man's switch: some part hangs for good, so nothing can be ended in order."""
        self.hard_exit.now(why, EXIT_FAILED)
        self._button.press(StopRequest.BROKEN)

    def _act(self, request: StopRequest) -> None:
        if request is StopRequest.BROKEN:
            self.is_stopping = True
            self._service.abandon()
            self.hard_exit.after(HARD_EXIT_SECONDS, EXIT_FAILED)
        elif not self.is_stopping:
            self.is_stopping = True
            self._service.begin_drain()
            self._give_up_after(self._grace + HAND_BACK_SECONDS)
        elif request is StopRequest.INTERRUPT and not self.is_interrupted:
            self.is_interrupted = True
            self._service.hand_back()
            self.hard_exit.after(INTERRUPT_SECONDS, EXIT_INTERRUPTED)

    def _give_up_after(self, seconds: float) -> None:
        """Make sure a stop ends although the database takes no writes; jobs wait for their hand-back for ever."""
        self._timer = threading.Timer(seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        """Stop without the database if that is what does not answer; whatever else is waited for may still come."""
        # Twice: every part may be in a call to the database that takes ten seconds to fail.
        self.hard_exit.after(2 * HARD_EXIT_SECONDS, EXIT_FAILED)
        why = self._writer.trouble or explain_missing_descriptor() or self._try_database()
        if why:
            self._gave_up = True
            logger.error("stopping without the database; the next worker takes over what is leased: %s", why)
            self._writer.close(WRITER_SECONDS)
        elif jobs := self._service.active_count:
            logger.warning("the stop still waits for %s to be handed back", counted(jobs, "job"))
        else:
            logger.warning("no job is left, and the stop still waits for Celery's consumer to end")

    def _try_database(self) -> str:
        """Why the database takes no writes: it may hang without a word; empty where it takes one."""
        try:
            written = self._writer.submit(lambda _: None)
        except HelixError:
            return ""  # the writer is closed, so the worker has ended meanwhile
        wait([written], HAND_BACK_SECONDS)
        return "" if written.done() and written.exception() is None else "it takes no writes"
