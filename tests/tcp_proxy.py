"""TcpProxy: a connection to a server that can go dead without either end being told."""

from __future__ import annotations

import selectors
import socket
import threading


class TcpProxy:
    """Forwards to a port of this machine until told to stop.

    Args:
        port: Where to.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._dead: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def go_dead(self) -> int:
        """Forward nothing more on the connections there are, and close none; new ones work. Returns how many."""
        with self._lock:
            dead = [end for end in self._peers if end not in self._dead]
            for end in dead:
                self._selector.unregister(end)
            self._dead.update(dead)
        return len(dead) // 2

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for end in (self._listener, *self._peers):
            end.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                for key, _ in self._selector.select(0.02):
                    assert isinstance(key.fileobj, socket.socket)
                    self._accept() if key.fileobj is self._listener else self._forward(key.fileobj)
            self._ended.wait(0.001)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        self._peers.update({near: far, far: near})
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        if source not in self._peers:  # its peer ended in the same round
            return
        target = self._peers[source]
        try:
            data = source.recv(65_536)
            if data:
                target.sendall(data)
                return
        except OSError:
            pass
        for end in (source, target):
            del self._peers[end]
            self._selector.unregister(end)
            end.close()
