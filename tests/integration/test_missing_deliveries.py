"""Real workers whose deliveries stop although jobs wait: they say so, reconnect, and leave if that does not help."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from redis import Redis

from helix_jobs.broker.celery.app import celery_settings, concurrency
from tests.integration.quick_worker import start_quick_worker
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker_box import Box

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]

# Of a worker with one slot: its threads, and two messages for each.
RUNNING = concurrency(1)
PREFETCHED = 2 * RUNNING


def stop_consuming(box: Box) -> None:
    """Take the queue off the worker's consumer: a sound connection that nothing is asked of."""
    app = Celery(set_as_current=False)
    app.conf.update(celery_settings(box.settings, box.names))
    (reply,) = app.control.cancel_consumer(box.names.queue, reply=True, timeout=20, limit=1)
    assert [answer["ok"] for answer in reply.values()] == [f"no longer consuming from {box.names.queue}"]
    app.close()


@pytest.mark.thorough
def test_a_consumer_that_stopped_asking_is_reconnected_and_running_jobs_go_on(services_box: Box) -> None:
    box = services_box
    worker = start_quick_worker(
        box, 2.0, frozenset({"cancel_consumer"}), HELIX_FAKE_HANG="endless", HELIX_SHUTDOWN_GRACE="0"
    )
    running = box.submit("endless story")
    box.wait_states(running, running=1)
    stop_consuming(box)
    batch = box.submit(*[f"word {i}" for i in range(30)])
    box.wait_states(batch, succeeded=30)

    # A question that was on its way to the broker when the queue was taken off may still bring an id or two.
    assert re.search(r"\d+ jobs waiting in the database \(\d+ ids in the broker\), 3 slots idle", worker.log), (
        worker.log
    )
    assert "this worker connects to the broker again" in worker.log
    assert worker.process.poll() is None
    assert "Traceback" not in worker.log
    (row,) = box.rows(running)
    assert (row.state, row.attempts, row.lease) == ("running", 1, 1), "the running job was not touched"


@pytest.mark.thorough
def test_a_worker_whose_deliveries_do_not_come_back_leaves_for_its_supervisor(services_box: Box) -> None:
    """The broker answers everybody, and lets this worker's connections fall silent."""
    box = services_box
    with half_open_proxy(box.settings.redis_url or "") as proxy:
        worker = start_quick_worker(box, 1.5, HELIX_REDIS_URL=proxy.url)
        warm_up = box.submit("one")
        box.wait_states(warm_up, succeeded=1)
        proxy.swallow_deliveries.set()
        assert proxy.swallowed.wait(20), "the worker asks for nothing"
        batch = box.submit(*[f"word {i}" for i in range(5)])
        assert worker.wait() == 1, worker.log
    assert "this worker connects to the broker again" in worker.log
    assert "this worker cannot go on and stops: " in worker.log
    assert "after connecting anew" in worker.log
    assert box.states(batch) == {"queued": 5}
    assert {row.attempts for row in box.rows(batch)} == {0}
    assert [row.stopped_at is not None for row in box.worker_rows()] == [True], "an orderly end"


@pytest.mark.thorough
def test_a_broker_that_is_away_is_no_reason_to_leave(services_box: Box) -> None:
    box = services_box
    with half_open_proxy(box.settings.redis_url or "") as proxy:
        worker = start_quick_worker(box, 0.6, HELIX_REDIS_URL=proxy.url, HELIX_LOG_LEVEL="debug")
        proxy.refuse()
        batch = box.submit(*[f"word {i}" for i in range(5)])
        wait_until(lambda: worker.log.count("reconciler: the broker at") >= 3, "the worker does not notice")
        # Windows have passed. What comes after its return is Celery's to retry, in longer steps than this one.
        assert worker.process.poll() is None
        assert "this worker connects to the broker again" not in worker.log
        assert box.states(batch) == {"queued": 5}


# A worker that has noticed the silence by the time of the stop is doing something else with the broker by then.
@pytest.mark.thorough
@pytest.mark.parametrize("silent_seconds", [0.0, 4.0])
def test_what_a_stopping_worker_could_not_give_back_is_sent_again(services_box: Box, silent_seconds: float) -> None:
    """The broker falls silent before the stop. What the worker had been delivered stays there unacknowledged."""
    box = services_box
    # It waits for each answer that does not come, one after the other, and that is no reason to give up the stop.
    quick = (
        "from helix_jobs.broker import publisher as broker\n"
        "from helix_jobs.worker import ending as worker_ending\n"
        "broker.SOCKET_TIMEOUT = broker.CONNECT_TIMEOUT = 1.5\n"
        "worker_ending.HAND_BACK_SECONDS = 60.0\n"
    )
    with half_open_proxy(box.settings.redis_url or "") as proxy:
        environment = {"HELIX_FAKE_HANG": "endless", "HELIX_SHUTDOWN_GRACE": "0", "HELIX_REDIS_URL": proxy.url}
        environment["HELIX_MAX_BATCH_SIZE"] = "1"
        # Submitted before: the worker alone publishes, so that each id is sent once.
        batch = box.submit(*["endless story"] * 20)
        worker = start_quick_worker(box, 60, before=quick, **environment)
        publisher = box.publisher()
        unacked = box.names.unacked
        wait_until(
            lambda: (
                publisher.ask(lambda client: client.hlen(unacked)) == PREFETCHED
                and box.states(batch).get("running") == RUNNING
            ),
            "it does not take ahead",
        )
        proxy.frozen.set()
        time.sleep(silent_seconds)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.log
    assert box.states(batch) == {"queued": 20}
    assert [row.stopped_at is not None for row in box.worker_rows()] == [True], "an orderly end"
    waiting = publisher.ask(lambda client: sum(client.llen(key) for key in box.names.lists))
    assert publisher.ask(lambda client: client.hlen(unacked)) == PREFETCHED, "nothing was given back"
    publisher.close()
    marked = sum(row.published_at is not None for row in box.rows(batch))
    assert marked == waiting == 20 - PREFETCHED, "a mark without a message that waits, or off for no need"


class Proxy:
    """Stands between a worker and its broker.

    While ``swallow_deliveries`` is set, a connection that asks for messages (BRPOP of the queue) hears nothing any
    more, and what it says is not passed on, as behind a firewall that has forgotten it; every other connection works.
    While ``frozen`` is set no connection passes anything on.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.swallow_deliveries = threading.Event()
        self.swallowed = threading.Event()
        self.frozen = threading.Event()
        self._connections: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.listen()

    def listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """The broker is gone: no new connections, and the old ones break."""
        close(self._listener)
        connections, self._connections = self._connections, []
        for connection in connections:
            close(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = open_like(self.server)
            self._connections += [client, server]
            silent = threading.Event()
            threading.Thread(target=self._pump, args=(client, server, silent), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, silent), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if b"BRPOP" in data and b".probe." not in data and self.swallow_deliveries.is_set():
                    silent.set()
                    self.swallowed.set()
                if not silent.is_set() and not self.frozen.is_set():
                    target.sendall(data)
        except OSError:
            pass
        close(source)
        close(target)


def open_like(url: str) -> socket.socket:
    """A bare connection to the server behind a URL of kombu's."""
    if url.startswith("redis+socket://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(url.removeprefix("redis+socket://").replace("%2F", "/"))
        return connection
    options = Redis.from_url(url).connection_pool.connection_kwargs
    return socket.create_connection((options["host"], options["port"]))


def close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def half_open_proxy(server: str) -> Iterator[Proxy]:
    proxy = Proxy(server)
    yield proxy
    proxy.refuse()
