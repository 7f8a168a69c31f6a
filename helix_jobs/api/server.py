"""Server: runs the application with uvicorn until told to stop."""

from __future__ import annotations

import socket
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn

from helix_jobs.api.app import create_app
from helix_jobs.api.connection import Connection
from helix_jobs.api.context import Context
from helix_jobs.api.request_memo import RequestMemo
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from helix_jobs.api.ending import Ending
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

# Connections that no request uses are closed after this long.
_KEEP_ALIVE_SECONDS: Final = 30
# After this long, what still goes on is cut when the server stops. Open requests end before; see ``Ending``.
GRACE_SECONDS: Final = 10
_BACKLOG: Final = 2048


class Server:
    """Serves over HTTP.

    Args:
        settings: Where to serve, the keys and the limits.
        database: The database.

    Raises:
        ConfigurationError: The address cannot be served on, or the API keys are wrong.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._context = Context.of(settings, database)
        try:
            self._listener = listening(settings.serve_host, settings.serve_port)
        except BaseException:
            self._context.close()
            raise
        host, port = self._listener.getsockname()[:2]
        self.address: Final = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            create_app(self._context),
            # uvicorn only calls it, as it would call the class.
            http=cast("Any", partial(Connection, memo=RequestMemo(self._context.figures))),
            ws="none",
            log_config=None,  # our own logging
            access_log=False,  # paths do not belong into a log
            server_header=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = _Uvicorn(config, self._context.ending)

    def run(self) -> None:
        """Serve until ``stop``, or in the main thread until SIGINT or SIGTERM. Then everything is closed."""
        with closing(self._context), closing(self._listener):
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Let ``run`` end; may be called by another thread."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which tells open requests that it stops."""

    def __init__(self, config: uvicorn.Config, ending: Ending) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self._ending.begin()
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        ConfigurationError: The port is in use, or this machine has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{host}, port {port}, cannot be served on ({error.strerror}); give another --host or --port"
        ) from error
    return listener
