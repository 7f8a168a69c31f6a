"""Transport: kombu's Redis transport, which hands over Helix's own messages and readable commands only.

Without it a text that is not JSON ends Celery's loop, so anyone who can write to Redis could end the worker.

It keeps one client for each channel. kombu builds a redis-py client for every message it receives and for every one it
acknowledges, which takes about an eighth of a busy worker's time. A client is only a handle on the channel's pool, and
any thread may use it.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from celery.app import amqp
from celery.worker.control import Panel
from kombu.connection import Connection as KombuConnection
from kombu.transport import redis
from redis.exceptions import ResponseError, TimeoutError  # noqa: A004  (what redis-py raises)

from helix_jobs.broker.celery.deliveries import Deliveries
from helix_jobs.broker.celery.rejections import Rejections
from helix_jobs.broker.celery.remote_control import is_command
from helix_jobs.broker.celery.service import bound_service
from helix_jobs.broker.junk_sweep import sweep
from helix_jobs.broker.messages import is_envelope, job_id_of_message
from helix_jobs.broker.queue_names import PRIORITIES, QueueNames, is_job_queue, without_urgent_mark

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

_MAILBOX: Final = ".pidbox"


def _count(messages: int) -> None:
    service = bound_service()
    if service is not None:
        service.count_rejected(messages)


rejections: Final = Rejections(_count)


class Channel(redis.Channel):
    """Drops undecodable messages and the junk behind them; notes messages that it cannot give back.

    It keeps its client as long as its pool stays the same. A channel that consumes the ``urgent`` name of a queue takes
    messages from the queue's first list.

    Attributes:
        may_sweep: The server runs scripts, as far as is known.
        is_unanswered: The broker did not answer while the channel closed.
    """

    QoS = Deliveries
    may_sweep = True
    is_unanswered = False
    _kept: Any = None
    _takes_urgent = False

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (kombu's signature)
        """The kept client; a new one for the event loop, which needs a connection of its own."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]  # kombu's
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()  # type: ignore[no-untyped-call]  # kombu's
        return kept

    def close(self) -> None:
        """Close the channel and give back unacknowledged messages; note those that the broker did not take back.

        Every socket is closed, whatever fails. kombu ends its own close at the first error, and connects anew to give
        messages back; each time that the broker went away would leave sockets behind.
        """
        transport, pool = self.connection, self._pool
        try:
            if self._in_poll:
                self._read_last()
            super().close()  # type: ignore[no-untyped-call]  # kombu's
        except self.connection_errors:
            self.is_unanswered = True
            raise
        finally:
            self.closed = True
            self._close_sockets(pool)
            if transport is not None:
                transport.cycle.discard(self)
                transport.close_channel(self)
            if self._qos is not None:
                self._qos.let_go()

    def _read_last(self) -> None:
        """Read what the broker was asked for; the close goes on whatever it answers."""
        try:
            self._brpop_read()
        except TimeoutError:
            self.is_unanswered = True
            self.ask_no_more()
        except Exception as error:  # noqa: BLE001  (a lost connection, a refusal, or nothing to read)
            logger.debug("the last read of a channel: %s", type(error).__name__)

    def ask_no_more(self) -> None:
        """Be closed without a word to a broker that does not answer: each word would wait for a time limit."""
        self._in_poll = False
        self.do_restore = False
        self.auto_delete_queues.clear()

    def _close_sockets(self, pool: Any) -> None:  # noqa: ANN401  (redis-py's pool)
        """Close what is open, and keep the channel's own pool: jobs that still run acknowledge over it."""
        opened, self._pool = self._pool, pool
        for_loop, self._async_pool = self._async_pool, None
        self._close_clients()  # type: ignore[no-untyped-call]  # kombu's
        if for_loop is not None:
            for_loop.disconnect()
        for each in (opened, pool):
            if each is not None:
                each.disconnect(inuse_connections=False)

    def close_sockets_behind(self) -> None:
        """Close what an acknowledgement has opened after the channel closed."""
        if self.closed and self._pool is not None:
            self._pool.disconnect(inuse_connections=False)

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (kombu's signature)
        """Begin to take messages of a queue, or only its most urgent ones."""
        self._takes_urgent = without_urgent_mark(queue) != queue
        if self._takes_urgent:
            self.priority_steps = [PRIORITIES[0]]
        return super().basic_consume(queue, *args, **kwargs)  # type: ignore[no-untyped-call]  # kombu's

    def finish_reading(self) -> None:
        """Read what the broker is about to hand over, at most for the second in which it answers."""
        if self._in_poll:
            with suppress(Empty):
                self._brpop_read()

    def named(self, queue: str) -> str:
        """The name under which this channel consumes the queue."""
        return QueueNames.of_queue(queue).urgent if self._takes_urgent and is_job_queue(queue) else queue

    def _q_for_pri(self, queue: str, pri: int) -> str:
        key: str = super()._q_for_pri(without_urgent_mark(queue), pri)  # type: ignore[no-untyped-call]  # kombu's
        return key

    def _brpop_read(self, **options: Any) -> Any:  # noqa: ANN401  (kombu's signature)
        transport = self.connection
        transport.decoded = transport.dropped = False
        transport.reader = self
        try:
            read = super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # kombu has few types
        except (Empty, *transport.connection_errors, *transport.channel_errors):
            raise
        except Exception as error:
            if transport.decoded:
                raise
            rejections.note(f"undecodable ({type(error).__name__})")
            transport.dropped = True
            read = True
        if transport.dropped:
            self._sweep()
        return read

    def _sweep(self) -> None:
        """Drop the junk that may follow a junk message."""
        if not self.may_sweep:
            return
        queues = [queue for queue in map(without_urgent_mark, self.active_queues) if is_job_queue(queue)]
        try:
            with self.conn_or_acquire() as client:
                for queue in queues:
                    keys = QueueNames.of_queue(queue).lists
                    dropped = sweep(client, keys, partial(_are_ours, queue))
                    if dropped:
                        rejections.note("none of ours", dropped)
        except ResponseError:
            # A server, or a user, without scripts: junk is popped one by one.
            self.may_sweep = False

    def _handle_message(self, client: Any, response: Any) -> Any:  # noqa: ANN401  (kombu's signature)
        payload = super()._handle_message(client, response)  # type: ignore[no-untyped-call]
        if str(_text(payload["type"])).endswith("message"):
            # As kombu reads it: /DATABASE.EXCHANGE, or with /KEY behind it.
            exchange = _text(payload["channel"]).partition(".")[2].partition("/")[0]
            queue = self._fanout_to_queue.get(exchange)
            if queue is None or (queue.endswith(_MAILBOX) and not _is_command(payload["data"], queue)):
                rejections.note("broadcasts that are no command")
                payload["data"] = None  # kombu takes it for an empty one
        return payload


class Transport(redis.Transport):
    """Drops foreign messages before kombu records them as unacknowledged.

    Attributes:
        reader: The channel that read last.
        decoded: The message being read has been decoded; later errors are not due to it.
        dropped: The message was a foreign one.
    """

    Channel = Channel
    reader: Any = None
    decoded = False
    dropped = False

    def close_connection(self, connection: Any) -> None:  # noqa: ANN401, ARG002  (kombu's signature)
        """Close every channel, then raise the first error; kombu leaves the others open when one raises an error."""
        errors = []
        is_unanswered = False
        if self.cycle is not None:
            self.cycle.close()
        for channels in (self._avail_channels, self.channels):
            while channels:
                channel = channels.pop()
                if is_unanswered:
                    channel.ask_no_more()
                try:
                    channel.close()
                except Exception as error:  # noqa: BLE001  (raised below)
                    errors.append(error)
                is_unanswered = is_unanswered or channel.is_unanswered
        if errors:
            raise errors[0]

    def _deliver(self, message: Any, queue: str) -> None:  # noqa: ANN401  (parsed JSON)
        self.decoded = True
        if is_job_queue(queue) and job_id_of_message(message, queue) is None:
            self.dropped = True
            rejections.note("none of ours")
        elif not is_envelope(message):
            rejections.note("no message")
        else:
            name = queue if self.reader is None else self.reader.named(queue)
            super()._deliver(message, name)  # type: ignore[no-untyped-call]


class Connection(KombuConnection):
    """Takes Helix's transport instead of kombu's for Redis; leaves others (``memory://``, Sentinel) alone."""

    def get_transport_cls(self) -> Any:  # noqa: ANN401  (kombu's signature)
        """The transport's class."""
        found = super().get_transport_cls()  # type: ignore[no-untyped-call]  # kombu's
        return Transport if found is redis.Transport else found


class AMQP(amqp.AMQP):  # type: ignore[misc]  # celery has no types
    """Makes the Celery application's connections."""

    Connection = Connection


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _are_ours(queue: str, texts: Sequence[bytes]) -> Iterator[bool]:
    return (job_id_of_message(_parsed(text), queue) is not None for text in texts)


def _is_command(text: bytes, queue: str) -> bool:
    return is_command(_parsed(text), queue, Panel.data)


def _parsed(text: bytes) -> Any:  # noqa: ANN401  (parsed JSON)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
