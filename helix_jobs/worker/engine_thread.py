"""EngineThread: the one thread that drives the engine. Other threads put requests and aborts into its inbox."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import (
    DeadlineError,
    EngineBrokenError,
    EngineError,
    ExhaustedError,
    HelixError,
    RequestError,
    without_text,
)
from helix_jobs.exhaustion import explain_exhaustion, is_exhaustion, is_shortage
from helix_jobs.observability.rounds import Rounds
from helix_jobs.worker.engine_run import Generated, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.protocol import EngineCounters, EngineProtocol
    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.worker.engine_run import GrowthReader, Run, RunRecorder

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS: Final = 3
RUN_SECONDS: Final = 60.0
# The first run is short, so that forecasts soon know what tokens and prompts cost.
FIRST_RUN_SECONDS: Final = 10.0
# One group commit lies between a finished batch and the next claims; the run goes on across it.
LINGER_SECONDS: Final = 0.5
# The longest an idle thread waits before it comes round.
IDLE_SECONDS: Final = 10.0
# A step or two return what was aborted, or has failed.
_CLEARING_STEPS: Final = 3
# The thread's name among the watched loops.
LOOP: Final = "engine"
# A step counts at most this many seconds towards a job's deadline, so that a suspended device, process or machine
# expires no job. Trade-off: where every step takes longer than this, deadlines come late.
LONGEST_COUNTED_STEP: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Add:
    request: EncodedRequest
    settle: Callable[[Generated | RequestFailed], object]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Stop:
    """The last message in the inbox."""


class EngineThread:
    """Adds and aborts requests between steps, steps while there is work, and settles the requests that end.

    Args:
        engine: Driven by this thread alone, apart from ``encode``.
        recorder: Told where runs begin and end.
        on_broken: Called from this thread when it ends unasked. With ``ExhaustedError`` no request is to blame, and all
            are handed back; with any other error their attempts count.
        rounds: Counts this thread's rounds, one between two steps, for the dead man's switch.
        job_timeout: Seconds of steps a request may take part in; then it is aborted and fails. Waiting for a slot, or
            after a preemption, does not count. None: no limit.
        growth: Is shown answers while they grow; None where nobody reads them.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        recorder: RunRecorder,
        on_broken: Callable[[BaseException], None],
        *,
        job_timeout: float | None = None,
        rounds: Rounds | None = None,
        growth: GrowthReader | None = None,
    ) -> None:
        self._engine = engine
        self._growth = growth
        self._rounds = rounds or Rounds()
        self._recorder = recorder
        self._on_broken = on_broken
        self._job_timeout = job_timeout
        self._inbox: queue.SimpleQueue[_Add | _Abort | _Stop] = queue.SimpleQueue()
        # Request id -> the message that brought it. The number of choices that these requests ask for stands beside it,
        # for other threads to read.
        self._held: dict[str, _Add] = {}
        self._num_choices = 0
        self._thread = threading.Thread(target=self._main, name="helix-engine", daemon=True)
        # Request id -> seconds of steps so far; kept only if there is a deadline.
        self._ran: dict[str, float] = {}
        self._failed_steps = 0
        self._counters = engine.counters()
        self._completion_tokens = self._counters.completion_tokens
        self._idle_seconds = 0.0
        self._idle_since: float | None = None
        self._run: Run | None = None
        self._longest_run = FIRST_RUN_SECONDS
        self._busy_at = 0.0
        # When the step before the next one ended; None where the engine has had nothing to do since.
        self._lap: float | None = None
        self._jobs_finished = 0

    @property
    def counters(self) -> EngineCounters:
        """The engine's totals after its latest step."""
        return self._counters

    @property
    def request_count(self) -> int:
        """Requests in the engine, running or waiting for a slot."""
        return len(self._held)

    @property
    def choice_count(self) -> int:
        """Choices that these requests ask for, each of which takes a batch slot of its own."""
        return self._num_choices

    @property
    def idle_seconds(self) -> float:
        """How long the engine has had nothing to do since the start."""
        since, total = self._idle_since, self._idle_seconds
        return total if since is None else total + time.monotonic() - since

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens over the time of the run under way; 0 when there is none."""
        run, now = self._run, time.monotonic()
        if run is None or now <= run.began:
            return 0.0
        return (self._counters.completion_tokens - run.counters.completion_tokens) / (now - run.began)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: EncodedRequest, settle: Callable[[Generated | RequestFailed], object]) -> None:
        """Queue an encoded request; the engine's thread calls ``settle`` once with the request's end."""
        self._inbox.put(_Add(request, settle))

    def abort(self, request_id: str) -> None:
        """End a request early; unknown ids are ignored."""
        self._inbox.put(_Abort(request_id))

    def stop(self, timeout: float) -> bool:
        """Ask the thread to end after the step under way; False if that takes longer than ``timeout`` seconds."""
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def clear(self) -> bool:
        """End what the engine still holds, once the thread has ended; returns whether another thread may take it over.

        Nobody waits for these requests: their jobs were handed back.
        """
        assert not self._thread.is_alive(), "the engine has one thread"
        try:
            for request_id in list(self._held):
                self._engine.abort(request_id)
                self._let_go(request_id)
            for _ in range(_CLEARING_STEPS):
                if not self._engine.has_unfinished():
                    return True
                self._engine.step()
        except Exception as error:
            logger.warning("the engine is not kept", exc_info=without_text(error))
        return False

    def _main(self) -> None:
        try:
            with self._rounds.watched(LOOP) as came_round:
                while self._take_in():
                    came_round()
                    if self._engine.has_unfinished():
                        self._step()
                    self._cut_run()
        except BaseException as error:  # the worker must learn of any error that ends the engine
            if is_exhaustion(error):
                logger.error("the engine met a limit of the system", exc_info=without_text(error))  # noqa: TRY400
                self._on_broken(ExhaustedError(explain_exhaustion(error)))
            elif isinstance(error, MemoryError):
                logger.error("the engine got no memory", exc_info=without_text(error))  # noqa: TRY400
                self._on_broken(EngineBrokenError(explain_exhaustion(error)))
            else:
                self._on_broken(error if isinstance(error, HelixError) else without_text(error))
        finally:
            if self._run is not None:
                self._end_run()

    def _take_in(self) -> bool:
        """Empty the inbox, waiting only if the engine has nothing to do; False when told to stop."""
        wait = not self._engine.has_unfinished()
        while True:
            try:
                message = self._receive() if wait else self._inbox.get_nowait()
            except queue.Empty:
                return True
            wait = False
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Abort):
                self._engine.abort(message.request_id)
            else:
                self._add(message)

    def _receive(self) -> _Add | _Abort | _Stop:
        """Wait for a message; with an open run at most as long as it may linger. The wait counts as idle time."""
        self._idle_since = began = time.monotonic()
        self._lap = None
        try:
            return self._inbox.get(timeout=LINGER_SECONDS if self._run is not None else IDLE_SECONDS)
        finally:
            self._idle_since = None
            self._idle_seconds += time.monotonic() - began

    def _add(self, message: _Add) -> None:
        try:
            self._engine.add_request(message.request)
        except RequestError as error:
            message.settle(RequestFailed(error))
        except Exception as error:
            if is_shortage(error):
                raise
            logger.error(  # noqa: TRY400  (see without_text)
                "the engine refused a request",
                extra={"job_id": message.request.request_id},
                exc_info=without_text(error),
            )
            message.settle(RequestFailed(_engine_error(error)))
        else:
            self._held[message.request.request_id] = message
            self._num_choices += message.request.sampling_params.n

    def _let_go(self, request_id: str) -> Callable[[Generated | RequestFailed], object] | None:
        """Forget a request and return who is to be told of its end; None if it was forgotten before."""
        message = self._held.pop(request_id, None)
        if message is None:
            return None
        self._num_choices -= message.request.sampling_params.n
        if message.request.stream is not None and self._growth is not None:
            self._growth.forget(request_id)
        return message.settle

    def _step(self) -> None:
        now = time.monotonic()
        if self._run is None:
            self._run, self._jobs_finished = self._recorder.begin(self._engine.counters()), 0
        try:
            results = self._engine.step()
        except EngineBrokenError:
            raise  # step after step has failed: the engine's requests are left to be reclaimed
        except Exception as error:
            if is_shortage(error):
                raise
            self._step_failed(error)
            self._counters, self._lap = self._engine.counters(), None
            return
        finally:
            self._busy_at = time.monotonic()
        ended = sum(result.finish_reason is not FinishReason.ABORTED for result in results)
        before, self._counters = self._counters, self._engine.counters()
        # What the thread does between two steps counts with the second: jobs wait for that as well.
        self._run.costs.add_step(before, self._counters, self._busy_at - (now if self._lap is None else self._lap))
        self._lap = self._busy_at
        completion_tokens = self._counters.completion_tokens
        if ended or completion_tokens > self._completion_tokens:
            # Only progress resets the count: a step may merely clear up after the failed one.
            self._failed_steps = 0
        self._completion_tokens = completion_tokens
        self._jobs_finished += ended
        for result in results:
            self._ran.pop(result.request_id, None)
            settle = self._let_go(result.request_id)
            if settle is not None:
                settle(Generated(result, self._run))
        if self._growth is not None:
            self._growth.take(self._engine.partials())
        self._enforce_deadline(self._busy_at - now)

    def _enforce_deadline(self, step_seconds: float) -> None:
        """Add a step's seconds to each request that was in it, and end the requests whose time is up.

        A step that never returns is the device's failure, not a request's: see ``dead_man``.
        """
        if self._job_timeout is None:
            return
        for request_id in self._engine.running():
            ran = self._ran[request_id] = self._ran.get(request_id, 0.0) + min(step_seconds, LONGEST_COUNTED_STEP)
            settle = self._let_go(request_id) if ran > self._job_timeout else None
            if settle is not None:
                self._engine.abort(request_id)
                settle(
                    RequestFailed(
                        DeadlineError(
                            f"the job ran for {ran:.0f} s and a job may run for {self._job_timeout:g} s; raise "
                            "HELIX_JOB_TIMEOUT or lower max_tokens, then `retry` runs it again"
                        )
                    )
                )

    def _step_failed(self, error: Exception) -> None:
        """Fail every request in the engine, as any of them may be the cause, and go on with later ones.

        Trade-off: failing them all loses good requests to a bad neighbour (``retry`` runs them again). Handing them
        back would let one poisonous request fail its neighbours three times.

        Raises:
            EngineBrokenError: Step after step fails. The jobs in the engine are left to be reclaimed.
        """
        self._failed_steps += 1
        logger.error(
            "an engine step failed; %d requests end with engine_error",
            len(self._held),
            exc_info=without_text(error),
        )
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise EngineBrokenError(f"{MAX_FAILED_STEPS} engine steps in a row failed; see the log") from without_text(
                error
            )
        self._ran.clear()
        for request_id in list(self._held):
            self._engine.abort(request_id)
            if (settle := self._let_go(request_id)) is not None:
                settle(RequestFailed(_engine_error(error)))

    def _cut_run(self) -> None:
        if self._run is None:
            return
        idle = not self._engine.has_unfinished() and time.monotonic() - self._busy_at >= LINGER_SECONDS
        if idle or time.monotonic() - self._run.began >= self._longest_run:
            self._longest_run = RUN_SECONDS
            self._end_run()

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            idle_seconds = max(0.0, time.monotonic() - self._busy_at)
            self._recorder.end(
                run, self._engine.counters(), jobs_finished=self._jobs_finished, idle_seconds=idle_seconds
            )


def _engine_error(error: Exception) -> EngineError:
    """Name the error's kind only: a library's message may quote the prompt."""
    return EngineError(f"{type(error).__name__} in the engine; the worker's log has the details, `retry` runs it again")
