"""ServerWatch: whether the server answers, and whether it still is the server it was."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.endpoint.faults import ServerBusyError, ServerLostError, ServerRefusesError
from helix_jobs.engine.endpoint.server import recognise

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from helix_jobs.engine.endpoint.server import Server

logger = logging.getLogger(__name__)

# Pauses between two looks at a server that is lost: the first, and the longest.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0


class ServerWatch:
    """Looks at the server when something suggests that it is lost or changed, until it is back.

    All but the properties belongs to the connection's event loop. A server that serves another model than at the start
    counts as lost: its answers would be another model's. One of another version is the same server.

    Args:
        client: Has the server's address, and the key.
        server: The server at the start.
        model: The model's name, as the user gave it.
        on_lost: Called when the server is found to be lost.
        first_pause: Seconds between the first two looks at a lost server; each pause is twice the one before.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        server: Server,
        model: str | None,
        on_lost: Callable[[], None],
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._client = client
        self._server = server
        self._model = model
        self._on_lost = on_lost
        self._first_pause = first_pause
        self._pause = first_pause
        self._outage: str | None = None
        self._has_failed = False
        # Looks by their numbers: the latest that has begun, the latest that has ended well, and the first that begins
        # after the latest doubt.
        self._begun = 0
        self._passed = 0
        self._needed = 0
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None

    @property
    def server(self) -> Server:
        """The server as it was last seen. Read by any thread."""
        return self._server

    @property
    def outage(self) -> str | None:
        """Why the server cannot be asked; None while it can. Read by any thread."""
        return self._outage

    @property
    def has_failed(self) -> bool:
        """Whether the latest outage is the server's own failure: it died, fell silent or starts anew.

        Otherwise it answers, and refuses this worker, limits how often it is asked or serves another model.
        """
        return self._has_failed

    def answered(self) -> None:
        """Note that the server has answered a request: the next outage begins with a short pause again."""
        self._pause = self._first_pause

    def doubt(self) -> None:
        """Note that another server may stand behind the address than before: a connection was opened, or broke."""
        self._needed = self._begun + 1

    async def is_trusted(self) -> bool:
        """Whether the server is the one it was, by a look that began after the latest doubt. One look serves all."""
        wanted = self._needed
        async with self._turn:
            if self._passed < wanted and self._outage is None:
                await self._look()
        return self._outage is None

    def lose(self, why: str, *, has_failed: bool) -> None:
        """Count the server as lost, and look at it now and then until it is back.

        Args:
            why: The reason, for people.
            has_failed: As the property.
        """
        if self._outage is not None:
            return
        self._outage, self._has_failed = why, has_failed
        logger.warning("%s; its jobs go back to the queue, and this worker takes none until it is back", why)
        self._on_lost()
        self._waiting = asyncio.create_task(self._wait())

    async def close(self) -> None:
        """Look no more."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _look(self) -> None:
        number = self._begun = self._begun + 1
        try:
            self._compare(await recognise(self._client, self._model))
        except ServerBusyError as error:
            why = "the server limits how often it is asked" if error.is_limit else "the server is not ready"
            self.lose(why, has_failed=not error.is_limit)
        except (ServerLostError, ServerRefusesError) as error:
            self.lose(str(error), has_failed=isinstance(error, ServerLostError))
        else:
            self._passed = number

    async def _wait(self) -> None:
        """Look until the server is back."""
        began = time.monotonic()
        while self._outage is not None:
            await asyncio.sleep(self._pause)
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            try:
                self._compare(await recognise(self._client, self._model))
            except (ServerLostError, ServerRefusesError, ServerBusyError) as error:
                if str(error) != self._outage and not isinstance(error, ServerBusyError):
                    self._outage = str(error)
                    logger.warning("the server is not back: %s", error)
            else:
                self._outage = None
        logger.info("the server is back after %.0f s: %s", time.monotonic() - began, self._server.in_words)

    def _compare(self, found: Server) -> None:
        """Note the server found.

        Raises:
            ServerRefusesError: It serves another model.
        """
        if found.identity != self._server.identity:
            raise ServerRefusesError(
                "the server now serves another model than when this worker started; start the worker anew for it, or "
                "have the server serve the old one"
            )
        if found.version != self._server.version:
            logger.info("the server is now %s", found.in_words)
        self._server = found
