"""VettedTransport: the Redis transport that hands over Helix's own messages only.

Without it a text that is no JSON ends Celery's loop, and whoever can write to Redis ends the worker with a few of them.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from helix_jobs.jobs import redis_transport, tasks
from helix_jobs.jobs.message_vetting import is_envelope, job_id_of_message
from helix_jobs.jobs.queue_names import is_job_queue

logger = logging.getLogger(__name__)


class VettedChannel(redis_transport.Channel):
    """Drops what cannot be decoded."""

    def _brpop_read(self, **options: Any) -> Any:  # noqa: ANN401  (kombu's signature)
        self.connection.decoded = False
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # kombu has few types
        except (Empty, *self.connection_errors, *self.connection.channel_errors):
            raise
        except Exception as error:
            if self.connection.decoded:
                raise
            _drop(type(error).__name__)
            return True


class VettedTransport(redis_transport.Transport):
    """Drops what is decoded and is none of ours, before anything is noted of it.

    Attributes:
        decoded: The message being read has been decoded; errors from here on are not its own.
    """

    Channel = VettedChannel
    decoded = False

    def _deliver(self, message: Any, queue: str) -> None:  # noqa: ANN401  (parsed JSON)
        self.decoded = True
        if is_job_queue(queue) and job_id_of_message(message, queue) is None:
            _drop("none of ours")
        elif not is_envelope(message):
            _drop("no message")
        else:
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]


class Connection(redis_transport.Connection):
    """Takes this transport for Redis."""

    def get_transport_cls(self) -> Any:  # noqa: ANN401  (kombu's signature)
        """The transport's class."""
        found = super().get_transport_cls()
        return VettedTransport if found is redis_transport.Transport else found


class AMQP(redis_transport.AMQP):
    """What the Celery application makes its connections with."""

    Connection = Connection


def _drop(why: str) -> None:
    # Nothing of its contents: they are somebody else's, and may be large.
    logger.warning("dropped a message that names no job (%s)", why)
    service = tasks.bound_service()
    if service is not None:
        service.count_rejected()
