"""run_worker: the whole life of a worker process, from the device lock to the exit code.

Order matters. The cheap checks come first (device, database, broker), then the models are loaded, and only then does
Celery take its first message.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import interactive_slots
from helix_jobs.broker.publisher import (
    CeleryPublisher,
    EmbeddedBroker,
    ProbingPublisher,
    QueueNames,
    broker_url,
    ping,
    read_queue_names,
)
from helix_jobs.broker.stranded_messages import stranded
from helix_jobs.engine.loading.open_engine import memory_in_use
from helix_jobs.errors import HelixError
from helix_jobs.notify.notifier import Notifier
from helix_jobs.notify.thread import NotifierThread
from helix_jobs.observability.rounds import Rounds
from helix_jobs.opening_hours import OpeningHours
from helix_jobs.redaction import redact
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.storage import retries
from helix_jobs.storage.database import Database
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.storage.migration import ensure_schema
from helix_jobs.storage.process_identity import here
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits
from helix_jobs.worker import ending, engine_thread, model_digests, moot_messages
from helix_jobs.worker import rest as rest_rules
from helix_jobs.worker.answer_setup import answer_setup
from helix_jobs.worker.answer_streams import AnswerStreams
from helix_jobs.worker.audit import read_known_ids
from helix_jobs.worker.banner import WorkerBanner
from helix_jobs.worker.consumer_loop import ConsumerLoop
from helix_jobs.worker.dead_man import DeadMansSwitch, Limit
from helix_jobs.worker.ending import WorkerEnding
from helix_jobs.worker.figures import QueueReader, WorkerFigures, worker_figures
from helix_jobs.worker.gate import JobGate
from helix_jobs.worker.heartbeat import Heartbeat, worker_row
from helix_jobs.worker.job_service import WorkerService
from helix_jobs.worker.model_digests import ModelDigests
from helix_jobs.worker.moot_messages import MootMessages
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.reconciler import Reconciler
from helix_jobs.worker.setup import worker_setup
from helix_jobs.worker.shared_broker import clear_stranded, leave_broker, revive_broker
from helix_jobs.worker.shutdown import EXIT_INTERRUPTED, EXIT_OK
from helix_jobs.worker.stop_requests import StopRequests, install_signals
from helix_jobs.worker.stranded_messages import send_again
from helix_jobs.worker.thread_limit import check_threads
from helix_jobs.worker.watchdog import Watchdog
from helix_jobs.worker.workplace import LOCK_CHECK_SECONDS, Workplace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.settings import Settings
    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.worker.metrics import MetricsServer
    from helix_jobs.worker.rest import Rest

__all__ = ["StopRequests", "run_worker"]

logger = logging.getLogger(__name__)

ENGINE_SECONDS: Final = 10.0
BROKER_CHECK_SECONDS: Final = 2.0


def run_worker(
    settings: Settings,
    *,
    time_limits: TimeLimits = DEFAULT_TIME_LIMITS,
    allow_shared_device: bool = False,
    on_progress: Callable[[str], None] | None = None,
    on_ready: Callable[[WorkerBanner], None] | None = None,
    stop: StopRequests | None = None,
    handle_signals: bool = True,
    rest: Callable[[], Rest | None] = lambda: None,
    workplace: Workplace | None = None,
) -> int:
    """Run a worker until it is told to stop; return the process's exit code.

    SIGTERM, or Ctrl-C once: take no more jobs, finish what finishes within HELIX_SHUTDOWN_GRACE, hand the rest back to
    the queue, exit 0. Ctrl-C twice: hand everything back now, exit 130. A broken engine, or a broker that delivers
    nothing: exit 1, for a supervisor to start a new process.

    Args:
        settings: The effective settings, flags included.
        time_limits: The spans of time.
        allow_shared_device: Run even if another worker holds the device; ``workplace`` says so itself.
        on_progress: Called with one line for each step until the worker is ready.
        on_ready: Called once, before the first message is taken; by default the banner is logged.
        stop: Another way to stop the worker than signals.
        handle_signals: False when this is not the main thread; then a second interrupt ends this function, not the
            process.
        rest: Says whether the worker must rest. Then it stops as after SIGTERM, and ``stop`` has the rest; ``shifts``
            starts the next worker.
        workplace: The device, perhaps with models on it. They stay there when the worker stops for a rest that keeps
            them.

    Raises:
        HelixError: The worker cannot start; nothing was taken from the queue.
    """
    requests = stop or StopRequests()
    with ExitStack() as stack:
        if handle_signals:
            install_signals(requests, stack)
        try:
            requests.armed = False
            if requests.is_final:  # a stop that came between two workers
                return EXIT_OK
            place = workplace or Workplace(settings, allow_shared=allow_shared_device)
            worker = _Worker(settings, time_limits, requests, stack, place, may_exit=handle_signals, rest=rest)
            worker.prepare(on_progress=on_progress)
            requests.armed = True
        except KeyboardInterrupt:
            logger.info("the worker was stopped before it was ready")
            return EXIT_INTERRUPTED
        banner = worker.start()
        if on_ready is None:
            logger.info("ready: %s", ", ".join(f"{label} {value}" for label, value in banner.lines()))
        else:
            on_ready(banner)
        exit_code = worker.consume()
        with worker.ending.hard_exit.unless_within(ending.HARD_EXIT_SECONDS, exit_code):
            stack.close()
        worker.ending.hard_exit.cancel()
        return exit_code


class _Worker:
    """The parts of a running worker. Each step of its start pushes its own undo onto ``stack``."""

    def __init__(
        self,
        settings: Settings,
        time_limits: TimeLimits,
        requests: StopRequests,
        stack: ExitStack,
        workplace: Workplace,
        *,
        may_exit: bool,
        rest: Callable[[], Rest | None],
    ) -> None:
        self._settings = settings
        self._requests = requests
        self._rest = rest
        self._time_limits = time_limits
        self._stack = stack
        self.ending = WorkerEnding(requests, settings.shutdown_grace, may_exit=may_exit)
        self._hostname = socket.gethostname()
        self._worker_id = f"{self._hostname[:40]}-{os.getpid()}-{token_hex(3)}"
        self._database = Database(settings.database_url, time_limits)
        self._embedded = None if settings.redis_url is not None else EmbeddedBroker(settings.home)
        self._names: QueueNames
        self._publisher: CeleryPublisher
        self._reconciler: Reconciler
        self._workplace = workplace
        self._engine: EngineProtocol
        self._answer_setup: AnswerSetup | None = None
        self._service: WorkerService
        self._writer: GroupCommitWriter
        self._metrics: MetricsServer | None = None
        self._watchdog: Watchdog
        self._consuming: ConsumerLoop
        self._notifier: Notifier
        self._rounds = Rounds()

    def prepare(self, *, on_progress: Callable[[str], None] | None) -> None:
        """Make the cheap checks, then load the models."""
        # Imported before any thread exists: two threads that enter Celery's and kombu's circular imports at different
        # ends break each other.
        importlib.import_module("helix_jobs.broker.celery.consumer")
        importlib.import_module("helix_jobs.broker.celery.task")
        importlib.import_module("helix_jobs.broker.celery.transport")
        self._settings.make_home()
        self._workplace.occupy()
        self._stack.callback(self._leave)
        self._stack.callback(self._database.dispose)
        self._notifier = Notifier.of(self._database, self._settings)
        ensure_schema(self._database)
        self._names = read_queue_names(self._database)
        self._publisher = CeleryPublisher(broker_url(self._settings), self._names)
        self._stack.callback(self._publisher.close)
        self._reconciler = Reconciler(
            self._database,
            self._publisher,
            worker_id=self._worker_id,
            time_limits=self._time_limits,
            rounds=self._rounds,
            known_ids=partial(read_known_ids, self._publisher),
            stranded=stranded,
            hours=None if self._settings.hours is None else OpeningHours.parse(self._settings.hours),
            setup=lambda: self._answer_setup,
        )
        if self._embedded is None:
            ping(self._publisher.url)
            self._publisher.check_keys()
            self._publisher.probe()
        else:
            self._stack.callback(leave_broker, self._embedded)
            self._embedded.start()
        if self._settings.metrics_port is not None:
            from helix_jobs.worker.metrics import MetricsServer

            self._metrics = MetricsServer(self._settings.metrics_host, self._settings.metrics_port)
            self._stack.callback(self._metrics.close)
        self._engine = self._workplace.engine(on_progress)
        # As many threads as the batch has slots, even if the device chose the number of slots.
        self._settings = replace(self._settings, max_batch_size=self._engine.info.max_batch_size)
        slots = self._engine.info.max_batch_size
        check_threads(slots, interactive_slots(self._settings.interactive_slots, slots))
        self._consuming = ConsumerLoop(self._settings, self._names, self._hostname, self.ending)

    def start(self) -> WorkerBanner:
        """Start everything but Celery. The parts stop in the order: reconciler, engine, writer, heartbeat."""
        info = self._engine.info
        setup = worker_setup(self._settings, info)
        row = worker_row(self._worker_id, self._hostname, info, setup)
        rounds = self._rounds
        switch = DeadMansSwitch(
            rounds,
            [self._database.calls],
            close=self._time_limits.close_call,
            limit=Limit(self._time_limits.end_process, self.ending.at_once),
            limits={engine_thread.LOOP: Limit(self._time_limits.longest_step, self.ending.engine_hangs)},
        )
        self._stack.callback(switch.stop)
        self._writer = writer = GroupCommitWriter(self._database, rounds=rounds)
        self._service = WorkerService(
            self._database,
            self._engine,
            writer,
            worker_id=self._worker_id,
            grace=self._settings.shutdown_grace,
            on_broken=self.ending.break_down,
            job_timeout=self._settings.job_timeout,
            gate=JobGate(self._time_limits.solitude),
            rounds=rounds,
            growth=self._answer_streams(),
            setup=lambda: self._answer_setup,
        )
        self.ending.bind(self._service, writer)
        self._watchdog = Watchdog(
            self._database,
            ProbingPublisher(self._publisher.url, self._names),
            self._service,
            reconnect=self._reconnect,
            give_up=self.ending.leave_for_supervisor,
            window=self._time_limits.watchdog_window,
            interval=self._time_limits.watchdog_look,
            rounds=rounds,
        )
        heartbeat = Heartbeat(
            self._database,
            row,
            self._service,
            time_limits=self._time_limits,
            rounds=rounds,
            installation=self._names.installation,
            on_replaced=self.ending.break_down,
            stranded=stranded,
        )
        moot = MootMessages(
            self._database,
            CeleryPublisher(self._publisher.url, self._names),
            lambda: self._service.counters.void_messages,
        )
        self._stack.callback(moot.close)
        self._describe(setup)
        digests = ModelDigests(self._settings, setup, lambda found: self._describe(found, heartbeat))
        duties = [
            Periodic("model-digests", digests.look, model_digests.LOOK_SECONDS, at_once=True),
            Periodic("moot-messages", moot.look, moot_messages.LOOK_SECONDS),
            Periodic("device-lock", self._workplace.lock.keep, LOCK_CHECK_SECONDS),
            Periodic("rest", self._look_for_rest, rest_rules.LOOK_SECONDS),
            Periodic("postponed-jobs", self._service.send_postponed, self._time_limits.postponed),
        ]
        if self._embedded is not None:
            duties.append(Periodic("embedded-broker", self._keep_broker, BROKER_CHECK_SECONDS))
        # It ends last: what the others wrote as they ended may be an end of a batch.
        self._stack.callback(NotifierThread(self._notifier).close)
        self._stack.callback(heartbeat.stop)
        self._stack.callback(self._count_attempts)
        self._stack.callback(lambda: writer.close(ending.WRITER_SECONDS))
        self._stack.callback(self._end_engine)
        self._stack.callback(self._reconciler.stop)
        self._stack.callback(self._watchdog.stop)
        for duty in duties:
            self._stack.callback(duty.stop)
        if self._embedded is not None:
            self._embedded.start()  # it may have died while the models were loading
        self._service.start()
        heartbeat.start()
        self._reconciler.reclaim_predecessors(here())
        clear_stranded(self._database, self._publisher, self._worker_id)
        self._reconciler.start()
        self._watchdog.start()
        for duty in duties:
            duty.start()
        switch.start()
        if self._metrics is not None:
            queue = QueueReader(self._settings.database_url, self._time_limits)
            self._stack.callback(queue.close)
            self._metrics.show(lambda: self._figures(writer), queue)
        return WorkerBanner(
            worker_id=self._worker_id,
            engine=info,
            broker=f"embedded, {self._embedded.socket_path}" if self._embedded else redact(self._publisher.url),
            database=self._database.url_redacted,
            metrics=None if self._metrics is None else self._metrics.url,
        )

    def consume(self) -> int:
        """Take jobs until the worker is told to stop; returns the exit code."""
        return self._consuming.run(self._service)

    def _keeps_models(self) -> bool:
        """Whether the worker ends for a pause, and in order."""
        rest = self._requests.rest
        is_pause = rest is not None and rest.keeps_models and not self._requests.is_final
        return is_pause and self.ending.state.exit_code == EXIT_OK

    def _end_engine(self) -> None:
        if not self._service.stop(1.0 if self.ending.state.is_interrupted else ENGINE_SECONDS):
            self._workplace.forget_engine()
        elif not (self._keeps_models() and self._service.engine.clear()):
            self._workplace.close_engine()

    def _leave(self) -> None:
        if not (self._keeps_models() and self._workplace.has_models):
            self._workplace.leave()

    def _reconnect(self) -> None:
        """Have Celery connect to the broker anew; running jobs go on."""
        self._consuming.reconnect()
        self._reconciler.wake()

    def _count_attempts(self) -> None:
        """After a break: the jobs in the engine may be its cause, so their attempts count, unlike at a hand-back."""
        if self.ending.state.is_broken:
            try:
                # A reclaimed worker counts as stopped, so both writes are one transaction, as at an orderly end.
                send_again(stranded, self._database, lambda c: retries.reclaim(c, self._worker_id, datetime.now(UTC)))
            except HelixError as error:
                logger.warning("this worker's leases stay until another worker reclaims them: %s", error)

    def _answer_streams(self) -> AnswerStreams | None:
        """What shows growing answers to servers; a broker in this process's memory has no listeners."""
        if self._publisher.url == MEMORY_URL:
            return None
        streams = AnswerStreams(CeleryPublisher(self._publisher.url, self._names))
        self._stack.callback(streams.close)
        return streams

    def _describe(self, setup: Mapping[str, Any], heartbeat: Heartbeat | None = None) -> None:
        """Note what answers depend on here; in the worker's row, too, once more of it is known."""
        if heartbeat is not None:
            heartbeat.describe(setup)
        self._answer_setup = answer_setup(setup, self._settings.answer_cache)

    def _figures(self, writer: GroupCommitWriter) -> WorkerFigures:
        memory = memory_in_use(self._settings)
        return worker_figures(self._service, self._reconciler, self._watchdog, writer, memory)

    def _look_for_rest(self) -> None:
        if (rest := self._rest()) is not None:
            if self._requests.rest is None:
                logger.info("this worker stops for a rest: %s", rest.in_words)
            self._requests.request_rest(rest)

    def _keep_broker(self) -> None:
        if self._embedded is not None and revive_broker(self._database, self._embedded):
            self._reconciler.wake()
