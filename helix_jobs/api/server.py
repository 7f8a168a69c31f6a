"""serve: run the application with uvicorn until told to stop."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Final

import uvicorn

from helix_jobs.api.app import create_app
from helix_jobs.api.context import Context
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# Connections that no request uses are closed after this long.
_KEEP_ALIVE_SECONDS: Final = 30
# How long open requests may go on when the server stops. Their jobs go on in any case.
_GRACE_SECONDS: Final = 10
_BACKLOG: Final = 2048


def serve(settings: Settings, database: Database, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: Where to serve, the keys and the limits.
        database: The database.
        on_ready: Called with the server's address once it listens.

    Raises:
        ConfigurationError: The address cannot be served on, or the API keys are wrong.
    """
    context = Context.of(settings, database)
    with closing(context), closing(listening(settings.serve_host, settings.serve_port)) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            create_app(context),
            log_config=None,  # our own logging
            access_log=False,  # paths do not belong into a log
            server_header=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        server = _Server(config, lambda: on_ready(address))
        server.run(sockets=[listener])


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


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()
