"""A server in a crowd: idle connections, half-sent bodies, slow readers, and a huge file that comes, all at once."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import func, select

from helix_jobs.storage.schema import api_file_parts
from tests.integration.http_server import asking, server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx2

    from tests.worker_box import Box

pytestmark = pytest.mark.slow

MEGABYTE: Final = 1_000_000
UPLOAD_BYTES: Final = int(float(os.environ.get("HELIX_TEST_UPLOAD_GB", "10")) * 1000) * MEGABYTE
READ_BYTES: Final = 100 * MEGABYTE
IDLE, HALF_SENT, SLOW_READERS = 1000, 40, 20
# What the crowd may take: each reader has eight parts of a file in hand, a megabyte each. And what may come on top.
CROWD_BYTES: Final = (SLOW_READERS * 8 + 60) * MEGABYTE
GROWTH_BYTES: Final = 20 * MEGABYTE
HEAD: Final = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
TAIL: Final = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
FORM: Final = {"Content-Type": "multipart/form-data; boundary=b"}


def connected(address: str) -> socket.socket:
    place = urlsplit(address)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((place.hostname, place.port))
    return made


def form(size: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(size // MEGABYTE):
        yield b"x" * (MEGABYTE - 1) + b"\n"
    yield TAIL


def upload(address: str, size: int) -> httpx2.Response:
    with asking(address) as http:
        return http.post("/v1/files", content=form(size), headers=FORM, timeout=3600)


def begin_idle(address: str, number: int) -> socket.socket:
    """A connection with nothing on it, or with an answer behind it that keeps it open."""
    idle = connected(address)
    if number % 2:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return idle


def begin_half_sent(address: str) -> socket.socket:
    half = connected(address)
    kind = f"Content-Type: {FORM['Content-Type']}"
    head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MEGABYTE}\r\n{kind}\r\n\r\n"
    half.sendall(head.encode() + HEAD + b"x" * 100_000)
    return half


def begin_reading(address: str, file_id: str) -> socket.socket:
    reader = connected(address)
    reader.sendall(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader


class Repeated:
    """Calls something every so often on a thread, until it is left."""

    def __init__(self, call: Callable[[], None], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _main(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._call()
            except BaseException as error:  # noqa: BLE001  (raised where the test waits)
                self.error = error
                return


def test_memory_stays_flat_and_neighbours_are_served(box: Box) -> None:
    box.start_worker(fake_step_seconds="0.01")
    limits = {"HELIX_MAX_UPLOAD_MB": str(UPLOAD_BYTES // MEGABYTE), "HELIX_MAX_OPEN_REQUESTS": "1000"}
    with server_process(box, **limits) as (process, address), ExitStack() as stack:
        server = psutil.Process(process.pid)
        file_id = upload(address, READ_BYTES).json()["id"]
        base = server.memory_info().rss
        http = stack.enter_context(asking(address))
        waits: list[float] = []
        held: list[int] = []
        readers = [stack.enter_context(closing(begin_reading(address, file_id))) for _ in range(SLOW_READERS)]

        def ask_beside() -> None:
            began = time.monotonic()
            answer = http.post("/v1/completions", json={"prompt": "a neighbour asks"})
            assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "a neighbour asks")
            assert http.get("/health").status_code == 200
            waits.append(time.monotonic() - began)
            held.append(server.memory_info().rss)

        def read_a_little() -> None:
            for reader in readers:
                assert reader.recv(2048), "a reader that goes on reading is not cut"

        for number in range(IDLE):
            stack.enter_context(closing(begin_idle(address, number)))
        for _ in range(HALF_SENT):
            stack.enter_context(closing(begin_half_sent(address)))
        with Repeated(ask_beside, 0.3), Repeated(read_a_little, 0.5):
            began = time.monotonic()
            answer = upload(address, UPLOAD_BYTES)
            seconds = time.monotonic() - began
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == UPLOAD_BYTES
        with box.read() as c:
            parts = c.execute(select(func.count()).where(api_file_parts.c.file_id == answer.json()["id"])).scalar_one()
        with suppress(ConnectionError):  # the server is killed with its readers
            process.kill()
    early, late = max(held[: len(held) // 2]), max(held[len(held) // 2 :])
    print(  # noqa: T201  (what the command of this test is for)
        f"\n{UPLOAD_BYTES / 1e9:.1f} GB in {parts} parts in {seconds:.0f} s; {base / 1e6:.0f} MB held before, "
        f"at most {early / 1e6:.0f} and {late / 1e6:.0f} MB in the first and second half; "
        f"{len(waits)} neighbours waited "
        f"{statistics.median(waits):.2f} s in the middle, {max(waits):.2f} s at most"
    )
    assert parts == UPLOAD_BYTES // MEGABYTE
    assert max(early, late) < base + CROWD_BYTES
    assert late < early + GROWTH_BYTES, "memory grows with the file"
