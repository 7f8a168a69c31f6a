"""ConsumerLoop: keeps Celery's consumer up until the worker is told to stop."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from helix_jobs.broker.celery.consumer import Consumer
    from helix_jobs.broker.publisher import QueueNames
    from helix_jobs.settings import Settings
    from helix_jobs.worker.ending import WorkerEnding
    from helix_jobs.worker.job_service import WorkerService

logger = logging.getLogger(__name__)

# A consumer that lasted this long was sound; its failure counts as a first one.
SOUND_SECONDS: Final = 60.0
MAX_FAILURES: Final = 5
PAUSE_SECONDS: Final = 1.0


class ConsumerLoop:
    """Runs Celery's consumer, and another one where a consumer ends unasked. The models stay loaded meanwhile.

    Args:
        settings: The effective settings. A consumer has as many threads as they have batch slots.
        names: The names of this installation's queues.
        hostname: The name of this host.
        ending: Decides when the worker stops, and with which exit code.
    """

    def __init__(self, settings: Settings, names: QueueNames, hostname: str, ending: WorkerEnding) -> None:
        self._settings = settings
        self._names = names
        self._hostname = hostname
        self._ending = ending
        self._consumer: Consumer | None = None

    def run(self, service: WorkerService) -> int:
        """Have ``service`` run jobs until the worker is told to stop; returns the exit code."""
        from helix_jobs.broker.celery.consumer import stop_consuming
        from helix_jobs.broker.celery.service import bind_service
        from helix_jobs.broker.celery.transport import rejections

        supervisor = threading.Thread(
            target=self._ending.supervise, args=(stop_consuming,), name="helix-supervisor", daemon=True
        )
        bind_service(service)
        supervisor.start()
        failures = 0
        try:
            while True:
                began = time.monotonic()
                if self._consume_once():
                    break
                # A malformed message can end Celery's loop.
                failures = 1 if time.monotonic() - began > SOUND_SECONDS else failures + 1
                if failures > MAX_FAILURES:
                    self._ending.break_down(HelixError("Celery's consumer does not stay up"))
                    break
                logger.error("Celery's consumer ended unexpectedly; starting it again")
                # Descriptors, threads or memory may be available again soon.
                time.sleep(PAUSE_SECONDS * (failures - 1))
                service.resume()
                if self._ending.state.is_stopping:  # a stop came in that pause, and resume undid it
                    service.begin_drain()
        finally:
            rejections.close()
            bind_service(None)
            self._ending.consumer_ended()
        return self._ending.state.exit_code

    def reconnect(self) -> None:
        """Have the consumer, if there is one, connect to the broker anew. Running jobs go on."""
        if self._consumer is not None:
            self._consumer.reconnect()

    def _consume_once(self) -> bool:
        """Run one consumer to its end; return whether that end was requested."""
        from helix_jobs.broker.celery.consumer import make_consumer, stop_consuming

        try:
            self._consumer = consumer = make_consumer(self._settings, self._names, self._hostname, self._ending.stop)
            if self._ending.state.is_stopping:  # a new consumer clears Celery's flag of an earlier stop
                stop_consuming()
            consumer.start()
        except Exception as error:  # noqa: BLE001  (no descriptors, no threads, no memory: it may pass)
            logger.critical("Celery's consumer cannot be started: %s", error)
            return self._ending.state.is_stopping
        return self._ending.state.is_stopping or consumer.was_asked_to_stop
