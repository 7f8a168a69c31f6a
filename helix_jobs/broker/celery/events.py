"""Events: what Celery tells monitors of a worker, such as Flower, without holding up its consumer.

Celery sends a sign of life every two seconds, on the thread that runs the consumer's loop, and repeats it until the
broker takes it. Where a broker falls silent, the loop would stand still for as long: the worker would see no request
to stop, and not that its connection is to be replaced.

Trade-off: an event is tried once. Celery keeps one that could not be sent for the next connection; if that is lost as
well, a monitor misses it.
"""

from __future__ import annotations

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher


class ImpatientDispatcher(EventDispatcher):  # type: ignore[misc]  # celery has no types
    """Sends an event once, and keeps it if the broker does not take it."""

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:  # noqa: ANN401  (Celery's)
        super()._publish(event, producer, routing_key, **{**options, "retry": False})


class Events(CeleryEvents):  # type: ignore[misc]  # celery has no types
    """Celery's events, through that dispatcher."""

    dispatcher_cls = f"{__name__}:{ImpatientDispatcher.__name__}"
