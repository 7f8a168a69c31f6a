"""ServerLoad: asks a server for one path at a steady rate, over connections that stay open."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from types import TracebackType

_CONNECTIONS: Final = 4
_ANSWER_SECONDS: Final = 30.0
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_OK: Final = b"HTTP/1.1 200"


class ServerLoad:
    """Asks on a thread of its own while the ``with`` block runs. A server that is too slow is asked less often.

    Args:
        address: The server's address, as ``http://HOST:PORT``.
        path: What is asked for.
        rate: Requests a second.
    """

    def __init__(self, address: str, path: str, rate: float) -> None:
        self._place = urlsplit(address)
        self._request = f"GET {path} HTTP/1.1\r\nHost: {self._place.netloc}\r\n\r\n".encode()
        self._rate = rate
        self._waits: list[float] = []
        self._spent = 0.0
        self._error: OSError | HelixError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="helix-load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise HelixError(f"the server does not answer its load: {self._error}") from self._error

    @property
    def answered(self) -> int:
        """Requests that were answered so far."""
        return len(self._waits)

    @property
    def spent(self) -> float:
        """Seconds of processor time that asking has taken so far."""
        return self._spent

    @property
    def waits(self) -> Percentiles | None:
        """Seconds from a request to its answer."""
        return Percentiles.of(self._waits)

    def _run(self) -> None:
        connections: list[socket.socket] = []
        try:
            for _ in range(_CONNECTIONS):
                place = self._place.hostname or "", self._place.port or 0
                connections.append(socket.create_connection(place, timeout=_ANSWER_SECONDS))
            self._ask_all(connections)
        except (OSError, HelixError) as error:
            self._error = error
        finally:
            for connection in connections:
                connection.close()

    def _ask_all(self, connections: list[socket.socket]) -> None:
        """One request on each connection in a round; rounds keep to the rate."""
        began, rounds = time.perf_counter(), 0
        while not self._ended.is_set():
            asked_at = time.perf_counter()
            for connection in connections:
                connection.sendall(self._request)
            for connection in connections:
                _read_answer(connection)
                self._waits.append(time.perf_counter() - asked_at)
            rounds += 1
            self._spent = time.thread_time()
            ahead = began + rounds * len(connections) / self._rate - time.perf_counter()
            if ahead > 0:
                self._ended.wait(ahead)
            else:  # what could not be asked in time is not made up for
                began -= ahead


def _read_answer(connection: socket.socket) -> None:
    """Read one answer to its end.

    Raises:
        HelixError: It is a refusal, or the server has closed the connection.
    """
    answer = b""
    while (end := answer.find(_HEAD_END)) < 0:
        answer += _received(connection)
    if not answer.startswith(_OK):
        raise HelixError(answer[:end].split(b"\r\n")[0].decode(errors="replace"))
    lengths = [line for line in answer[:end].lower().split(b"\r\n") if line.startswith(_LENGTH)]
    left = int(lengths[0].removeprefix(_LENGTH)) - (len(answer) - end - len(_HEAD_END))
    while left > 0:
        left -= len(_received(connection))


def _received(connection: socket.socket) -> bytes:
    found = connection.recv(65536)
    if not found:
        raise HelixError("the connection was closed")
    return found
