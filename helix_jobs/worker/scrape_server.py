"""ScrapeServer: the metrics' HTTP server, bounded so that clients cannot exhaust the worker's resources.

The bounds: connections at once, seconds to send a request, connections accepted a second. Connections beyond them are
closed or wait in the system's queue; they cost the worker neither threads nor descriptors nor processor time.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0
# How long an answer may take: its figures come from the database, and a client may read slowly.
ANSWER_SECONDS: Final = 15.0
# Between two connections. Trade-off: every scrape waits this long, but a thousand scrapers cost no more than twenty
# connections a second.
ACCEPT_PAUSE_SECONDS: Final = 0.05


class _Handler(WSGIRequestHandler):
    server: ScrapeServer

    def get_environ(self) -> dict[str, Any]:
        """Note that the request was read."""
        self.server.extend(self.connection, ANSWER_SECONDS)
        return super().get_environ()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Serves an application from a thread of its own.

    Args:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        app: The WSGI application.

    Raises:
        OSError: The port is in use, or there is no such address.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, app: Callable[..., Any]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        # Connection -> until when (monotonic) it may stay open.
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(app)
        self._thread = threading.Thread(target=self.serve_forever, name="helix-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def extend(self, connection: socket.socket, seconds: float) -> None:
        """Let a connection stay open for so many seconds from now on."""
        with self._lock:
            if connection in self._open:
                self._open[connection] = time.monotonic() + seconds

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as the base class would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, after a pause since the one before, also if no descriptors are left."""
        time.sleep(ACCEPT_PAUSE_SECONDS)
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (the base class's signature)
        """Serve a connection on a thread, or close it if there are too many or no threads are left."""
        with self._lock:
            is_welcome = len(self._open) < MAX_CONNECTIONS
            if is_welcome:
                self._open[request] = time.monotonic() + REQUEST_SECONDS
        try:
            if is_welcome:
                super().process_request(request, client_address)
                return
        except RuntimeError:
            pass
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """Close a connection that has had its answer."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close the connections that take too long. Called twice a second."""
        now = time.monotonic()
        with self._lock:
            for connection in [connection for connection, until in self._open.items() if now > until]:
                del self._open[connection]
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Ignore a client that went away in the middle."""
