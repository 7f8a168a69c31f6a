"""Nobody who asks for metrics can take the worker's threads, descriptors or time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.worker import scrape_server
from helix_jobs.worker.scrape_server import MAX_CONNECTIONS, ScrapeServer
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"figures"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScrapeServer]:
    monkeypatch.setattr(scrape_server, "REQUEST_SECONDS", 0.5)
    made = ScrapeServer("127.0.0.1", 0, app)
    yield made
    made.close()


def connect(server: ScrapeServer, stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=20))


def scrape(server: ScrapeServer) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=20) as answer:
        content: bytes = answer.read()
        return content


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, within the socket's time limit."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def takes(connection: socket.socket, data: bytes) -> bool:
    """Whether the other end is still there for more."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def test_idle_connections_get_a_few_threads_and_are_closed(server: ScrapeServer) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        idle = [connect(server, stack) for _ in range(3 * MAX_CONNECTIONS)]
        most = 0
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(is_closed(one) for one in idle[-2:]):
            most = max(most, threading.active_count())
        assert threading.active_count() - before <= MAX_CONNECTIONS
        assert most - before <= MAX_CONNECTIONS
        assert all(is_closed(one) for one in idle)
    assert scrape(server) == b"figures"


def test_who_sends_its_request_byte_by_byte_is_cut_off(server: ScrapeServer) -> None:
    with contextlib.ExitStack() as stack:
        slow = connect(server, stack)
        began = time.monotonic()
        wait_until(lambda: not takes(slow, b"G"), "it is listened to for ever", 20)
        assert is_closed(slow)
        assert time.monotonic() - began < 20


def test_scrapers_without_end_are_served_at_the_servers_pace(server: ScrapeServer) -> None:
    served: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                scrape(server)
                served.append(time.monotonic())

    askers = [threading.Thread(target=ask) for _ in range(20)]
    began = time.monotonic()
    for asker in askers:
        asker.start()
    try:
        wait_until(lambda: len(served) >= 20, "they are not served")
    finally:
        ended.set()
        for asker in askers:
            asker.join()
    elapsed = time.monotonic() - began
    assert len(served) <= elapsed / scrape_server.ACCEPT_PAUSE_SECONDS + 1
