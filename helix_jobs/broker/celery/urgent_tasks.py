"""UrgentTasks: a second consumer in the worker's connection, which takes messages of the highest priority alone.

The worker's consumer stops reading when it holds as many messages as it may. Bulk work keeps it so full for minutes. A
request that a person waits for would wait behind all of that, so messages of the highest priority have places of their
own, as many as urgent requests have slots. They are taken from where they have always been, the first list of the
queue: workers of any version take them there, and this one's first consumer does, too, while it has room.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from kombu.common import ignore_errors
from kombu.entity import Queue

from helix_jobs.broker.celery.transport import Transport
from helix_jobs.broker.queue_names import QueueNames


class UrgentTasks(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A step of Celery's consumer. It takes nothing over a transport that is not Helix's own (``memory://``)."""

    requires = (Tasks,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:  # noqa: ANN401  (Celery's signature)
        self._consumer: Any = None
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:  # noqa: ANN401  (Celery's consumer)
        """Begin to take messages."""
        if not isinstance(parent.connection.transport, Transport):
            return
        conf = parent.app.conf
        channel = parent.connection.channel()
        channel.basic_qos(0, conf.helix_urgent_messages, False)  # noqa: FBT003  (kombu's signature)
        queue = Queue(QueueNames.of_queue(conf.task_default_queue).urgent, no_declare=True)
        self._consumer = parent.app.amqp.TaskConsumer(
            channel, queues=[queue], auto_declare=False, on_decode_error=parent.on_decode_error
        )
        self._consumer.on_message = parent.create_task_handler()
        self._consumer.consume()

    def stop(self, parent: Any) -> None:  # noqa: ANN401
        """Take no more. A message that the broker is just handing over is given back at once, for other workers."""
        if self._consumer is not None:
            ignore_errors(parent, self._consumer.cancel)
            ignore_errors(parent, self._consumer.channel.finish_reading)

    def shutdown(self, parent: Any) -> None:  # noqa: ANN401
        """Close the channel, once the jobs have ended."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            ignore_errors(parent, consumer.cancel)
            ignore_errors(parent, consumer.channel.close)
