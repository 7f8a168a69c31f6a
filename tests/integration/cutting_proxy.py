"""CuttingProxy: a way to Postgres that loses the answer to a COMMIT, or is away for a while."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import make_url

if TYPE_CHECKING:
    from sqlalchemy import URL

_SEALS = b"UPDATE batches SET total"


class CuttingProxy:
    """Cuts the first connection over the COMMIT that seals a batch: the server has it, the client gets no answer.

    Args:
        url: The real database's SQLAlchemy URL.
        then_refuse: Close each new connection once that one was cut, as a server does that is away.
    """

    def __init__(self, url: str, *, then_refuse: bool = False) -> None:
        self._server = make_url(url)
        self._then_refuse = then_refuse
        self._away = False
        self.num_cut = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def url(self) -> URL:
        port: int = self._listener.getsockname()[1]
        return self._server.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})

    def go_away(self) -> None:
        """End every connection and refuse new ones, as a server does that is stopped."""
        self._away = True
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Take connections again."""
        self._away = False

    def close(self) -> None:
        for end in (self._listener, *self._sockets):
            end.close()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._away or (self.num_cut and self._then_refuse):
                near.close()
                continue
            far = self._connect()
            self._sockets += [near, far]
            threading.Thread(target=self._to_server, args=(near, far), daemon=True).start()
            threading.Thread(target=_pump, args=(far, near), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = self._server.host, self._server.port or 5432
        if host and not host.startswith("/"):
            return socket.create_connection((host, port))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host or '/var/run/postgresql'}/.s.PGSQL.{port}")
        return far

    def _to_server(self, near: socket.socket, far: socket.socket) -> None:
        sealing = False
        while data := _receive(near):
            sealing = sealing or _SEALS in data
            if sealing and b"COMMIT" in data and not self.num_cut:
                self.num_cut += 1
                near.shutdown(socket.SHUT_RDWR)  # first, so that the answer finds nobody
                far.sendall(data)
                far.shutdown(socket.SHUT_WR)
                return
            with suppress(OSError):
                far.sendall(data)


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := _receive(source):
        try:
            target.sendall(data)
        except OSError:
            return


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65_536)
    except OSError:
        return b""
