"""Where the broker is, the embedded broker, and how job ids are published.

The database holds the jobs and the broker only carries their ids, so the broker may lose everything. The reconciler
publishes a lost message again; the claim refuses a duplicate.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.broker.embedded import EmbeddedBroker, socket_url
from helix_jobs.broker.faults import broker_errors
from helix_jobs.broker.publishing_turn import publishing_turn
from helix_jobs.broker.queue_names import PRIORITIES, QueueNames, read_queue_names
from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.observability.rounds import come_round
from helix_jobs.redaction import redact
from helix_jobs.redis_url import MEMORY_URL, checked_redis_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kombu.connection import Connection

    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import PublishableJob

__all__ = [
    "TASK_NAME",
    "CeleryPublisher",
    "EmbeddedBroker",
    "ProbingPublisher",
    "QueueNames",
    "broker_url",
    "message_priority",
    "ping",
    "read_queue_names",
    "transport_options",
    "verifying_url",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TASK_NAME: Final = "helix.run_job"
CONNECT_TIMEOUT: Final = 5.0
SOCKET_TIMEOUT: Final = 5.0
PUBLISH_ATTEMPTS: Final = 3
PUBLISH_BATCH: Final = 500
PROBE_SECONDS: Final = 10


def broker_url(settings: Settings) -> str:
    """Return HELIX_REDIS_URL, or the embedded broker's socket under HELIX_HOME.

    Raises:
        ConfigurationError: Helix does not take the URL, or none is set and this system has no embedded broker.
    """
    if settings.redis_url is not None:
        return verifying_url(checked_redis_url(settings.redis_url))
    if sys.platform == "win32":
        raise ConfigurationError(
            "the embedded broker does not exist on Windows; set HELIX_REDIS_URL, or use submit.py --local"
        )
    return socket_url(EmbeddedBroker(settings.home).socket_path)


def verifying_url(url: str) -> str:
    """Add the full certificate check to a ``rediss://`` URL that does not say how certificates are checked.

    kombu alone would take any certificate, so that anybody in between could pose as the broker.
    """
    if not url.lower().startswith("rediss:") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required&ssl_check_hostname=true"


def transport_options(url: str, names: QueueNames) -> dict[str, Any]:
    """Return kombu's options for this broker; publisher, worker and inspectors must agree on them."""
    if url == MEMORY_URL:
        return connection_options(url)
    return connection_options(url) | {
        # The database recovers jobs within half a minute; this only bounds when Redis forgets its copy.
        "visibility_timeout": 86_400,
        "unacked_restore_throttle": 1,
        # Keys of this installation's own, apart from other users of the Redis database.
        "unacked_key": names.unacked,
        "unacked_index_key": names.unacked_index,
        "unacked_mutex_key": names.unacked_mutex,
        "priority_steps": list(PRIORITIES),
    }


def connection_options(url: str) -> dict[str, Any]:
    """Return kombu's options for how long a connection waits."""
    if url == MEMORY_URL:
        # The default of a second would delay every message.
        return {"polling_interval": 0.02}
    return {
        # Each silently dead connection costs the consumer's loop this long at the next acknowledgement, and the loop
        # must get through all of them within a minute. If a living server is silent for so long, that costs a
        # reconnection.
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": 2 * SOCKET_TIMEOUT,
        # Without an event loop (Windows) every slot's thread acknowledges over a connection of its own.
        "max_connections": 1024,
    }


def message_priority(job_priority: int) -> int:
    """Map a job's priority (9 first) to the message's (0 first on kombu's Redis transport)."""
    return MAX_PRIORITY - min(max(job_priority, 0), MAX_PRIORITY)


def ping(url: str, *, timeout: float = CONNECT_TIMEOUT) -> None:
    """Make sure the broker answers.

    Raises:
        BrokerUnreachableError: It does not answer; the message says where and why.
    """
    from kombu.connection import Connection

    url = verifying_url(url)
    options = connection_options(url) | ({} if url == MEMORY_URL else {"socket_connect_timeout": timeout})
    with broker_errors(url), Connection(url, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)


