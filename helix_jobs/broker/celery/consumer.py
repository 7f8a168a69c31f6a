"""Celery's worker inside a Helix worker: its consumer and remote control, without its signals, banner and logging."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.app import trace
from celery.exceptions import CPendingDeprecationWarning, Reject
from celery.platforms import EX_OK
from celery.worker import WorkController, state

from helix_jobs.broker.celery import remote_control
from helix_jobs.broker.celery.app import configure
from helix_jobs.broker.celery.patient_consumer import WHO_LOG_REFUSALS, unless_refused
from helix_jobs.broker.celery.transport import rejections

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.broker.queue_names import QueueNames
    from helix_jobs.settings import Settings


class Consumer(WorkController):  # type: ignore[misc]  # celery has no types
    """A controller that runs on any thread.

    Attributes:
        on_wish: Called when its end was requested, before running jobs are waited for.
    """

    on_wish: Callable[[], None] = staticmethod(lambda: None)

    def on_init_blueprint(self) -> None:
        """Prepare this process as ``celery worker`` does."""
        trace.setup_worker_optimizations(self.app, self.hostname)

    @property
    def was_asked_to_stop(self) -> bool:
        """Whether its end was requested: by ``stop_consuming``, or by remote control.

        After an error in its loop Celery leaves another exit code, and none after running out of descriptors.
        """
        return bool(self.exitcode == EX_OK)

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:  # noqa: FBT001, FBT002  (Celery's signature)
        """End as Celery does, but first report whether the end was requested: only then is there a time limit."""
        if exitcode == EX_OK:
            self.on_wish()
        super().stop(in_sighandler, exitcode)

    def reconnect(self) -> None:
        """Have Celery replace its connection to the broker, from any thread; running jobs go on."""
        # ``celery control cancel_consumer`` removes the queue for good, but no Helix worker is without its queue.
        queues = self.app.amqp.queues
        queues.select_add(queues[self.app.conf.task_default_queue])

        def fail() -> None:
            raise ConnectionResetError("nothing is delivered")

        if self.consumer is None:
            return
        if self.consumer.hub is not None:
            # Celery's loop takes this error for a lost connection, even if the connection still looks sound.
            self.consumer.call_soon(fail)
            return
        # Without an event loop (Windows) Celery swallows the callbacks' errors.
        for sock in _sockets(self.consumer.connection):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def make_consumer(settings: Settings, names: QueueNames, hostname: str, on_wish: Callable[[], None]) -> Consumer:
    """Build a consumer; its ``start`` blocks until ``stop_consuming`` or a shutdown by remote control.

    The node is named after this process: two workers on one host must not answer to one name.

    Args:
        settings: The worker's settings.
        names: The names of its queue.
        hostname: This machine's name.
        on_wish: Called when its end was requested, before running jobs are waited for.
    """
    state.should_stop = state.should_terminate = None
    # The warning recommends cancelling running jobs when the broker goes away; the fence makes that unnecessary.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    for name in WHO_LOG_REFUSALS:
        logging.getLogger(name).addFilter(unless_refused)
    logging.getLogger("celery.worker.request").addFilter(_without_traceback)
    logging.getLogger("celery.app.trace").addFilter(_no_rejection)
    remote_control.restrict(rejections.note)
    app = configure(settings, names)
    # Mingle and gossip exchange workers' clocks and revoked tasks, but cost a second at each start.
    consumer = Consumer(app=app, hostname=f"helix-{os.getpid()}@{hostname}", without_mingle=True, without_gossip=True)
    consumer.on_wish = on_wish
    return consumer


def stop_consuming() -> None:
    """Have the consumer's loop end within a second, from any thread; ``start`` returns once the pool is empty."""
    state.should_stop = EX_OK


def _sockets(connection: Any) -> list[socket.socket]:  # noqa: ANN401  (kombu has no types)
    """The sockets that kombu's Redis transport has open; this opens none."""
    found = []
    for channel in list(getattr(getattr(connection, "transport", None), "channels", None) or ()):
        for name in ("client", "subclient"):
            client = vars(channel).get(name)
            sock = getattr(getattr(client, "connection", None), "_sock", None)
            if sock is not None:
                found.append(sock)
    return found


def _without_traceback(record: logging.LogRecord) -> bool:
    """Strip tracebacks: when the broker goes away, every job in hand fails to acknowledge, each worth one line."""
    record.exc_info = record.exc_text = None
    return True


def _no_rejection(record: logging.LogRecord) -> bool:
    """Drop Celery's warnings, each with a traceback, that a stopping worker rejects its prefetched messages."""
    return not (record.exc_info and isinstance(record.exc_info[1], Reject))
