"""Clients that hold a connection without using it, and a server that stops under its clients."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import select

from helix_jobs.api import body_room, connection, ending
from helix_jobs.api.growth_feed import GrowthFeed
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.storage.schema import jobs
from tests.integration.http_server import asking, chat, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box

WORDS = " ".join(f"word{number}" for number in range(200))


def connected(address: str) -> socket.socket:
    place = urlsplit(address)
    made = socket.create_connection((place.hostname, place.port), timeout=20)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


def is_closed(connected: socket.socket) -> bool:
    """Wait until the server has closed the connection; what it had sent is read."""
    with suppress(ConnectionError):
        while connected.recv(65536):
            pass
    return True


@pytest.mark.parametrize(
    "head", [b"", b"GET /health HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"]
)
def test_a_head_that_does_not_come_ends_the_connection(box: Box, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with serving(box) as address, closing(connected(address)) as client:
        client.sendall(head)
        if head.endswith(b"GET /he"):  # a byte now and then does not help either
            time.sleep(0.1)
            client.sendall(b"a")
        assert is_closed(client)


@pytest.mark.thorough(fast=1)
def test_a_request_that_is_answered_is_not_cut(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    box.start_worker(fake_step_seconds="0.3")
    with serving(box) as address, asking(address) as http:
        for _ in range(2):
            assert http.post("/v1/completions", json={"prompt": "a b c d e f g h i"}).status_code == 200


def test_who_takes_no_answer_is_cut(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKE_SECONDS", 0.3)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    count = 1500
    with serving(box) as address, asking(address) as http:
        with closing(connected(address)) as client:
            sender = threading.Thread(target=lambda: _try_to_send(client, ask * count))
            sender.start()
            # The client reads nothing at all, and so does not hear that the other side has hung up.
            own = client.getsockname()[1]
            wait_until(lambda: not _is_held(address, own), "the server gives up")
            sender.join()
        assert http.get("/health").status_code == 200


def _is_held(address: str, client_port: int) -> bool:
    """Whether the server, which runs in this process, has a socket for this client."""
    ends = (urlsplit(address).port, client_port)
    found = psutil.Process().net_connections(kind="tcp")
    return any(one.raddr and (one.laddr.port, one.raddr.port) == ends for one in found)


def _try_to_send(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


def test_idle_connections_keep_nobody_else_waiting(box: Box) -> None:
    with ExitStack() as stack, serving(box) as address, asking(address) as http:
        for number in range(300):
            idle = stack.enter_context(closing(connected(address)))
            idle.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"[: number % 40])
        began = time.monotonic()
        assert http.get("/health").status_code == 200
        assert time.monotonic() - began < 5


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/files"])
def test_half_sent_bodies_take_no_more_than_their_room(box: Box, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_room, "ROOM_BYTES", 1_000_000)
    kind = "application/json" if path == "/v1/completions" else "multipart/form-data; boundary=X"
    begin = (
        b"{"
        if path == "/v1/completions"
        else b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 4000000\r\n\r\n"
    box.start_worker()
    with ExitStack() as stack, serving(box) as address, asking(address) as http:
        clients = [stack.enter_context(closing(connected(address))) for _ in range(4)]
        for client in clients:
            client.sendall(head.encode() + begin + b"a" * 400_000)
        refused = [client for client in clients if _is_refused(client)]
        assert 1 <= len(refused) <= 2, "two of them fit, and a third that comes before they are read"
        answer = http.post("/v1/completions", json={"prompt": "beside"})
        assert answer.json()["choices"][0]["text"] == "beside", "neighbours are served"
        for client in clients:
            client.close()
        wait_until(
            lambda: http.post("/v1/completions", json={"prompt": "a " * 2000 + "b" * 300_000}).status_code == 200, ""
        )


def _is_refused(client: socket.socket) -> bool:
    """Whether the server answers now, which it does to a half-sent body only to refuse it."""
    client.settimeout(1.0)
    try:
        answer = client.recv(65536)
    except TimeoutError:
        return False
    assert answer.startswith(b"HTTP/1.1 429"), answer
    return True


@pytest.mark.thorough(fast=1)
def test_a_server_that_stops_tells_its_clients(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "PATIENCE_SECONDS", 0.3)
    box.start_worker(fake_step_seconds="0.2")
    found: dict[str, Any] = {}
    # Before its first piece a request is told as the others are.
    begun = threading.Event()

    def stream(address: str) -> None:
        with asking(address) as http:
            body = chat(WORDS, stream=True, max_tokens=500)
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        found["stream"] = json.loads(line.removeprefix("data: "))
                        begun.set()

    def plain(address: str, name: str, headers: dict[str, str]) -> None:
        with asking(address) as http:
            found[name] = http.post("/v1/completions", json={"prompt": WORDS, "max_tokens": 500}, headers=headers)

    with serving(box) as address:
        threads = [
            threading.Thread(target=stream, args=(address,)),
            threading.Thread(target=plain, args=(address, "plain", {})),
            threading.Thread(target=plain, args=(address, "keyed", {"Idempotency-Key": "k"})),
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: _states(box) == ["running"] * 3, lambda: f"all run, not {_states(box)}")
        assert begun.wait(60)
    for thread in threads:
        thread.join()
    assert found["stream"]["error"]["code"] == "server_stops"
    for name in ("plain", "keyed"):
        assert (found[name].status_code, found[name].json()["error"]["code"]) == (503, "server_stops")
        assert found[name].headers["Retry-After"]
    wait_until(lambda: sorted(_states(box))[:2] == ["cancelled", "cancelled"], lambda: f"{_states(box)}")
    assert sorted(_states(box))[2] in {"running", "succeeded"}, "the one with a key goes on"


def _states(box: Box) -> list[str]:
    with box.read() as c:
        return list(c.execute(select(jobs.c.state)).scalars())


def test_methods_that_a_client_makes_up_are_one_series(box: Box) -> None:
    with serving(box) as address, asking(address) as http:
        for number in range(5):
            assert http.request(f"MADEUP{number}", "/v1/completions").status_code == 405
        text = http.get("/metrics").text
    assert "MADEUP" not in text
    assert re.search(r'method="unknown",route="[^"]*",status="405"} 5\.0', text)


def test_without_a_channel_no_stream_waits_for_one(box: Box) -> None:
    database = box.database()
    feed = GrowthFeed(replace(box.settings, redis_url=MEMORY_URL), database)
    try:
        began = time.monotonic()
        for _ in range(20):
            feed.start(patience=30)
        assert time.monotonic() - began < 10
    finally:
        feed.close()
        database.dispose()


def test_a_method_that_a_path_does_not_answer_is_told_which_it_does(box: Box) -> None:
    with serving(box) as address, asking(address) as http:
        for path, allowed in (
            ("/v1/completions", "POST"),
            ("/v1/files", "GET, POST"),
            ("/v1/files/file-1", "DELETE, GET"),
            ("/v1/models/a/b", "GET"),
        ):
            answer = http.put(path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
            assert allowed in answer.json()["error"]["message"]
        for path, allowed in (
            ("/", "GET"),
            ("/submit", "GET, POST"),
            ("/batches", "GET"),
            ("/docs", "GET"),
            ("/static/batches", "GET, HEAD"),
        ):
            answer = http.put(path, headers={"Origin": address})
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed), path


def test_what_no_database_takes_is_refused_on_every_path(box: Box) -> None:
    one = "/batches/%00/answers"
    tails = ("", "/1", "/1/next", "/1/previous", "/1/text", "/1/row")
    with serving(box) as address, asking(address) as http:
        for path in ("/batches/%00", "/batches/%00/download", "/v1/batches/%00", *(one + tail for tail in tails)):
            assert http.get(path).status_code == 404, path
        assert http.get("/batches/b-1/answers?q=%00").status_code == 400