class CeleryPublisher:
    """Sends job ids as Celery messages; thread-safe.

    It writes messages itself instead of calling ``task.delay()``: kombu alone imports in a tenth of a second and
    pipelines a batch, at 9,000 messages a second against 2,000.

    Args:
        url: Where the broker is.
        names: The names of its queue.
    """

    def __init__(self, url: str, names: QueueNames) -> None:
        self.url = verifying_url(url)
        self.names = names
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._channel: Any = None

    def depth(self) -> int:
        """Return how many messages wait in the broker, over all priorities.

        Raises:
            BrokerUnreachableError: The broker does not answer.
        """
        with self._lock, self._reset_on_error(), broker_errors(self.url):
            return int(self._open_channel().queue_declare(queue=self.names.queue).message_count)

    def turn(self) -> AbstractContextManager[None]:
        """Return a context in which no other publisher of this queue publishes, as a rule (``publishing_turn``).

        Raises:
            BrokerUnreachableError: On entry: the broker does not answer, or refuses.
        """
        if self.url == MEMORY_URL:  # this process's own
            return nullcontext()
        return publishing_turn(self.ask, self.names.publishing)

    def publish(self, jobs: Sequence[PublishableJob]) -> None:
        """Send one message for each job. After an error some may have been sent; sending them again is harmless.

        Raises:
            BrokerUnreachableError: The broker does not answer, or refuses (for example, its memory is full).
        """
        if not jobs:
            return
        with self._lock:
            for attempt in range(1, PUBLISH_ATTEMPTS + 1):
                come_round()
                try:
                    with self._reset_on_error(), broker_errors(self.url):
                        self._publish(jobs)
                except BrokerUnreachableError:
                    if attempt == PUBLISH_ATTEMPTS:
                        raise
                    logger.debug("publishing failed, sending the batch again", exc_info=True)
                else:
                    return

    def check_keys(self) -> None:
        """Make sure that the keys under the queue's names can be the queue.

        Raises:
            BrokerUnreachableError: The broker does not answer.
            ConfigurationError: A key of that name holds something else.
        """
        if self.url == MEMORY_URL:
            return
        kinds = dict.fromkeys(self.names.lists, b"list") | {
            self.names.unacked: b"hash",
            self.names.unacked_index: b"zset",
        }
        found = self.ask(lambda client: [_answered(client.type(key)) for key in kinds])
        for (key, kind), there in zip(kinds.items(), found, strict=True):
            if there not in (b"none", kind):
                raise ConfigurationError(
                    f"the broker at {redact(self.url)} holds a {there.decode()} under the key {key!r}, where Helix's "
                    f"queue needs a {kind.decode()}; rename that key, or name another Redis database in HELIX_REDIS_URL"
                )

    def probe(self) -> None:
        """Have the broker do every operation of a delivery once, on a separate key that is deleted again.

        Raises:
            BrokerUnreachableError: The broker does not answer, or refuses: it is a replica, full, or lacks a right.
        """
        if self.url == MEMORY_URL:
            return
        key = f"{self.names.queue}.probe.{secrets.token_hex(4)}"

        def deliver(client: Any) -> None:  # noqa: ANN401  (redis-py's)
            _answered(client.lpush(key, "probe"))
            _answered(client.expire(key, PROBE_SECONDS))
            _answered(client.brpop([key], timeout=1))
            _answered(client.zadd(key, {"probe": 0}))
            _answered(client.delete(key))
            _answered(client.hset(key, "probe", ""))
            _answered(client.delete(key))

        self.ask(deliver)

    def reset_queue(self) -> None:
        """Forget every message, waiting or stranded with a dead worker. The reconciler publishes them anew.

        For the only live worker: otherwise a killed worker's messages would stay in ``unacked`` for a day.

        Raises:
            BrokerUnreachableError: The broker does not answer.
        """
        with self._lock, self._reset_on_error(), broker_errors(self.url):
            channel = self._open_channel()
            channel.queue_purge(self.names.queue)
            if self.url != MEMORY_URL:
                channel.client.delete(self.names.unacked, self.names.unacked_index)

    def ask(self, question: Callable[[Any], T]) -> T:
        """Call ``question`` with the Redis client itself, and return its answer.

        Raises:
            BrokerUnreachableError: The broker does not answer, or refuses.
        """
        with self._lock, self._reset_on_error(), broker_errors(self.url):
            return question(self._open_channel().client)

    def forget_delivered(self, are_moot: Callable[[], bool]) -> int:
        """Drop unacknowledged deliveries if ``are_moot``, asked after they were listed, agrees.

        A living worker may still hold one of these messages: its acknowledgement then finds nothing.

        Returns:
            How many messages were dropped.

        Raises:
            BrokerUnreachableError: The broker does not answer.
        """
        if self.url == MEMORY_URL:
            return 0
        with self._lock, self._reset_on_error(), broker_errors(self.url):
            client = self._open_channel().client
            tags = _answered(client.hkeys(self.names.unacked)) or client.zrange(self.names.unacked_index, 0, -1)
        if not tags or not are_moot():
            return 0
        with self._lock, self._reset_on_error(), broker_errors(self.url):
            client = self._open_channel().client
            _answered(client.zrem(self.names.unacked_index, *tags))
            return int(client.hdel(self.names.unacked, *tags))

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            self._disconnect()

    def _publish(self, jobs: Sequence[PublishableJob]) -> None:
        from kombu.messaging import Producer

        producer = Producer(self._open_channel(), auto_declare=False)
        # Each publication has new task ids: Celery remembers a revoked id for hours, and a job may be retried.
        token = secrets.token_hex(4)
        with producer.batch(max_size=PUBLISH_BATCH):
            for job in jobs:
                task_id = f"{job.id}-{token}"
                producer.publish(
                    [[job.id], {}, {}],
                    # The nameless exchange needs no binding, so publishing works on a freshly flushed Redis.
                    exchange="",
                    routing_key=self.names.queue,
                    serializer="json",
                    priority=message_priority(job.priority),
                    headers={"lang": "py", "task": TASK_NAME, "id": task_id, "root_id": task_id, "ignore_result": True},
                    correlation_id=task_id,
                )

    def _open_channel(self) -> Any:  # noqa: ANN401  (kombu has no types)
        if self._channel is None:
            from kombu.connection import Connection

            self._connection = Connection(self.url, transport_options=transport_options(self.url, self.names))
            self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_TIMEOUT)
            self._channel = self._connection.channel()
            come_round()
        return self._channel

    @contextmanager
    def _reset_on_error(self) -> Iterator[None]:
        """Drop the connection after an error: its state is unknown."""
        try:
            yield
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.release()


def _answered(answer: T) -> T:
    """Count a round for an answer, so that many slow answers do not look like silence."""
    come_round()
    return answer


class ProbingPublisher(CeleryPublisher):
    """Counts only deliverable messages. For the watchdog, to which a refusing broker is an absent one."""

    def depth(self) -> int:
        """Return how many messages wait in the broker.

        Raises:
            BrokerUnreachableError: The broker does not answer, or would not deliver a message.
            ConfigurationError: A key with the queue's name holds something else.
        """
        self.check_keys()
        self.probe()
        return super().depth()
