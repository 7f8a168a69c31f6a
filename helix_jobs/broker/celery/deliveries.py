"""Deliveries: kombu's record of a channel's messages on Redis until they are acknowledged.

It notes each job whose message it could not give back, as no other part knows of it (``stranded_messages``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import redis

from helix_jobs.broker.messages import job_id_of_message
from helix_jobs.broker.queue_names import is_job_queue
from helix_jobs.broker.stranded_messages import stranded

if TYPE_CHECKING:
    from collections.abc import Iterable


class Deliveries(redis.QoS):
    """Notes messages that it cannot give back in ``stranded``."""

    def append(self, message: Any, delivery_tag: str) -> None:  # noqa: ANN401  (kombu's message)
        """Record a delivery. If the answer is lost, the server may have recorded it, but this process has not."""
        try:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]  # kombu's
        except BaseException:
            _note([message])
            raise

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, also one of a channel that has closed since."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # kombu's
        finally:
            self.channel.close_sockets_behind()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (kombu's signature)
        """Give a message back, or drop it. Celery logs a failure and goes on."""
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]  # kombu's
        except BaseException:
            if requeue:
                _note(self._held([delivery_tag]))
            raise
        finally:
            self.channel.close_sockets_behind()

    def let_go(self) -> None:
        """The channel has closed: note the messages that were neither acknowledged nor given back.

        Until then kombu keeps the channel for the end of the process, to give them back.
        """
        self._on_collect.cancel()
        _note(self._held(list(self._delivered)))

    def _held(self, tags: Iterable[str]) -> list[Any]:
        messages = (self._delivered.get(tag) for tag in tags if tag not in self._dirty)
        return [message for message in messages if message is not None]


def _note(messages: Iterable[Any]) -> None:
    found = (_job_id(message) for message in messages)
    stranded.note(job_id for job_id in found if job_id is not None)


def _job_id(message: Any) -> int | None:  # noqa: ANN401  (kombu's message)
    queue = str(message.delivery_info["routing_key"])
    return job_id_of_message(message._raw, queue) if is_job_queue(queue) else None  # noqa: SLF001  (as kombu's own QoS)
