"""Requests that come again, byte for byte: answered from the memo as they were the first time, with the same rights.

Raw sockets ask, so that the bytes are these.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import openai
import pytest

from helix_jobs.api import connection, server
from helix_jobs.api.request_memo import RequestMemo
from tests.integration.batch_files import create, many_lines, sdk, wait_status
from tests.integration.http_server import asking, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"


class Counting:
    """Counts what the memo answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = 0
        usual = RequestMemo.answer

        def answer(memo: RequestMemo, head: bytes, headers: list[tuple[bytes, bytes]]) -> bytes | None:
            found = usual(memo, head, headers)
            self.answers += found is not None
            return found

        monkeypatch.setattr(RequestMemo, "answer", answer)


@pytest.fixture
def memo(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def connected(address: str) -> socket.socket:
    place = urlsplit(address)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def head(path: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def read_answer(client: socket.socket, *, has_body: bool = True) -> bytes:
    """One whole answer, without its date."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _received(client)
    length = int(re.search(rb"content-length: (\d+)", answer)[1]) if has_body else 0  # type: ignore[index]
    while len(answer.partition(b"\r\n\r\n")[2]) < length:
        answer += _received(client)
    assert len(answer.partition(b"\r\n\r\n")[2]) == length, "not a byte more"
    return re.sub(rb"date: [^\r]*\r\n", b"", answer)


def _received(client: socket.socket) -> bytes:
    found = client.recv(65536)
    assert found, "the connection was closed"
    return found


def asked(address: str, request: bytes) -> bytes:
    with closing(connected(address)) as client:
        client.sendall(request)
        return read_answer(client)


@pytest.mark.thorough(fast=1)
def test_the_answer_is_the_one_of_the_first_time_and_counted(box: Box, memo: Counting) -> None:
    box.start_worker()
    with serving(box) as address, sdk(address) as client, asking(address) as http:
        batch = wait_status(client, create(client, many_lines(2)).id, "completed")
        for path in ("/health", "/ready", "/v1/models", f"/v1/batches/{batch.id}"):
            with closing(connected(address)) as raw:
                before, answers = memo.answers, []
                for _ in range(4):
                    raw.sendall(head(path))
                    answers.append(read_answer(raw))
                assert answers == answers[:1] * 4, path
                assert answers[0].startswith(b"HTTP/1.1 200 OK\r\n")
                assert memo.answers > before, path
        figures = http.get("/metrics").text
        assert 'helix_http_requests_total{method="GET",route="/v1/batches/{batch_id}",status="200"}' in figures
        assert 'helix_http_requests_total{method="GET",route="/ready",status="200"} 4.0' in figures
        assert 'helix_http_request_seconds_count{method="GET",route="/health"} 4.0' in figures


def test_who_may_not_ask_is_given_nothing_of_what_another_asked_for(box: Box, memo: Counting) -> None:
    with serving(box, api_keys=f"{KEY},{OTHER}") as address, sdk(address, KEY) as client:
        path = f"/v1/batches/{create(client, many_lines(1)).id}"
        mine, yours = (head(path, f"Authorization: Bearer {key}") for key in (KEY, OTHER))
        wrong = head(path, "Authorization: Bearer a-key-that-is-not-known")
        for _ in range(3):
            assert asked(address, mine).startswith(b"HTTP/1.1 200")
            assert asked(address, yours).startswith(b"HTTP/1.1 404")
            assert asked(address, wrong).startswith(b"HTTP/1.1 401")
            assert asked(address, head(path)).startswith(b"HTTP/1.1 401")
    assert 1 <= memo.answers <= 2


def test_without_keys_another_name_of_this_address_is_refused_again_and_again(box: Box, memo: Counting) -> None:
    with serving(box) as address:
        for _ in range(3):
            assert asked(address, head("/health")).startswith(b"HTTP/1.1 200")
            assert asked(address, head("/health", host="evil.example")).startswith(b"HTTP/1.1 403")
            origin = head("/health", "Origin: http://evil.example")
            assert asked(address, origin).startswith(b"HTTP/1.1 403")
    assert memo.answers == 2


@pytest.mark.thorough(fast=1)
def test_a_cancel_is_seen_at_once_however_often_others_ask(box: Box, memo: Counting) -> None:
    with serving(box) as address, sdk(address) as client:
        batches = [wait_status(client, create(client, many_lines(3)).id, "in_progress").id for _ in range(4)]
        is_over = threading.Event()

        def poll(batch_id: str) -> None:
            with closing(connected(address)) as raw:
                while not is_over.is_set():
                    raw.sendall(head(f"/v1/batches/{batch_id}"))
                    read_answer(raw)

        pollers = [threading.Thread(target=poll, args=(batch_id,)) for batch_id in batches]
        for poller in pollers:
            poller.start()
        try:
            wait_until(lambda: memo.answers > 20, "the pollers are answered from the memo")
            for batch_id in batches:
                client.batches.cancel(batch_id)
                found = asked(address, head(f"/v1/batches/{batch_id}"))
                assert b'"status":"in_progress"' not in found
                assert re.search(rb'"status":"cancell(ing|ed)"', found)
        finally:
            is_over.set()
            for poller in pollers:
                poller.join()


def test_who_wants_a_reading_of_its_own_gets_one(box: Box) -> None:
    with serving(box) as address, sdk(address) as client, box.client() as own:
        batch_id = wait_status(client, create(client, many_lines(3)).id, "in_progress").id
        client.batches.retrieve(batch_id)
        own.cancel(own.list()[0].id)
        found = client.batches.retrieve(batch_id, extra_headers={"Cache-Control": "no-cache"})
        assert found.status == "cancelled"


BARE = b"GET /health HTTP/1.1\nHost: localhost\n\n"
STATED = head("/health", "Content-Length: 4")


@pytest.mark.parametrize(
    ("request_bytes", "answers"),
    [
        pytest.param(head("/health") * 2, 2, id="two at once"),
        pytest.param(BARE + head("/health"), 2, id="two at once, the first without carriage returns"),
        pytest.param(head("/health") + head("/v1/nothing"), 2, id="two paths at once"),
        pytest.param(STATED + b"body", 1, id="a body"),
    ],
)
def test_several_requests_in_one_piece_are_answered_one_by_one(box: Box, request_bytes: bytes, answers: int) -> None:
    with serving(box) as address, closing(connected(address)) as client:
        client.sendall(head("/health"))
        read_answer(client)
        for _ in range(3):
            client.sendall(request_bytes)
            found = b""
            while found.count(b"HTTP/1.1 ") < answers or not found.endswith(b"}"):
                found += _received(client)
            assert found.count(b"HTTP/1.1 ") == answers
        client.sendall(head("/ready"))
        assert read_answer(client).startswith(b"HTTP/1.1 503"), "the connection is in step"


def test_a_body_that_comes_after_its_head_belongs_to_it(box: Box, memo: Counting) -> None:
    with serving(box) as address, closing(connected(address)) as client:
        for _ in range(3):
            client.sendall(STATED)
            time.sleep(0.05)
            client.sendall(b"body")
            assert read_answer(client).startswith(b"HTTP/1.1 200")
    assert memo.answers == 0


def test_pieces_of_a_head_are_put_together(box: Box) -> None:
    request = head("/health")
    with serving(box) as address, closing(connected(address)) as client:
        for at in (0, 1, 20, len(request) - 2, len(request)):
            client.sendall(request[:at])
            time.sleep(0.02)
            client.sendall(request[at:])
            assert read_answer(client).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("how", ["close", "old"])
def test_a_connection_that_is_to_end_ends(box: Box, memo: Counting, how: str) -> None:
    request = head("/health", "Connection: close") if how == "close" else b"GET /health HTTP/1.0\r\n\r\n"
    with serving(box, api_keys=KEY) as address:
        for _ in range(3):
            with closing(connected(address)) as client:
                client.sendall(request)
                assert read_answer(client).startswith(b"HTTP/1.1 200")
                assert client.recv(1) == b""
    assert memo.answers == 0


def test_a_head_alone_is_answered_without_a_body(box: Box, memo: Counting) -> None:
    with serving(box) as address, closing(connected(address)) as client:
        for _ in range(3):
            client.sendall(head("/health", method="HEAD"))
            assert read_answer(client, has_body=False).endswith(b"\r\n\r\n")
            client.sendall(head("/health"))
            assert read_answer(client).endswith(b'{"status":"ok"}')
    assert memo.answers == 2


@pytest.mark.thorough(fast=1)
def test_a_connection_stays_while_it_asks_and_ends_when_it_does_not(
    box: Box, memo: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(server, "_KEEP_ALIVE_SECONDS", 1)
    with serving(box) as address:
        assert asked(address, head("/health"))
        with closing(connected(address)) as client:  # its first request already is one that came before
            for _ in range(8):
                client.sendall(head("/health"))
                read_answer(client)
                time.sleep(0.1)
            assert memo.answers == 8
            assert client.recv(1) == b"", "it asked nothing for a second"


def test_who_takes_no_answer_is_asked_to_before_more_is_written(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKE_SECONDS", 0.3)
    with serving(box) as address, sdk(address) as client:
        path = f"/v1/batches/{create(client, many_lines(1)).id}"
        with closing(connected(address)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(0.01)
            written, request = 0, head(path)
            with suppress(OSError):
                while written < 10_000_000:
                    slow.sendall(request)
                    written += len(request)
            assert written < 10_000_000, "the server reads no more than it can answer"
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_none")
